"""The two doors: Sandbox runs one program at a time, SandboxPool as many as it was told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sandbox.cell_walls import become_nobody
from sandbox.cells import Cells
from sandbox.config import ISOLATIONS
from sandbox.endings import system_error
from sandbox.errors import SandboxError
from sandbox.isolation import Unsafe
from sandbox.languages import task_of
from sandbox.program import Execution, Limits, Program
from sandbox.self_test import check_isolation, check_watching
from sandbox.supervisor import execute, never

_CHECK_LIMITS = Limits(cpu_seconds=20, wall_seconds=60, memory_bytes=1 << 40)
"""For the program that tries to get out, which must fail for no other reason than a hole in the wall."""


class Sandbox:
    """Runs strangers' programs, each behind a wall of its own. Thread-safe.

    Args:
        limits: what a program may use.
        isolation: "bubblewrap", or "unsafe" to run trusted programs with resource limits only (logged as a warning).
        bwrap: path or name of the bubblewrap executable.

    Raises IsolationError when root cannot become an unprivileged user here; `check` tests the rest.
    """

    def __init__(self, limits: Limits | None = None, *, isolation: str = "bubblewrap", bwrap: str = "bwrap") -> None:
        if isolation not in ISOLATIONS:
            raise ValueError(f"isolation must be one of {', '.join(ISOLATIONS)}, got {isolation!r}")
        self.limits = limits or Limits()
        self._unsafe = Unsafe() if isolation == "unsafe" else None
        self._cells = Cells(bwrap)
        if self._unsafe is None:
            become_nobody()

    def run(self, program: Program, limits: Limits | None = None, is_cancelled: Callable[[], bool] = never) -> Execution:
        """Run `program` to its end, within `limits` or this sandbox's own.

        Never raises for what a program does; a failure of the sandbox itself is verdict SE.
        """
        if self._unsafe is not None:
            return execute(self._unsafe, program, limits or self.limits, is_cancelled)
        return self._cells.run(task_of(program, limits or self.limits), is_cancelled)

    @staticmethod
    def check(bwrap: str = "bwrap") -> None:
        """Prove that this machine isolates programs, by one that tries to get out and one that uses too much.

        It is done once per process and takes some tenths of a second.

        Raises IsolationError with one sentence that says what is missing and how to get it.
        """
        _check_once(bwrap)


@functools.cache
def _check_once(bwrap: str) -> None:
    sandbox = Sandbox(_CHECK_LIMITS, bwrap=bwrap)
    check_isolation(sandbox.run, bwrap)
    check_watching(sandbox.run)


class SandboxPool:
    """Runs up to `size` programs at the same time; more of them wait in line.

    Args: as for Sandbox, and `size`. Unless `isolation` is "unsafe" the machine is checked first: see Sandbox.check.
    """

    def __init__(
        self,
        size: int = 1,
        limits: Limits | None = None,
        *,
        isolation: str = "bubblewrap",
        bwrap: str = "bwrap",
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool's size must be at least 1, got {size}")
        if isolation == "bubblewrap":
            Sandbox.check(bwrap)
        self._sandbox = Sandbox(limits, isolation=isolation, bwrap=bwrap)
        # The threads must outlive their programs: bubblewrap dies with the thread that started it.
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="sandbox")
        self._is_closed = False

    @property
    def limits(self) -> Limits:
        """What each program may use."""
        return self._sandbox.limits

    def submit(self, program: Program, limits: Limits | None = None) -> Future[Execution]:
        """Queue `program`. Raises SandboxError when the pool is closed; without a thread to run it, verdict SE."""
        try:
            return self._threads.submit(self._sandbox.run, program, limits)
        except RuntimeError as error:
            if self._is_closed:
                raise SandboxError("the sandbox pool is closed and takes no more programs") from error
            failed: Future[Execution] = Future()
            failed.set_result(system_error(f"the sandbox pool could not queue a program: {error}"))
            return failed

    def run(self, program: Program, limits: Limits | None = None) -> Execution:
        """Wait for a place, run `program`, return what happened."""
        return self.submit(program, limits).result()

    def close(self) -> None:
        """Let running programs end (their limits see to that), drop those in line, end the threads."""
        self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
