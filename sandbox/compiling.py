"""Compiles programs inside the sandbox, each text once.

The compiler is as exposed to a stranger's text as an interpreter is (`#include "/etc/shadow"`, templates without end),
so it runs in a cell like any program, within limits of its own. What it made leaves as bytes and is only ever run in
a cell again. It is kept by a hash of everything that went in, because the programs of a group are often the same and
every test of a program needs it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

from sandbox.cell_walls import CellKind
from sandbox.cells import Cells
from sandbox.program import Execution, Limits, Verdict
from sandbox.task import Task

COMPILE_LIMITS = Limits(
    cpu_seconds=20,
    wall_seconds=60,
    memory_bytes=1 << 30,
    output_bytes=64 << 20,
    file_bytes=256 << 20,
    num_files=256,
)
_CACHE_BYTES = 256 << 20
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True)
class Recipe:
    """How a language is compiled.

    Attributes:
        script: a shell script over the files that writes the program to standard output and ends with 0.
        kind: the cell that it needs.
    """

    script: str
    kind: CellKind


@dataclass(frozen=True)
class Built:
    """A program that can be executed."""

    program: bytes


class Compiler:
    """Keeps what was compiled, the most recently used up to a number of bytes. Thread-safe."""

    def __init__(self, cells: Cells, cache_bytes: int = _CACHE_BYTES) -> None:
        self._cells = cells
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._results: OrderedDict[bytes, Future[Built | Execution]] = OrderedDict()

    def build(
        self, recipe: Recipe, files: Mapping[str, tuple[bytes, int]], is_cancelled: Callable[[], bool]
    ) -> Built | Execution:
        """The program; or what the compiler did instead, with verdict CE, or SE when the sandbox failed."""
        key = hashlib.blake2b(repr((recipe, sorted(files.items()))).encode()).digest()
        with self._lock:
            known = self._results.get(key)
            if known is not None:
                self._results.move_to_end(key)
            else:
                mine = self._results[key] = Future()
        if known is not None:
            result = known.result()  # waits when another thread is at it
            return result if not _is_fault(result) else self._compile(recipe, files, is_cancelled)
        try:
            result = self._compile(recipe, files, is_cancelled)
        except BaseException as error:
            mine.set_exception(error)
            self._forget(key)
            raise
        mine.set_result(result)
        if _is_fault(result):
            self._forget(key)
        self._make_room()
        return result

    def _compile(
        self, recipe: Recipe, files: Mapping[str, tuple[bytes, int]], is_cancelled: Callable[[], bool]
    ) -> Built | Execution:
        command = ("/bin/sh", "-c", recipe.script)
        task = Task(recipe.kind, COMPILE_LIMITS, b"", files, command, _ENVIRONMENT, limits_address_space=False)
        execution = self._cells.run(task, is_cancelled)
        if execution.verdict is Verdict.OK:
            return Built(execution.stdout)
        if execution.verdict is Verdict.SE:
            return execution
        note = (
            b"" if execution.verdict is Verdict.RE else b"\nthe compiler was ended: %s\n" % execution.verdict.encode()
        )
        return replace(execution, verdict=Verdict.CE, stdout=b"", stderr=execution.stderr + note)

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._results.pop(key, None)

    def _make_room(self) -> None:
        with self._lock:
            sizes = {key: _size(future.result()) for key, future in self._results.items() if future.done()}
            too_much = sum(sizes.values()) - self._cache_bytes
            for key, size in sizes.items():
                if too_much <= 0:
                    return
                del self._results[key]
                too_much -= size


def _is_fault(result: Built | Execution) -> bool:
    return isinstance(result, Execution) and result.verdict is Verdict.SE


def _size(result: Built | Execution) -> int:
    return len(result.program) if isinstance(result, Built) else len(result.stderr) + 1024
