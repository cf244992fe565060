"""How much a process and all its descendants use right now, read from /proc.

Resource limits of the kernel hold per process: forty children of 100 MB each pass every one of them, and so do
sixty-four short-lived spinners. Only the sum tells, and without cgroups (which a plain user rarely has) the sum has
to be taken from outside.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import SandboxError

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Positions in /proc/<pid>/stat after the closing bracket of the command name (proc(5) counts from 3 there).
_UTIME, _CSTIME, _NUM_THREADS, _RSS = 11, 14, 17, 21

_ENDED = (FileNotFoundError, ProcessLookupError)
"""What /proc answers about a process that has ended. Any other answer means that nobody can watch, so it is raised."""

WATCHING_NEEDS = (
    "watching needs /proc without hidepid, a kernel with /proc/<pid>/task/<tid>/children and smaps_rollup, "
    "and as root the capability SYS_PTRACE (docker run --cap-add SYS_PTRACE)"
)


@dataclass(frozen=True)
class TreeUsage:
    """Totals of one look at the tree.

    Attributes:
        cpu_s: processor seconds of all descendants, living or already waited for.
        memory_bytes: sum of resident sizes; pages shared after a fork count once per process, so it is an upper bound.
        num_tasks: processes and threads.
        pids: the living descendants.
    """

    cpu_s: float
    memory_bytes: int
    num_tasks: int
    pids: tuple[int, ...]


def look_at_tree(root: int) -> TreeUsage:
    """Add up the descendants of `root`. Of the root itself only what it has reaped counts: it is the sandbox's own.

    Processes that end while they are looked at are left out. Raises OSError or SandboxError where /proc does not tell.
    """
    cpu_ticks = resident_pages = num_tasks = 0
    pids: list[int] = []
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            fields = _stat_fields(pid)
            waiting += _children(pid, num_threads=int(fields[_NUM_THREADS]))
        except _ENDED:
            continue
        times = [int(ticks) for ticks in fields[_UTIME : _CSTIME + 1]]
        cpu_ticks += sum(times if pid != root else times[2:])
        if pid != root:
            resident_pages += int(fields[_RSS])
            num_tasks += int(fields[_NUM_THREADS])
            pids.append(pid)
    return TreeUsage(cpu_ticks / _TICKS_PER_SECOND, resident_pages * _PAGE_BYTES, num_tasks, tuple(pids))


def proportional_memory(pids: tuple[int, ...]) -> int:
    """Resident bytes with each shared page counted once. Dearer than `look_at_tree`: used to confirm, not to watch."""
    return sum(_proportional_memory(pid) for pid in pids)


def _stat_fields(pid: int) -> list[bytes]:
    # The command name may hold spaces and brackets: everything after the last bracket is numbers.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if len(fields) <= _RSS:
        raise SandboxError(f"/proc/{pid}/stat must tell times, threads and memory, but has only {len(fields)} numbers")
    return fields


def _children(pid: int, *, num_threads: int) -> list[int]:
    """Children belong to the thread that made them."""
    threads = [str(pid)] if num_threads == 1 else [task.name for task in Path(f"/proc/{pid}/task").iterdir()]
    return [
        int(child) for thread in threads for child in Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split()
    ]


def _proportional_memory(pid: int) -> int:
    try:
        return _mapped_memory(pid)
    except _ENDED:
        return 0


def _mapped_memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except PermissionError:
        # A process may hide its map from its own user (PR_SET_DUMPABLE); then all that it shares counts in full.
        return int(_stat_fields(pid)[_RSS]) * _PAGE_BYTES
    # A zombie has no memory map, and so no such line.
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:"))
