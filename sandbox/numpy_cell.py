"""The kind of cell that has numpy imported: 80 ms of CPU for every program else.

numpy is that of our own environment, bound read-only into the cell, and found without importing it on our side.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sandbox.cell_walls import CellKind
from sandbox.errors import SandboxError
from sandbox.host import interpreter
from sandbox.inside.zygote import PACKAGES
from sandbox.kept_files import is_readable_by_all, kept_folder

_PARTS = ("numpy", "numpy.libs")


@functools.cache
def numpy_kind() -> CellKind:
    """Raises SandboxError when numpy is not installed here, or not for an interpreter that a cell can have."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or not spec.submodule_search_locations:
        raise SandboxError("programs with numpy need numpy beside this interpreter: pip install numpy")
    site = Path(spec.submodule_search_locations[0]).parent
    if os.geteuid() == 0 and not is_readable_by_all(site):
        site = kept_folder(f"numpy-{importlib.metadata.version('numpy')}-{sys.version_info.minor}", _copy_of(site))
    binds = tuple((f"{PACKAGES}/{part}", str(site / part)) for part in _PARTS if (site / part).is_dir())
    return CellKind(("numpy",), binds, _python())


def _copy_of(site: Path) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for part in _PARTS:
            if (site / part).is_dir():
                shutil.copytree(site / part, folder / part, ignore=shutil.ignore_patterns("tests", "__pycache__"))

    return fill


def _python() -> str:
    """numpy's compiled parts fit one version of Python: the system's if it is that, else our own."""
    system, _ = interpreter()
    found = subprocess.run(
        [system, "-I", "-S", "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    )
    if tuple(map(int, found.stdout.split())) == sys.version_info[:2]:
        return system
    return str(Path(sys.executable).resolve())
