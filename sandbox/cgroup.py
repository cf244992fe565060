"""A control group for each cell, where an administrator has delegated a folder of cgroup v2 to us.

The supervisor's looks every 30 ms stay what decides; the kernel's own limits are the backstop between two looks, and
count kernel memory too, which no look can see. Most clusters delegate nothing, so this is asked for by name
(`sandbox.cgroup`), and everything works without.

    mkdir /sys/fs/cgroup/sandbox && echo '+memory +pids' > /sys/fs/cgroup/sandbox/cgroup.subtree_control
    chown -R me /sys/fs/cgroup/sandbox        # and our own process below a folder that is ours, too

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, delegation.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from sandbox.errors import IsolationError
from sandbox.program import Limits

_NEEDED = ("memory", "pids")
_CELL_BYTES = 64 << 20  # the interpreter of the cell, bubblewrap, and what the kernel keeps for both
_CELL_PROCESSES = 4  # bubblewrap, the zygote, process 1 of the job, and one that is being reaped
_numbers = itertools.count()


class CellGroup:
    """One cell's group, below the delegated folder `parent`. Raises IsolationError when it cannot be made."""

    def __init__(self, parent: str) -> None:
        folder = Path(parent)
        check_delegated(folder)
        self._folder = folder / f"cell-{os.getpid()}-{next(_numbers)}"
        try:
            self._folder.mkdir()
        except OSError as error:
            raise IsolationError(f"sandbox.cgroup={parent}: no group can be made there ({error.strerror})") from error

    def take_in(self, pid: int) -> None:
        """Move a process here; what it starts from now on is here, too. Raises OSError."""
        self._write("cgroup.procs", pid)

    def set_limits(self, limits: Limits) -> None:
        """Those of the next job, and room for the cell itself. Raises OSError."""
        self._write("memory.max", limits.memory_bytes + _CELL_BYTES)
        self._write("pids.max", limits.num_processes + _CELL_PROCESSES)
        with contextlib.suppress(OSError):  # without swap there is no such file
            self._write("memory.swap.max", 0)

    @property
    def num_killed(self) -> int:
        """Processes that the kernel has killed here for want of memory."""
        for line in (self._folder / "memory.events").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
        return 0

    def close(self) -> None:
        """Remove it. The kernel refuses while a process is left, which the next start of a cell there does not mind."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _write(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value))


def check_delegated(folder: Path) -> None:
    """Raise IsolationError, with what to ask an administrator for, unless groups can be made in `folder`."""
    try:
        enabled = (folder / "cgroup.subtree_control").read_text().split()
    except OSError as error:
        raise IsolationError(
            f"sandbox.cgroup={folder} must be a folder of cgroup v2 that is delegated to this user ({error.strerror})"
        ) from error
    if missing := [name for name in _NEEDED if name not in enabled]:
        asked = " ".join(f"+{name}" for name in missing)
        raise IsolationError(
            f"sandbox.cgroup={folder} does not pass on {' and '.join(missing)}; an administrator can run: "
            f"echo '{asked}' > {folder}/cgroup.subtree_control"
        )
    if not os.access(folder, os.W_OK):
        raise IsolationError(
            f"sandbox.cgroup={folder} is not writable by this user; ask for it to be delegated (chown)"
        )
