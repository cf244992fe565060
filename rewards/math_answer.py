r"""Grades the final answer of a mathematical task: `MathAnswer().score(text, reference) -> Score`.

The answer is the content of the last complete `\boxed{}` after the think block. Integers, decimals, fractions and
plain words are compared exactly in this process, in microseconds; everything else goes to math-verify in a killable
worker process, which starts then or with `start`. Nothing that the model writes makes `score` raise or hang: it
becomes a verdict. The rules and the reasons are in docs/rewards.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from cispo.errors import DataError
from cispo.types import Score, Verdict
from rewards.answer_format import answer_text, last_box
from rewards.answer_limits import AnswerLimits, too_big
from rewards.grader_pool import Ending, GraderPool, GraderPoolConfig
from rewards.numerals import is_arithmetic, parse_numeral

_WRAPPED = re.compile(r"\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)
_DECORATION = re.compile(r"^\\?\$\s*|\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°)$")
_PERCENT = re.compile(r"\s*\\?%$")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*")
_NO_SOLUTION = frozenset(
    ("no solution", "no solutions", "no real solution", "no real solutions", "empty set")
    + (r"\emptyset", r"\varnothing", r"\{\}")
)


@dataclass(frozen=True)
class MathAnswerConfig:
    """Where the answer is, and what is spent on comparing it.

    Attributes:
        answer_is_boxed: the answer is in a box; if False, all the text after the think block is the answer.
        limits: sizes above which an answer is refused without being parsed.
        pool: the worker processes that grade what is not a plain number or word.
    """

    answer_is_boxed: bool = True
    limits: AnswerLimits = field(default_factory=AnswerLimits)
    pool: GraderPoolConfig = field(default_factory=GraderPoolConfig)


class MathAnswer:
    """The verifier of mathematical answers. Thread-safe; `close` ends its processes."""

    def __init__(self, config: MathAnswerConfig | None = None) -> None:
        self._config = config or MathAnswerConfig()
        self._pool = GraderPool("rewards.math_equivalence:compare", self._config.pool)

    def start(self) -> None:
        """Start the first grader process; takes as long as importing sympy.

        Raises:
            RewardError: it cannot start, for instance because math-verify cannot be imported.
        """
        self._pool.start()

    def score(self, text: str, reference: Any) -> Score:
        """Grade one text.

        Args:
            text: what the model wrote, think block included.
            reference: the right answer, a non-empty string (LaTeX, with or without `\\boxed{}` or dollars) or a number.

        Returns:
            value and parts["answer"] 1.0 or 0.0; NaN with SYSTEM_ERROR. An answer that the grader gave up on is
            GRADER_TIMEOUT, one that is missing, too big or no mathematics is UNPARSEABLE.

        Raises:
            DataError: the reference is no string or number, or empty: a fault of the data, not of the model.
        """
        gold = _gold(reference)
        answer = self._find_answer(text)
        if answer is None:
            return _score(Verdict.UNPARSEABLE, f"expected {gold}, got no answer in the required form")
        verdict, why = self._grade(gold, _unwrap(answer))
        if verdict is Verdict.SYSTEM_ERROR:
            return _score(verdict, why)  # the same for every answer, so that it is logged once
        note = f"expected {gold}, got {answer[:80]}"
        return _score(verdict, f"{note} ({why})" if why else note)

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def _find_answer(self, text: str) -> str | None:
        answer = answer_text(text)
        if answer is not None and self._config.answer_is_boxed:
            return last_box(answer)
        return answer or None

    def _grade(self, gold: str, answer: str) -> tuple[Verdict, str]:
        """The verdict and, if there is more to say, why."""
        if answer == gold:
            return Verdict.CORRECT, ""
        fault = too_big(answer, self._config.limits)
        if fault is not None:
            return Verdict.UNPARSEABLE, fault
        same = _same_number(gold, answer)
        if same is None:
            same = _same_words(gold, answer)
        if same is not None:
            return Verdict.CORRECT if same else Verdict.WRONG, ""
        if _number(gold) is not None and is_arithmetic(answer):
            # math-verify would work it out, so that copying the question 3+2-1= would pay.
            return Verdict.WRONG, "an arithmetic that is not worked out is no answer where a number is asked for"
        if too_big(gold, self._config.limits) is not None:
            return Verdict.WRONG, "the reference is too big to be compared but literally"
        outcome = self._pool.call({"gold": gold, "answer": answer})
        if outcome.ending is Ending.ANSWERED:
            return Verdict(outcome.value), ""
        if outcome.ending is Ending.UNAVAILABLE:
            return Verdict.SYSTEM_ERROR, outcome.note
        return Verdict.GRADER_TIMEOUT, outcome.note


def check_reference(reference: Any) -> None:
    """Raise DataError unless `reference` is one that `MathAnswer` can compare with: a non-empty string or a number."""
    _gold(reference)


def _score(verdict: Verdict, note: str) -> Score:
    correct = verdict is Verdict.CORRECT
    if verdict is Verdict.SYSTEM_ERROR:
        return Score(value=float("nan"), correct=False, parts={}, verdict=verdict, note=note)
    value = float(correct)
    return Score(value=value, correct=correct, parts={"answer": value}, verdict=verdict, note=note)


def _gold(reference: Any) -> str:
    """The reference as bare LaTeX."""
    if isinstance(reference, (int, float)) and not isinstance(reference, bool):
        return str(reference)
    gold = _unwrap(reference) if isinstance(reference, str) else ""
    if not gold:
        raise DataError(
            "A math reference must be a non-empty string or a number, because it is the answer to compare with, "
            f"but got {reference!r}; mend the row of the data, or name another verifier for its task."
        )
    return (last_box(gold) or gold) if gold.startswith("\\boxed") else gold


def _unwrap(latex: str) -> str:
    latex = latex.strip()
    match = _WRAPPED.fullmatch(latex)
    return next(group for group in match.groups() if group).strip() if match else latex


def _same_number(gold: str, answer: str) -> bool | None:
    """Exact comparison of two numerals; None unless both are."""
    ours, theirs = _number(gold), _number(answer)
    if ours is None or theirs is None:
        return None
    (value, is_percent), (other, other_is_percent) = ours, theirs
    if is_percent == other_is_percent:
        return value == other
    # A percentage may be answered as itself or as the fraction: 10\% by 10 and by 0.1.
    percentage, plain = (value, other) if is_percent else (other, value)
    return plain in (percentage, percentage / 100)


def _number(latex: str) -> tuple[Fraction, bool] | None:
    """Value, and whether a percent sign follows. Dollars before it and degrees after it do not matter."""
    bare = _PERCENT.sub("", latex)
    value = parse_numeral(_DECORATION.sub("", bare))
    return None if value is None else (value, bare != latex)


def _same_words(gold: str, answer: str) -> bool | None:
    """Comparison of words and choice letters, whatever the case; None if mathematics may make them equal."""
    ours, theirs = _words(gold), _words(answer)
    if ours is None:
        return None
    if ours == theirs:
        return True
    # `ab` may be a product and equal `ba`; a reference inside \text{} and single letters are what they are.
    is_text = _TEXT_COMMAND.fullmatch(gold) is not None or " " in ours
    both_letters = len(ours) == 1 and theirs is not None and len(theirs) == 1
    return False if is_text or both_letters else None


def _words(latex: str) -> str | None:
    r"""`\textbf{(B)}` and `B.` are `b`, `\text{No solution}` and `\emptyset` are `no solution`; None if no words."""
    plain = _TEXT_COMMAND.sub(r"\1", latex).strip().rstrip(".").strip()
    if re.fullmatch(r"\([A-Za-z]\)", plain):
        plain = plain[1:-1]
    plain = " ".join(plain.casefold().split())
    if plain in _NO_SOLUTION:
        return "no solution"
    return plain if _WORDS.fullmatch(plain) else None
