"""Runs a test suite that cannot be translated, with the suite in one sandbox and the solution in others.

Neither is ever in the other's process, nor on the same machine if the pool has several. The suite runs with a stand-in
for the solution, which takes results from a table. A call that is not in the table ends the statement that made it; all
such calls are then made, each in a process of its own, and the suite is run again with what came of them, until it
needs nothing more. So expected values never enter the solution's process, a call cannot spy on the next, and the run
that counts is one in which every statement has reported that it passed; how the process ended means nothing.

What it costs: one run of the suite beside the first, which is remembered for all programs of a task, and one more
where a call's arguments depend on an earlier result.

What is refused, when the prompt file is read: suites without an assert; fixtures, parametrised tests and TestCase
classes; modules beyond the standard library; functions as arguments; names that only the solution could define; a
`return` between asserts. A suite must do the same each time: `random` is seeded with 0 before it runs.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cispo.types import Verdict
from rewards.code_calls import MAX_DECODED, Answer, Call, Setting, Step, call_job
from rewards.code_cases import CaseLimits
from rewards.code_encoding import decode
from rewards.code_inside import program_text
from rewards.code_jobs import Job, Outcome, failure, short
from rewards.code_suite_source import reporting, suite_fault
from sandbox import Execution, Limits, Program

MAX_ROUNDS = 64
MAX_CALLS = 2000
"""Of one program. A suite that asks for more is stopped. A solution's results can make it do so, so that is a failure
unless it asked for that many at the first."""

Runner = Callable[[Sequence[Job], Callable[[Outcome], bool]], "list[Outcome | None]"]
"""Runs jobs, as rewards.code_jobs.run_jobs does, while the second argument says that the rest is needed."""

_NEVER_HAD = (Verdict.SYSTEM_ERROR, Verdict.COMPILE_ERROR)
_HOPELESS = (*_NEVER_HAD, Verdict.TIME_LIMIT, Verdict.MEMORY_LIMIT, Verdict.OUTPUT_LIMIT)
"""Ends of a call that end the whole suite: always, or if a first failure decides."""


@dataclass(frozen=True)
class _Report:
    """What one run of the suite told.

    Attributes:
        calls: encoded steps of calls that were not in the table.
        statements: by number, what became of each: None if it passed, else why not.
        fault: why the run says nothing at all; "" if it does.
        is_machines: the fault is that of the sandbox.
    """

    calls: tuple[str, ...] = ()
    statements: Mapping[int, Outcome] | None = None
    fault: str = ""
    is_machines: bool = False


class Replay:
    """A suite on the function or class `entry`; `setup` is the author's code that runs before it, on its side."""

    def __init__(self, suite: str, entry: str, *, is_class: bool, setup: str, limits: CaseLimits) -> None:
        self.fault = suite_fault(suite, setup, entry)
        self._is_class = is_class or "." in entry
        self._name = entry.split(".")[0]
        self._setup, self._limits = setup, limits
        self._text, self._asserting = reporting(suite, self._name) if not self.fault else ("", ())
        self._first: _Report | None = None

    @property
    def num_tests(self) -> int:
        """Statements with an assert in them."""
        return len(self._asserting)

    def run(self, setting: Setting, limits: Limits, run: Runner, *, stop_early: bool) -> list[Outcome | None]:
        """What became of each statement with an assert; with `stop_early` the first failure may stand for all."""
        setting = Setting(setting.solution, setting.preamble, self._limits.within(limits))
        table: dict[str, str] = {}
        for _ in range(MAX_ROUNDS):
            report = self._report(table, run)
            if report.fault or report.statements is None:
                # A first run knows no result, so what went wrong later went wrong with those of the solution.
                is_theirs = bool(table) and not report.is_machines
                verdict = Verdict.WRONG if is_theirs else Verdict.SYSTEM_ERROR
                return [Outcome(verdict, short(f"the task's suite failed: {report.fault}"))]
            if not report.calls:
                return self._outcomes(report.statements)
            if len(table) + len(report.calls) > MAX_CALLS:
                break
            ended = self._make_calls(report.calls, table, setting, run, stop_early=stop_early)
            if ended:
                return [ended]
        # What it asks for at first depends on nobody; how much more, on the results that it got.
        verdict = Verdict.WRONG if table else Verdict.SYSTEM_ERROR
        return [Outcome(verdict, f"the task's suite asks for over {MAX_ROUNDS} rounds or {MAX_CALLS} calls")]

    def _outcomes(self, statements: Mapping[int, Outcome]) -> list[Outcome | None]:
        """Those of statements with asserts, and of others that failed: what the suite needs to go on."""
        missing = Outcome(Verdict.WRONG, "a statement of the suite was not reached")
        failed = [found for number, found in statements.items() if number not in self._asserting and not found.passed]
        return [*(statements.get(number, missing) for number in self._asserting), *failed]

    # --- one run of the suite ----------------------------------------------------------------------------------

    def _report(self, table: Mapping[str, str], run: Runner) -> _Report:
        """The first run is the same for every program, so its report is kept."""
        if not table and self._first is not None:
            return self._first
        reports: list[_Report] = []

        def judge(execution: Execution) -> Outcome:
            reports.append(_read_report(execution, nonce))
            return Outcome(Verdict.CORRECT)

        nonce = secrets.token_hex(8)
        stdin = ascii((nonce, self._setup, self._text, self._name, self._is_class, dict(table)))
        outcome = run([Job(Program(_harness(), stdin=stdin), judge)], lambda outcome: True)[0]
        if not reports:
            return _Report(fault=outcome.note if outcome else "it was cancelled", is_machines=True)
        if not table and not reports[0].fault:
            self._first = reports[0]
        return reports[0]

    def _make_calls(
        self, calls: Sequence[str], table: dict[str, str], setting: Setting, run: Runner, *, stop_early: bool
    ) -> Outcome | None:
        """Put what comes of `calls` into the table; the outcome of the whole suite if one of them decides it."""

        def job(steps: str) -> Job:
            def judge(answer: Answer) -> Outcome:
                table[steps] = _table_entry(answer)
                return answer.outcome

            return call_job(Call(_steps(steps), "arguments"), setting, judge)

        def goes_on(outcome: Outcome) -> bool:
            return outcome.verdict not in (_HOPELESS if stop_early else _NEVER_HAD)

        outcomes = run([job(steps) for steps in calls], goes_on)
        return next((outcome for outcome in outcomes if outcome and not goes_on(outcome)), None)


