r"""Grades the final answer of a mathematical task: `MathAnswer().score(text, reference) -> Score`.

The answer is the content of the last complete `\boxed{}` after the think block. Integers, decimals, fractions and
plain words are compared exactly in this process, in microseconds; everything else goes to math-verify in a killable
worker process, which starts then or with `start`. Nothing that the model writes makes `score` raise or hang: it
becomes a verdict. The rules and the reasons are in docs/rewards.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cispo.errors import DataError
from cispo.types import Score, Verdict
from rewards.answer_format import answer_text, last_box
from rewards.answer_limits import AnswerLimits, too_big
from rewards.choices_and_words import same_choice, same_words
from rewards.grader_pool import Ending, GraderPool, GraderPoolConfig
from rewards.math_listings import goes_on
from rewards.math_notation import tidy
from rewards.numerals import is_arithmetic, parse_numeral
from rewards.quantities import parse_quantity, same_quantity

_MAX_LABELS = 3  # of a choice, each taken off in one pass


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
        verdict, why = self._grade(gold, answer)
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
        ours, theirs = parse_numeral(gold), parse_numeral(answer)
        if ours is not None and theirs is not None:  # most answers of most runs
            return (Verdict.CORRECT if ours == theirs else Verdict.WRONG), ""
        if too_big(gold, self._config.limits) is not None:
            return Verdict.WRONG, "the reference is too big to be compared but literally"
        if goes_on(answer) and not goes_on(gold):
            return Verdict.WRONG, "it lists more than it names"
        gold, answer = tidy(gold), tidy(answer)
        same, gold, answer = _same_at_sight(gold, answer)
        if same is not None:
            return Verdict.CORRECT if same else Verdict.WRONG, ""
        if parse_quantity(gold) is not None and is_arithmetic(answer):
            # math-verify would work it out, so that copying the question 3+2-1= would pay.
            return Verdict.WRONG, "an arithmetic that is not worked out is no answer where a number is asked for"
        return self._grade_by_parsing(gold, answer)

    def _grade_by_parsing(self, gold: str, answer: str) -> tuple[Verdict, str]:
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


@lru_cache(maxsize=8192)
def _gold_of_text(reference: str) -> str:
    gold = reference.strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if len(gold) > 2 * len(opening) and gold.startswith(opening) and gold.endswith(closing):
            gold = gold[len(opening) : -len(closing)].strip()
            break
    return (last_box(gold) or gold) if gold.startswith("\\boxed") else gold


def _gold(reference: Any) -> str:
    """The reference as bare LaTeX."""
    if isinstance(reference, (int, float)) and not isinstance(reference, bool):
        return str(reference)
    gold = _gold_of_text(reference) if isinstance(reference, str) else ""
    if not gold:
        raise DataError(
            "A math reference must be a non-empty string or a number, because it is the answer to compare with, "
            f"but got {repr(reference)[:200]}; mend the row of the data, or name another verifier for its task."
        )
    return gold


def _same_text(gold: str, answer: str) -> bool:
    r"""Equal but for blanks, where there are words: `\text{all but }0` and `\text{all but} 0`."""
    return r"\text" in gold and r"\text" in answer and "".join(gold.split()) == "".join(answer.split())


def _same_at_sight(gold: str, answer: str) -> tuple[bool | None, str, str]:
    """What can be decided without a parser, and both sides without the labels of a choice."""
    for _ in range(_MAX_LABELS):
        if gold == answer or _same_text(gold, answer):
            return True, gold, answer
        same = same_quantity(gold, answer)
        if same is not None:
            return same, gold, answer
        chosen = same_choice(gold, answer)
        if isinstance(chosen, bool):
            return chosen, gold, answer
        if chosen == (gold, answer):
            break
        gold, answer = map(tidy, chosen)
    return same_words(gold, answer), gold, answer
