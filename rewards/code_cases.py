"""One test of a program as a job: what is run, and whether what it did is right.

What is right stays on this side. A test of standard output is one run; a test of a function is one call in one run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from cispo.types import Verdict
from rewards.code_calls import MAX_DECODED, Answer, Call, Setting, call_job, shown
from rewards.code_checker import Checker
from rewards.code_compare import Tolerance, same_output, same_value
from rewards.code_encoding import decode, encode
from rewards.code_jobs import Job, Outcome, failure, short
from sandbox import Execution, Limits, Program

_SHOWN_BYTES = 400


class Case(Protocol):
    """One test."""

    def job(self, setting: Setting, limits: Limits) -> Job:
        """The first run that it takes; `limits` are what the pool allows."""


@dataclass(frozen=True)
class CaseLimits:
    """What a test may use, where its author says so; 0 leaves the pool's own limit."""

    seconds: float = 0.0
    memory_mb: int = 0

    def within(self, limits: Limits) -> Limits:
        """The pool's limits with these in their place. The wall clock's grace over the processor's stays."""
        if self.seconds:
            grace = max(limits.wall_seconds - limits.cpu_seconds, 1.0)
            limits = replace(limits, cpu_seconds=self.seconds, wall_seconds=self.seconds + grace)
        return replace(limits, memory_bytes=self.memory_mb << 20) if self.memory_mb else limits


@dataclass(frozen=True)
class OutputCase:
    """Standard input in, standard output compared. Attributes: see docs/rewards.md."""

    stdin: str
    stdout: str
    mode: str = "lines"
    tolerance: Tolerance | None = None
    checker: Checker | None = None
    limits: CaseLimits = CaseLimits()

    def job(self, setting: Setting, limits: Limits) -> Job:
        """See Case."""
        preamble = f"{setting.preamble}\n" if setting.preamble else ""
        program = Program(preamble + setting.solution.source, language=setting.solution.language, stdin=self.stdin)
        return Job(program, self._judge, self.limits.within(limits))

    def _judge(self, execution: Execution) -> Outcome | Job:
        failed = failure(execution)
        if failed:
            return failed
        if self.checker:
            return self.checker.job(self.stdin, execution.stdout.decode(errors="replace"), self.stdout)
        if same_output(execution.stdout, self.stdout, self.mode, self.tolerance):
            return Outcome(Verdict.CORRECT)
        printed = execution.stdout[:_SHOWN_BYTES].decode(errors="replace").strip()
        return Outcome(Verdict.WRONG, short(f"expected {self.stdout[:_SHOWN_BYTES].strip()!r}, got {printed!r}"))


@dataclass(frozen=True)
class CallCase:
    """One call, its result compared.

    Attributes:
        call: what is called.
        returns: the right result. Where the call's arguments are looked at as well, the pair of result and list of
            arguments as the call should leave them.
        mode, tolerance: see rewards.code_compare.same_value.
        raises: the exception that is right instead of a result; "" for none.
        only_arguments: the result itself does not matter.
        checker: says what is right; gets the arguments, the result and `returns`.
        limits: where they are not the pool's.
    """

    call: Call
    returns: Any = None
    mode: str = "exact"
    tolerance: Tolerance | None = None
    raises: str = ""
    only_arguments: bool = False
    checker: Checker | None = None
    limits: CaseLimits = CaseLimits()

    def job(self, setting: Setting, limits: Limits) -> Job:
        """See Case."""
        return call_job(self.call, replace(setting, limits=self.limits.within(limits)), self._judge)

    def _judge(self, answer: Answer) -> Outcome | Job:
        if self.raises:
            return self._judge_exception(answer)
        if answer.returned is None:
            return answer.outcome
        if self.checker or self.only_arguments or self.mode != "exact" or self.tolerance:
            return self._judge_value(answer.returned)
        wanted = encode(self.returns)
        return Outcome(Verdict.CORRECT) if answer.returned == wanted else _differs(answer.returned, wanted)

    def _judge_exception(self, answer: Answer) -> Outcome:
        if answer.raised:
            verdict = Verdict.CORRECT if self.raises in answer.raised else Verdict.WRONG
            return Outcome(verdict, "" if verdict is Verdict.CORRECT else f"expected {self.raises}, {answer.raised[0]}")
        if answer.returned is None:
            return answer.outcome
        return Outcome(Verdict.WRONG, short(f"expected {self.raises}, got {shown(answer.returned)}"))

    def _judge_value(self, text: str) -> Outcome | Job:
        wanted = encode(self.returns)
        if len(text) > MAX_DECODED + 16 * len(wanted):
            return Outcome(Verdict.WRONG, "the result is far too long to be right")
        try:
            got = decode(text)
            if self.checker:
                return self.checker.job(list(self.call.steps[-1].arguments), got, self.returns)
            right = (got[1], self.returns[1]) if self.only_arguments else (got, self.returns)
            is_right = same_value(*right, self.mode, self.tolerance)
        except (ValueError, TypeError, LookupError):
            return Outcome(Verdict.WRONG, "the result cannot be compared")
        return Outcome(Verdict.CORRECT) if is_right else _differs(text, wanted)


def _differs(got: str, wanted: str) -> Outcome:
    return Outcome(Verdict.WRONG, short(f"expected {shown(wanted)}, got {shown(got)}"))
