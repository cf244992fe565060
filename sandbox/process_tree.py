"""How much a process and all its descendants use right now, read from /proc.

Resource limits of the kernel hold per process: forty children of 100 MB each pass every one of them, and so do
sixty-four short-lived spinners. Only the sum tells, and without cgroups (which a plain user rarely has) the sum has
to be taken from outside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import SandboxError

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Positions in /proc/<pid>/stat after the closing bracket of the command name (proc(5) counts from 3 there).
_STATE, _FLAGS, _UTIME, _CSTIME, _NUM_THREADS, _RSS = 0, 6, 11, 14, 17, 21
_PF_EXITING = 0x4  # among the flags, from the kernel's include/linux/sched.h

_ENDED = (FileNotFoundError, ProcessLookupError)
"""What /proc answers about a process that has ended. Any other answer means that nobody can watch, so it is raised."""

WATCHING_NEEDS = (
    "watching needs /proc without hidepid, a kernel with /proc/<pid>/task/<tid>/children and smaps_rollup, "
    "and as root the capability SYS_PTRACE (docker run --cap-add SYS_PTRACE)"
)


@dataclass(frozen=True)
class Usage:
    """Totals of one look at a tree.

    Attributes:
        cpu_s: processor seconds of all its processes, living or ended.
        memory_bytes: resident memory and temporary files; shared pages count once where it matters.
        num_tasks: processes and threads.
    """

    cpu_s: float
    memory_bytes: int
    num_tasks: int


class ProcessTree:
    """All descendants of `root`, looked at again and again. Of the root itself only what it has reaped counts.

    Args:
        root: a process of ours above the stranger's.
        temporary_bytes: tells what its temporary files take, given a number above which it need not be exact.
        memory_bytes: above this sum of resident sizes the dearer, exact sum is taken.

    A kernel forgets the processor time of a process whose parent ignores its end. What an earlier look saw of it is
    kept: `_lost_ticks` is what vanished from the tree and came back in nobody's account.
    """

    def __init__(self, root: int, temporary_bytes: Callable[[int], int], memory_bytes: int) -> None:
        self._root = root
        self._temporary_bytes = temporary_bytes
        self._memory_bytes = memory_bytes
        self._last: dict[int, tuple[int, int]] = {}
        self._lost_ticks = 0

    def look(self) -> Usage:
        """What the tree uses now.

        Processes that end while they are looked at are left out. Raises OSError or SandboxError where /proc does not
        tell.
        """
        processes = _processes_below(self._root)
        self._keep_account(processes)
        cpu_ticks = self._lost_ticks + sum(process.own_ticks + process.reaped_ticks for process in processes)
        living = [process for process in processes if process.pid != self._root]
        memory = sum(process.resident_bytes for process in living)
        temporary = self._temporary_bytes(self._memory_bytes) if living else 0
        if memory + temporary > self._memory_bytes:
            memory = sum(proportional_memory(process.pid) for process in living)
        num_tasks = sum(process.num_threads for process in living)
        return Usage(cpu_ticks / _TICKS_PER_SECOND, memory + temporary, num_tasks)

    def _keep_account(self, processes: list[_Process]) -> None:
        now = {process.pid: (process.own_ticks, process.reaped_ticks) for process in processes}
        vanished = sum(own + reaped for pid, (own, reaped) in self._last.items() if pid not in now)
        credited = sum(reaped - self._last.get(pid, (0, 0))[1] for pid, (_, reaped) in now.items())
        self._lost_ticks += max(0, vanished - credited)
        self._last = now


def file_system_bytes(root: int, folder: str) -> int:
    """What lies in the temporary file system that `root` has at `folder`; it is memory, too."""
    try:
        usage = os.statvfs(f"/proc/{root}/root{folder}")
    except _ENDED:
        return 0  # the run has just ended
    except PermissionError:
        if _is_ending(root):  # the kernel refuses a plain user the link of a process that has no memory any more
            return 0
        raise
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


def look_at_tree(root: int) -> Usage:
    """One look, without limits."""
    return ProcessTree(root, lambda _: 0, sys.maxsize).look()


@dataclass(frozen=True)
class _Process:
    """One line of a look."""

    pid: int
    own_ticks: int
    reaped_ticks: int
    num_threads: int
    resident_bytes: int


def _processes_below(root: int) -> list[_Process]:
    """The root, with nothing of its own, and every process below it."""
    found: list[_Process] = []
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            fields = _stat_fields(pid)
            num_threads = int(fields[_NUM_THREADS])
            waiting += children(pid, num_threads=num_threads)
        except _ENDED:
            continue
        user, system, reaped_user, reaped_system = (int(ticks) for ticks in fields[_UTIME : _CSTIME + 1])
        own = user + system if pid != root else 0
        resident = int(fields[_RSS]) * _PAGE_BYTES
        found.append(_Process(pid, own, reaped_user + reaped_system, num_threads, resident))
    return found


def _is_ending(pid: int) -> bool:
    """It has begun to exit, and as process 1 waits there until its whole namespace is gone; or it is gone itself."""
    try:
        fields = _stat_fields(pid)
    except _ENDED:
        return True
    return fields[_STATE] in (b"Z", b"X") or bool(int(fields[_FLAGS]) & _PF_EXITING)


def _stat_fields(pid: int) -> list[bytes]:
    # The command name may hold spaces and brackets: everything after the last bracket is numbers.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if len(fields) <= _RSS:
        raise SandboxError(f"/proc/{pid}/stat must tell times, threads and memory, but has only {len(fields)} numbers")
    return fields


def children(pid: int, *, num_threads: int) -> list[int]:
    """Its children, in the order in which they were made; they belong to the thread that made them."""
    threads = [str(pid)] if num_threads == 1 else [task.name for task in Path(f"/proc/{pid}/task").iterdir()]
    return [
        int(child) for thread in threads for child in Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split()
    ]


def proportional_memory(pid: int) -> int:
    """Resident bytes with each shared page counted in parts. Dearer than the rest: used to confirm, not to watch."""
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