@functools.cache
def _harness() -> str:
    return program_text("run_suite")


def _steps(encoded: str) -> tuple[Step, ...]:
    steps = decode(encoded, yielded=list)  # an iterator that the suite gives is used up by now
    return tuple(Step(name, tuple(arguments), keywords) for name, arguments, keywords in steps)


def _table_entry(answer: Answer) -> str:
    """The text of what the stand-in is to do."""
    if answer.raised:
        return ascii(("raised", list(answer.raised), answer.outcome.note.partition(": ")[2]))
    if answer.returned is None:
        return ascii(("failed", str(answer.outcome.verdict)))
    try:
        if len(answer.returned) <= MAX_DECODED:
            result, after = decode(answer.returned)
            return ascii(("returned", result, list(after)))
    except (ValueError, TypeError):
        pass
    return ascii(("failed", str(Verdict.WRONG)))


def _read_report(execution: Execution, nonce: str) -> _Report:
    failed = failure(execution)
    if failed:
        return _Report(fault=failed.note or str(failed.verdict))
    lines = [line.split(" ", 2) for line in execution.stdout.decode("ascii", errors="replace").splitlines()]
    told = [
        (what, (rest or [""])[0]) for sign, what, *rest in (line for line in lines if len(line) > 1) if sign == nonce
    ]
    refused = [decode(text) for what, text in told if what == "refused"]
    if refused:
        return _Report(fault=short(f"a call cannot be made apart from it: {refused[0]}"))
    if ("end", "null") not in told:
        return _Report(fault="it did not come to its end")
    calls = tuple(text for what, text in told if what == "call")
    return _Report(calls, {int(what): _outcome(text) for what, text in told if what.isdigit()})


def _outcome(text: str) -> Outcome:
    """Of one statement, from what the suite's side told of it."""
    state, _, why = text.partition(" ")
    if state == "passed":
        return Outcome(Verdict.CORRECT)
    if state == "open":
        return Outcome(Verdict.SYSTEM_ERROR, "a result was missing")
    kind, note = decode(why)
    if kind == "call":
        return Outcome(Verdict(note), "a call gave no result")
    return Outcome(Verdict.RUNTIME_ERROR if kind == "raised" else Verdict.WRONG, short(note))
