"""What the sandbox takes from the machine around it: an interpreter for the programs, and an unprivileged user."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from sandbox.errors import IsolationError

SYSTEM_PYTHON = "/usr/bin/python3"
NOBODY = 65534


def interpreter() -> tuple[str, list[str]]:
    """The interpreter for the programs and the folders that it needs beyond /usr."""
    if Path(SYSTEM_PYTHON).exists():
        return SYSTEM_PYTHON, []
    python = str(Path(sys.executable).resolve())
    return python, folders_of(python)


def folders_of(python: str) -> list[str]:
    """What an interpreter needs beyond /usr."""
    prefix = str(Path(python).resolve().parents[1])
    return [] if prefix == "/usr" or prefix.startswith("/usr/") else [prefix]


def become_nobody() -> list[str]:
    """Root does not enter the sandbox even as a mapped user: files of root would be its own, and root has no NPROC.

    A separate small executable, because subprocess' own `user=` forks the whole supervisor: 22 ms of CPU at 600 MB.

    Raises IsolationError when root cannot become somebody else here.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise IsolationError(
            "setpriv is missing, which a root user needs to run programs as nobody: apt-get install util-linux"
        )
    return [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
