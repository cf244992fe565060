"""A folder on this machine for what is made once for all cells and runs: a precompiled header, a copy of a package.

It has to be readable by whoever runs the cells, which is the user nobody when we are root, and writable by us alone,
because every program that is run later relies on it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from sandbox.errors import SandboxError


def kept_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `fill` unless it is there already; whole or not at all.

    Raises SandboxError when the place cannot be trusted, and whatever `fill` raises.
    """
    root = _root()
    root.mkdir(parents=True, exist_ok=True, mode=0o755)
    status = root.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SandboxError(
            f"{root} must belong to this user and be writable by nobody else; remove it or mend its mode"
        )
    folder = root / name
    if folder.is_dir():
        return folder
    draft = root / f"{name}.{secrets.token_hex(4)}"
    draft.mkdir(mode=0o755)
    try:
        fill(draft)
        with contextlib.suppress(OSError):  # another process was first, which is as good
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def is_readable_by_all(path: Path) -> bool:
    """Whether a user without any rights of ours could read the folder."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents)) and bool(
        path.stat().st_mode & stat.S_IROTH
    )


def _root() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/cispo-sandbox")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cispo-sandbox"
