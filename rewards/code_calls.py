"""One call of a function of a model's program, in a process of its own, and the answer that comes out."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cispo.types import Verdict
from rewards.code_encoding import decode
from rewards.code_inside import program_text
from rewards.code_jobs import Job, Outcome, failure, short
from rewards.code_program import Solution
from sandbox import Execution, Limits, Program

MAX_DECODED = 256 << 10
"""Characters of an answer that are taken apart on our side; 16 for each of the expected one come on top."""

_SHOWN = 2048


@dataclass(frozen=True)
class Setting:
    """What all tests of one program have in common.

    Attributes:
        solution: the program.
        preamble: an author's code that runs before it, e.g. imports.
        limits: what each run may use; None is what the pool allows.
    """

    solution: Solution
    preamble: str = ""
    limits: Limits | None = None


@dataclass(frozen=True)
class Step:
    """A call by name, with plain data as arguments."""

    name: str
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A function's call, or a class's and then calls of methods on what it returned.

    `wants` is "last" for the last result, "all" for a list of all (of a constructor None), "arguments" for the pair of
    the last result and the list of its arguments as the call left them.
    """

    steps: tuple[Step, ...]
    wants: str = "last"


@dataclass(frozen=True)
class Answer:
    """What a call came to, or why there is no answer.

    Attributes:
        returned: the result's text in rewards.code_encoding; None if there is none.
        raised: the names of the exception's classes, its own first; empty if none was raised.
        outcome: of a test that wanted a result.
    """

    outcome: Outcome
    returned: str | None = None
    raised: tuple[str, ...] = ()


def call_of(entry: str, arguments: Sequence[Any], keywords: Mapping[str, Any], wants: str = "last") -> Call:
    """The call of "f", or of "Solution.f" on a new object."""
    *classes, name = entry.split(".")
    return Call((*map(Step, classes), Step(name, tuple(arguments), dict(keywords))), wants)


def call_job(call: Call, setting: Setting, judge: Callable[[Answer], Outcome | Job]) -> Job:
    """The job that makes `call` and judges the answer."""
    nonce = secrets.token_hex(8)
    steps = [(step.name, step.arguments, dict(step.keywords)) for step in call.steps]
    source = setting.solution.source.encode("utf-8", "surrogatepass")
    stdin = ascii((nonce, setting.preamble, source, steps, call.wants))
    program = Program(_harness(), language=setting.solution.language, stdin=stdin)
    return Job(program, lambda execution: judge(read_answer(execution, nonce)), setting.limits)


@functools.cache
def _harness() -> str:
    return program_text("make_one_call")


def read_answer(execution: Execution, nonce: str) -> Answer:
    """What the harness told. Exactly one line is an answer: a program that writes beside it has none."""
    failed = failure(execution)
    if failed:
        return Answer(failed)
    sign, _, told = execution.stdout.decode("ascii", errors="replace").partition(" ")
    if not told:
        return Answer(Outcome(Verdict.RUNTIME_ERROR, "the program ended before the call returned"))
    kind, _, text = told[:-1].partition(" ")
    if sign != nonce or not told.endswith("\n") or "\n" in text:
        return Answer(Outcome(Verdict.RUNTIME_ERROR, "the program wrote where only results are written"))
    try:
        return _ANSWERS[kind](text)
    except (ValueError, TypeError, LookupError):
        return Answer(Outcome(Verdict.RUNTIME_ERROR, "the program forged a result that is none"))


def _raised(text: str) -> Answer:
    names, message = decode(text)
    return Answer(Outcome(Verdict.RUNTIME_ERROR, short(f"{names[0]}: {message}")), raised=tuple(map(str, names)))


def _no_program(text: str) -> Answer:
    reason, _, message = text.partition(" ")
    if reason == "entry":
        return Answer(Outcome(Verdict.RUNTIME_ERROR, "no function of that name"))
    return Answer(Outcome(Verdict.COMPILE_ERROR, short(str(decode(message)))))


_ANSWERS: Mapping[str, Callable[[str], Answer]] = {
    "=": lambda text: Answer(Outcome(Verdict.CORRECT), returned=text),
    "!": _raised,
    "~": lambda text: Answer(Outcome(Verdict.WRONG, short(str(decode(text))))),
    "-": _no_program,
}


def shown(text: str) -> str:
    """An encoded value for a person to read."""
    try:
        return repr(decode(text)) if len(text) <= _SHOWN else f"{text[:80]}..."
    except ValueError:
        return "something that is no value"
