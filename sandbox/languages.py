"""The languages, as a table: adding one is adding a row here and the name of its source in sandbox.program.

A row says what a program is compiled with, what is executed, and which package has the tool. Python itself is run by
the cell's own interpreter, which has the modules imported already.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandbox.cell_walls import CellKind
from sandbox.cells import Cells
from sandbox.compiling import Built, Compiler, Recipe
from sandbox.errors import SandboxError
from sandbox.numpy_cell import numpy_kind
from sandbox.precompiled import HEADER_FOLDER, header_binds
from sandbox.program import Execution, Limits, Program, Verdict
from sandbox.task import Task

# What contest programs import, each in less than a millisecond; what takes longer pays for every program that does not.
_MODULES = (
    "array", "bisect", "collections", "copy", "functools", "heapq", "io", "itertools", "math", "operator", "re",
    "string", "time",
)  # fmt: skip
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_PAGE_BYTES = mmap.PAGESIZE
_OPTIONS = "-O2 -pipe"
CPP_OPTIONS = f"{_OPTIONS} -std=gnu++17"
"""Those of the precompiled header, too: it serves no others."""


@dataclass(frozen=True)
class Language:
    """One row.

    Attributes:
        tool: what must be installed; "" for nothing.
        package: the Debian package that has it.
        kind: makes the kind of cell in which programs run.
        command: what is executed; none for Python.
        recipe: how the program is compiled first, given the cells to do it in; None when it is not.
        limits_address_space: off where the language reserves far more than it uses.
    """

    tool: str = ""
    package: str = ""
    kind: Callable[[], CellKind] = CellKind
    command: tuple[str, ...] = ()
    recipe: Callable[[Cells], Recipe] | None = None
    limits_address_space: bool = True


def _cpp(cells: Cells) -> Recipe:
    script = f"g++ {CPP_OPTIONS} -I{HEADER_FOLDER} main.cpp -o program 1>&2 && cat program"
    return Recipe(script, CellKind(binds=header_binds(cells, CPP_OPTIONS)))


def _c(_: Cells) -> Recipe:
    return Recipe(f"gcc {_OPTIONS} -std=gnu17 main.c -o program -lm 1>&2 && cat program", CellKind())


TABLE = {
    "python": Language(kind=lambda: CellKind(modules=_MODULES)),
    "numpy": Language(kind=numpy_kind),
    "cpp": Language("g++", "g++", command=("/tmp/program",), recipe=_cpp),
    "c": Language("gcc", "gcc", command=("/tmp/program",), recipe=_c),
    "bash": Language("bash", "bash", command=("/bin/bash", "main.sh")),
    "javascript": Language("node", "nodejs", command=("/usr/bin/node", "main.js"), limits_address_space=False),
}


class Languages:
    """Turns programs into tasks of cells. Thread-safe."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._compiler = Compiler(cells)

    def run(self, program: Program, limits: Limits, is_cancelled: Callable[[], bool]) -> Execution:
        """Run `program`, compiled first where its language is. Raises SandboxError when its tool is not installed."""
        language = TABLE[program.language]
        if language.tool and shutil.which(language.tool, path=_ENVIRONMENT["PATH"]) is None:
            raise SandboxError(
                f"programs in {program.language} need {language.tool} in {_ENVIRONMENT['PATH']}, which is not there: "
                f"apt-get install {language.package}"
            )
        files = {program.source_file: (program.source_bytes, 0o644)}
        files |= {name: (data, 0o644) for name, data in program.files.items()}
        if language.recipe is not None:
            built = self._compiler.build(language.recipe(self._cells), files, is_cancelled)
            if not isinstance(built, Built):
                return built
            del files[program.source_file]
            files = {"program": (built.program, 0o755), **files}
        if not _fit(files.values(), limits.file_bytes) and _fit([*files.values()][1:], limits.file_bytes):
            return _too_large(len(next(iter(files.values()))[0]), limits)
        task = Task(
            language.kind(),
            limits,
            program.stdin_bytes,
            files,
            language.command,
            _ENVIRONMENT if language.command else {},
            language.limits_address_space,
        )
        return self._cells.run(task, is_cancelled)


def _fit(files: Iterable[tuple[bytes, int]], file_bytes: int) -> bool:
    """Whether they can be laid into a temporary file system of that size."""
    pages = sum(-(-len(data) // _PAGE_BYTES) for data, _ in files)
    return pages <= file_bytes // _PAGE_BYTES


def _too_large(num_bytes: int, limits: Limits) -> Execution:
    """The text's own fault: said to be the sandbox's, its sample would be masked."""
    said = f"the program takes {num_bytes} bytes, more than limits.file_bytes={limits.file_bytes} leaves\n"
    return Execution(Verdict.CE, b"", said.encode(), None, None, 0.0, 0.0, 0)
