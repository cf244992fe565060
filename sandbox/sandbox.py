"""The two doors: Sandbox runs one program at a time for each of its callers, SandboxPool as many as it was told."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sandbox.cells import Cells
from sandbox.cgroup import check_delegated
from sandbox.config import ISOLATIONS
from sandbox.endings import system_error
from sandbox.errors import SandboxError
from sandbox.host import become_nobody
from sandbox.isolation import Isolation, Unsafe
from sandbox.landlock_tier import Landlock
from sandbox.languages import Languages
from sandbox.program import Execution, Limits, Program
from sandbox.self_test import check_isolation, check_watching
from sandbox.supervisor import execute, never

CHECK_LIMITS = Limits(cpu_seconds=20, wall_seconds=60, memory_bytes=1 << 40)
"""For the program that tries to get out, which must fail for no other reason than a hole in the wall."""


class Sandbox:
    """Runs strangers' programs, each behind a wall of its own. Thread-safe.

    Args:
        limits: what a program may use.
        isolation: "bubblewrap": warm cells; "landlock"; or "unsafe" to run trusted programs with resource limits only
            (logged as a warning).
        bwrap: path or name of the bubblewrap executable.
        cgroup: a delegated folder of cgroup v2 in which each cell gets a group of its own, or "" (sandbox.cgroup).

    Cells start when they are first needed and stay until `close`, or until the sandbox is forgotten.

    Raises IsolationError when root cannot become an unprivileged user here; `check` tests the rest.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        isolation: str = "bubblewrap",
        bwrap: str = "bwrap",
        cgroup: str = "",
    ) -> None:
        if isolation not in ISOLATIONS:
            raise ValueError(f"isolation must be one of {', '.join(ISOLATIONS)}, got {isolation!r}")
        self.limits = limits or Limits()
        self._cells = Cells(bwrap, cgroup)
        self._languages = Languages(self._cells)
        self._without_cells: Isolation | None = None
        if isolation == "bubblewrap":
            become_nobody()
            if cgroup:
                check_delegated(Path(cgroup))
        else:
            self._without_cells = Landlock() if isolation == "landlock" else Unsafe()

    def run(
        self, program: Program, limits: Limits | None = None, *, is_cancelled: Callable[[], bool] = never
    ) -> Execution:
        """Run `program` to its end, within `limits` or this sandbox's own.

        Never raises for what a program does; a failure of the sandbox itself, twice in a row, is verdict SE. So is a
        program that was ended because `is_cancelled` became true, which is asked every few hundredths of a second.
        Raises SandboxError for a language whose tool is not installed, or that this isolation does not run.
        """
        limits = limits or self.limits
        if self._without_cells is None:
            return self._languages.run(program, limits, is_cancelled)
        if program.language != "python":
            raise SandboxError(
                f"programs in {program.language} need sandbox.isolation=bubblewrap, because the tiers without cells "
                "run Python only"
            )
        return execute(self._without_cells, program, limits, is_cancelled)

    def close(self) -> None:
        """End the cells. A program that is running ends first."""
        self._cells.close()

    @staticmethod
    def check(bwrap: str = "bwrap", isolation: str = "bubblewrap") -> None:
        """Prove that this machine isolates programs, by one that tries to get out and one that uses too much.

        It is done once per process and takes some tenths of a second.

        Raises IsolationError with one sentence that says what is missing and how to get it.
        """
        _check_once(bwrap, isolation)


@functools.cache
def _check_once(bwrap: str, isolation: str) -> None:
    sandbox = Sandbox(CHECK_LIMITS, isolation=isolation, bwrap=bwrap)
    try:
        check_isolation(sandbox.run, isolation, bwrap)
        check_watching(sandbox.run)
    finally:
        sandbox.close()


class PendingExecution(Future[Execution]):
    """The result of a program that was queued. Cancelling one that runs ends the program; its verdict is then SE."""

    def __init__(self) -> None:
        super().__init__()
        self.is_unwanted = False

    def cancel(self) -> bool:
        """As of any Future: False when it runs already, but then it is ended soon."""
        self.is_unwanted = True
        return super().cancel()


class SandboxPool:
    """Runs up to `size` programs at the same time; more of them wait in line. Thread-safe.

    Args: as for Sandbox, and:
        size: programs at the same time, one cell for each.
        queue_size: programs that may wait in line.
        queue_seconds: how long `submit` waits for a place in the line.

    Unless `isolation` is "unsafe" the machine is checked first: see Sandbox.check.
    """

    def __init__(
        self,
        size: int = 1,
        limits: Limits | None = None,
        *,
        isolation: str = "bubblewrap",
        bwrap: str = "bwrap",
        cgroup: str = "",
        queue_size: int = 1 << 14,
        queue_seconds: float = 600.0,
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool's size must be at least 1, got {size}")
        if queue_size < 0:
            raise ValueError(f"a pool's queue_size must not be negative, got {queue_size}")
        if isolation != "unsafe":
            Sandbox.check(bwrap, isolation)
        self._sandbox = Sandbox(limits, isolation=isolation, bwrap=bwrap, cgroup=cgroup)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="sandbox")
        self._places = threading.BoundedSemaphore(size + queue_size)
        self._queue_seconds = queue_seconds
        self._is_closed = False

    @property
    def limits(self) -> Limits:
        """What each program may use."""
        return self._sandbox.limits

    def submit(self, program: Program, limits: Limits | None = None) -> Future[Execution]:
        """Queue `program`; cancelling the future takes it out of the line, or ends it when it runs already.

        Raises SandboxError when the pool is closed, or when the line was full for `queue_seconds`. Without a thread to
        run it, the verdict is SE.
        """
        if not self._places.acquire(timeout=self._queue_seconds):
            raise SandboxError(
                f"the sandbox pool's line was full for {self._queue_seconds:.0f} seconds: submit fewer programs at a "
                "time, or give the pool a larger size"
            )
        pending = PendingExecution()
        pending.add_done_callback(lambda _: self._places.release())
        try:
            self._threads.submit(self._work, pending, program, limits)
        except RuntimeError as error:
            if self._is_closed:
                pending.cancel()
                raise SandboxError("the sandbox pool is closed and takes no more programs") from error
            pending.set_result(system_error(f"the sandbox pool could not queue a program: {error}"))
        return pending

    def _work(self, pending: PendingExecution, program: Program, limits: Limits | None) -> None:
        if self._is_closed:
            pending.cancel()
        if not pending.set_running_or_notify_cancel():
            return
        try:
            execution = self._sandbox.run(program, limits, is_cancelled=lambda: pending.is_unwanted)
        except BaseException as error:
            pending.set_exception(error)
        else:
            pending.set_result(execution)

    def run(self, program: Program, limits: Limits | None = None) -> Execution:
        """Wait for a place, run `program`, return what happened."""
        return self.submit(program, limits).result()

    async def run_async(self, program: Program, limits: Limits | None = None) -> Execution:
        """`run` for asyncio: the event loop goes on meanwhile, and cancelling the task ends the program."""
        pending = await asyncio.to_thread(self.submit, program, limits)
        return await asyncio.wrap_future(pending)

    def close(self) -> None:
        """Let running programs end (their limits see to that), drop those in line, end threads and cells."""
        self._is_closed = True
        self._threads.shutdown(wait=True)
        self._sandbox.close()

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
