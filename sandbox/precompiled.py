"""The header that contest programs include, `bits/stdc++.h`, compiled beforehand: 1.5 seconds for every program else.

It is made once on a machine, by the compiler inside the sandbox, and kept (some 100 MB). The name of its folder holds
the compiler and the options, because a precompiled header serves no others.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from pathlib import Path

from sandbox.cell_walls import CellKind
from sandbox.cells import Cells
from sandbox.errors import SandboxError
from sandbox.kept_files import kept_folder
from sandbox.program import Limits, Verdict
from sandbox.task import Task

HEADER_FOLDER = "/precompiled"
_HEADER = "bits/stdc++.h"
_COMPILER = "/usr/bin/g++"
_LIMITS = Limits(
    cpu_seconds=60, wall_seconds=300, memory_bytes=2 << 30, output_bytes=512 << 20, file_bytes=512 << 20, num_files=256
)
_lock = threading.Lock()


def header_binds(cells: Cells, options: str) -> tuple[tuple[str, str], ...]:
    """What a cell that compiles C++ must see. Makes the header when it is not there. Raises SandboxError."""
    with _lock:  # the first of many threads makes it, the others wait
        return ((HEADER_FOLDER, str(_folder(cells, options))),)


@functools.cache
def _folder(cells: Cells, options: str) -> Path:
    compiler = Path(_COMPILER).resolve()
    status = compiler.stat()
    identity = repr((str(compiler), status.st_size, status.st_mtime_ns, options))
    name = f"header-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}"

    def fill(folder: Path) -> None:
        (folder / "bits").mkdir(mode=0o755)
        file = folder / f"{_HEADER}.gch"
        file.write_bytes(_compile(cells, options))
        file.chmod(0o644)

    return kept_folder(name, fill)


def _compile(cells: Cells, options: str) -> bytes:
    script = f"g++ {options} -x c++-header main.h -o out.gch 1>&2 && cat out.gch"
    files = {"main.h": (f"#include <{_HEADER}>\n".encode(), 0o644)}
    task = Task(CellKind(), _LIMITS, b"", files, ("/bin/sh", "-c", script), {"PATH": os.defpath}, False)
    execution = cells.run(task)
    if execution.verdict is not Verdict.OK:
        said = execution.stderr[-300:].decode(errors="replace").strip()
        raise SandboxError(f"{_HEADER} could not be precompiled, which C++ programs need: {execution.verdict} ({said})")
    return execution.stdout
