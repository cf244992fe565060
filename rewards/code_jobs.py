"""Runs the jobs of one program in the sandbox: several at a time, and none that is no longer needed.

A job is a program and a function that judges what it did, either at once or by one more job (a checker, the next call
of the same test). The sandbox's own faults are tried again, on whatever cell comes next; a fault that stays is the
verdict SYSTEM_ERROR, which is nobody's failure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, replace

import sandbox
from cispo.types import Verdict
from sandbox import Execution, Limits, Program, ProgramPool

_NOTE_CHARACTERS = 160
_VERDICTS = {
    sandbox.Verdict.TLE: Verdict.TIME_LIMIT,
    sandbox.Verdict.MLE: Verdict.MEMORY_LIMIT,
    sandbox.Verdict.OLE: Verdict.OUTPUT_LIMIT,
    sandbox.Verdict.RE: Verdict.RUNTIME_ERROR,
    sandbox.Verdict.CE: Verdict.COMPILE_ERROR,
    sandbox.Verdict.SE: Verdict.SYSTEM_ERROR,
}
_CLOSED = Execution(sandbox.Verdict.SE, b"", b"the sandbox pool was closed", None, None, 0.0, 0.0, 0)


@dataclass(frozen=True)
class Outcome:
    """What one test found, and why in a few words."""

    verdict: Verdict
    note: str = ""

    @property
    def passed(self) -> bool:
        """The test is passed."""
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True)
class Job:
    """One run in the sandbox.

    Attributes:
        program: what runs.
        judge: what its execution means. It never sees one with verdict SE.
        limits: what it may use; None is what the pool allows.
    """

    program: Program
    judge: Callable[[Execution], Outcome | Job]
    limits: Limits | None = None


@dataclass(frozen=True)
class _Place:
    """A job on its way, the test that it belongs to, and how often it was tried before."""

    number: int
    job: Job
    num_tries: int = 0


def run_jobs(
    pool: ProgramPool, jobs: Sequence[Job], *, goes_on: Callable[[Outcome], bool], width: int, retries: int
) -> list[Outcome | None]:
    """Run `jobs` in their order and return what each found; None where it was not run to its end.

    Args:
        pool: where they run.
        jobs: one for each test.
        goes_on: whether the rest is still needed after this outcome. If not, what waits is not started, and what
            runs is cancelled.
        width: jobs at a time. The first runs alone and each that goes on doubles the number, because most programs
            that fail do so at once.
        retries: how often a job that ended in a fault of the sandbox is tried again.
    """
    outcomes: list[Outcome | None] = [None] * len(jobs)
    waiting = deque(_Place(number, job) for number, job in enumerate(jobs))
    running: dict[Future[Execution], _Place] = {}
    num_allowed = 1
    try:
        while waiting or running:
            while waiting and len(running) < num_allowed:
                place = waiting.popleft()
                running[pool.submit(place.job.program, place.job.limits)] = place
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place = running.pop(future)
                found = _judged(place, future, retries)
                if isinstance(found, _Place):
                    waiting.appendleft(found)
                    continue
                outcomes[place.number] = found
                num_allowed = min(width, 2 * num_allowed)
                if not goes_on(found):
                    return outcomes
        return outcomes
    finally:
        for future in running:
            future.cancel()


def _judged(place: _Place, future: Future[Execution], retries: int) -> Outcome | _Place:
    """What came of a job, or what must run next to know."""
    try:
        execution = future.result()
    except CancelledError:
        execution = _CLOSED
    if execution.verdict is sandbox.Verdict.SE:
        if place.num_tries < retries and execution is not _CLOSED:
            return replace(place, num_tries=place.num_tries + 1)
        return Outcome(Verdict.SYSTEM_ERROR, last_line(execution.stderr))
    found = place.job.judge(execution)
    return found if isinstance(found, Outcome) else _Place(place.number, found)


def failure(execution: Execution) -> Outcome | None:
    """The outcome of a program that did not run to its end; None if it did."""
    if execution.verdict is sandbox.Verdict.OK:
        return None
    return Outcome(_VERDICTS[execution.verdict], last_line(execution.stderr))


def last_line(stderr: bytes) -> str:
    """The last line of what a program complained of."""
    lines = stderr[-4096:].decode(errors="replace").strip().splitlines()
    return short(lines[-1]) if lines else ""


def short(note: str) -> str:
    """Fit for one line of a trace."""
    note = " ".join(note.split())
    return note if len(note) <= _NOTE_CHARACTERS else note[: _NOTE_CHARACTERS - 3] + "..."
