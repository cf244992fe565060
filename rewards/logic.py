r"""Grades procedural tasks: `LogicAnswer().score(text, reference) -> Score`.

The answer is what the last `\boxed{}` or `<answer>` after the think block holds. It is right or wrong, nothing
between: reasoning-gym's own scorers pay 0.01 to 0.9 for garbage, substrings and near misses, and some evaluate the
answer. None of them is used. Nothing that the model writes is evaluated, and checking it takes milliseconds at most, so
it is done in this process. docs/logic.md lists the tasks and how each is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cispo.errors import ConfigError, DataError
from cispo.types import Score, Verdict
from rewards.answer_format import answer_text, marked_answer
from rewards.logic_forms import Unreadable
from rewards.logic_rules import Puzzle
from rewards.logic_scorers import GYM, SCORERS, ByForm, Scorer


@dataclass(frozen=True)
class LogicAnswerConfig:
    """What is spent on checking an answer.

    Attributes:
        max_characters: a longer answer is refused unread, unless the right one is longer still.
    """

    max_characters: int = 4096

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ConfigError(f"rewards.logic.max_characters must be at least 1, got {self.max_characters}; raise it.")


@dataclass(frozen=True)
class _Reference:
    """A reference that was found usable."""

    task: str
    scorer: Scorer
    puzzle: Puzzle


class LogicAnswer:
    """The verifier of procedural tasks. Thread-safe; it has neither processes nor state."""

    def __init__(self, config: LogicAnswerConfig | None = None) -> None:
        self._config = config or LogicAnswerConfig()

    def score(self, text: str, reference: Any) -> Score:
        """Grade one text.

        Args:
            text: what the model wrote, think block included.
            reference: {"task": "gym/gcd", "answer": "4", "metadata": {...}}, or an entry of reasoning-gym as it is.
                `metadata` holds what the task's rules need; tasks with one right answer need none.

        Returns:
            value and parts["answer"] 1.0 or 0.0. An answer that is missing, too long or not of the task's form is
            UNPARSEABLE.

        Raises:
            DataError: the reference names no task that is known here, or has no answer or not what its rules need.
        """
        known = _read(reference)
        answer = self._find_answer(text, known.puzzle.answer)
        if answer is None:
            return _score(Verdict.UNPARSEABLE, f"expected {known.puzzle.answer[:80]}, got no answer or too long a one")
        verdict, why = _verdict(answer, known)
        note = f"expected {known.puzzle.answer[:80]}, got {answer[:80]}"
        return _score(verdict, f"{note} ({why})" if why else note)

    def _find_answer(self, text: str, gold: str) -> str | None:
        answer = answer_text(text) if isinstance(text, str) else None
        marked = marked_answer(answer) if answer else None
        limit = max(self._config.max_characters, 2 * len(gold))
        return marked if marked is not None and len(marked) <= limit else None


def check_reference(reference: Any) -> None:
    """Raise DataError unless `LogicAnswer` can check answers against `reference`: its own answer must be right."""
    _check_gold(_read(reference))


def _verdict(answer: str, known: _Reference) -> tuple[Verdict, str]:
    """The verdict and, if there is more to say, why."""
    try:
        right = _is_right(known.scorer, answer, known.puzzle)
    except Unreadable as why:
        return Verdict.UNPARSEABLE, str(why)
    except Exception as error:  # no checker should raise anything else, and no answer may end a run
        _check_gold(known)  # if the right answer cannot be checked either, the reference is at fault
        return Verdict.UNPARSEABLE, f"{type(error).__name__} in the checker"
    return (Verdict.CORRECT if right else Verdict.WRONG), ""


def _is_right(scorer: Scorer, answer: str, puzzle: Puzzle) -> bool:
    return scorer.same(answer, puzzle.answer) if isinstance(scorer, ByForm) else scorer.solves(answer, puzzle)


def _check_gold(known: _Reference) -> None:
    try:
        right = _is_right(known.scorer, known.puzzle.answer, known.puzzle)
    except Exception as error:  # whatever a row of a file may hold
        raise _fault(known, f"checking its own answer raised {type(error).__name__}: {error}") from error
    if not right:
        raise _fault(known, "its own answer does not solve it")


def _fault(known: _Reference, what: str) -> DataError:
    return DataError(
        f"A reference of task {known.task!r} cannot be used, because {what}; mend the row of the data "
        f"(answer {known.puzzle.answer[:80]!r}, metadata {sorted(known.puzzle.facts)})."
    )


def _read(reference: Any) -> _Reference:
    if not isinstance(reference, Mapping):
        raise DataError(
            'A logic reference must be {"task", "answer", "metadata"}, '
            f"but got {repr(reference)[:200]}; mend the row."
        )
    facts, answer = reference.get("metadata") or {}, reference.get("answer")
    if not isinstance(facts, Mapping):
        raise DataError(
            f"The metadata of a logic reference must be an object, but got {repr(facts)[:200]}; mend the row."
        )
    task = str(reference.get("task") or GYM + str(facts.get("source_dataset")))
    if task not in SCORERS:
        raise DataError(
            f"The logic reference's task {task!r} is none that can be checked here; docs/logic.md lists them."
        )
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"A reference of task {task!r} needs an answer that is a non-empty string, got {answer!r}.")
    return _Reference(task, SCORERS[task], Puzzle(answer.strip(), facts))


def _score(verdict: Verdict, note: str) -> Score:
    correct = verdict is Verdict.CORRECT
    return Score(value=float(correct), correct=correct, parts={"answer": float(correct)}, verdict=verdict, note=note)
