"""Tasks `copy`, `xor`, `brackets`, `max` and `modadd`: one line, one right answer, for the smallest policies.

    prompt      copy:4712=     xor:10110=     brackets:(()())=     max:47,12,93=     modadd:47+35%7=
    reference   "4712"         "1"            "1"                  "93"              "5"

All are for the math verifier. `xor` asks whether the number of ones is odd, `brackets` whether every bracket is closed.
The cold start shows the form; a share of its answers is drawn at random.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

from rollout.digits_task import ANSWER_WORDS, DigitsConfig
from rollout.problem import Demonstration, Problem


class _Kind(Protocol):
    """What one of these tasks asks."""

    def question(self, rng: random.Random, config: DigitsConfig) -> tuple[str, str]:
        """What stands between the task's name and the equals sign, and the right answer."""

    def guess(self, rng: random.Random, question: str) -> str:
        """An answer of the right form."""

    def num_questions(self, config: DigitsConfig) -> int:
        """How many questions there are."""


class SymbolTask:
    """A prompt `<name>:<question>=` and an answer in a box."""

    name = ""
    kind: _Kind

    def __init__(self, config: DigitsConfig | None = None) -> None:
        self.config = config or DigitsConfig()

    def problem(self, rng: random.Random) -> Problem:
        """One question and its answer."""
        question, answer = self.kind.question(rng, self.config)
        return Problem(f"{self.name}:{question}=", answer)

    def demonstration(self, rng: random.Random) -> Demonstration:
        """The answer, or one drawn at random."""
        question, answer = self.kind.question(rng, self.config)
        if rng.random() < self.config.random_fraction:
            answer = self.kind.guess(rng, question)
        return Demonstration(f"{self.name}:{question}=", f"<think></think>\\boxed{{{answer}}}")

    def num_prompts(self) -> int:
        """One prompt a question."""
        return self.kind.num_questions(self.config)

    def words(self) -> tuple[str, ...]:
        """The task's mark and the form of an answer."""
        return (f"{self.name}:", *ANSWER_WORDS)


class _Copy:
    def question(self, rng: random.Random, config: DigitsConfig) -> tuple[str, str]:
        digits = config.draw(rng)
        return digits, digits

    def guess(self, rng: random.Random, question: str) -> str:
        return "".join(rng.sample(question, len(question)))

    def num_questions(self, config: DigitsConfig) -> int:
        return config.num_strings()


class _Xor:
    def question(self, rng: random.Random, config: DigitsConfig) -> tuple[str, str]:
        bits = "".join(rng.choices("01", k=_length(rng, config)))
        return bits, str(bits.count("1") % 2)

    def guess(self, rng: random.Random, question: str) -> str:
        return rng.choice("01")

    def num_questions(self, config: DigitsConfig) -> int:
        return sum(2**length for length in _lengths(config))


class _Brackets:
    """Half of the strings are balanced on purpose, the others are as many brackets of both kinds in any order."""

    def question(self, rng: random.Random, config: DigitsConfig) -> tuple[str, str]:
        pairs = _length(rng, config)
        if rng.random() < 0.5:
            brackets = _balanced(rng, pairs)
        else:
            brackets = "".join(rng.sample("()" * pairs, 2 * pairs))
        return brackets, str(int(_is_balanced(brackets)))

    def guess(self, rng: random.Random, question: str) -> str:
        return rng.choice("01")

    def num_questions(self, config: DigitsConfig) -> int:
        return sum(math.comb(2 * pairs, pairs) for pairs in _lengths(config))


class _Max:
    def question(self, rng: random.Random, config: DigitsConfig) -> tuple[str, str]:
        numbers = [rng.randint(10, 99) for _ in range(_length(rng, config))]
        return ",".join(map(str, numbers)), str(max(numbers))

    def guess(self, rng: random.Random, question: str) -> str:
        return rng.choice(question.split(","))

    def num_questions(self, config: DigitsConfig) -> int:
        return int(sum(90**length for length in _lengths(config)))


class _ModAdd:
    def question(self, rng: random.Random, config: DigitsConfig) -> tuple[str, str]:
        left, right, modulus = config.draw(rng), config.draw(rng), rng.randint(2, 9)
        return f"{left}+{right}%{modulus}", str((int(left) + int(right)) % modulus)

    def guess(self, rng: random.Random, question: str) -> str:
        return str(rng.randrange(int(question[-1])))

    def num_questions(self, config: DigitsConfig) -> int:
        return 8 * config.num_strings() ** 2


class CopyTask(SymbolTask):
    """The same digits again."""

    name, kind = "copy", _Copy()


class XorTask(SymbolTask):
    """Whether the number of ones is odd."""

    name, kind = "xor", _Xor()


class BracketsTask(SymbolTask):
    """Whether every bracket is closed and none is before it was opened."""

    name, kind = "brackets", _Brackets()


class MaxTask(SymbolTask):
    """The largest of several numbers of two digits."""

    name, kind = "max", _Max()


class ModAddTask(SymbolTask):
    """The rest of a sum."""

    name, kind = "modadd", _ModAdd()


def _lengths(config: DigitsConfig) -> range:
    return range(config.min_length, config.max_length + 1)


def _length(rng: random.Random, config: DigitsConfig) -> int:
    return rng.randint(config.min_length, config.max_length)


def _balanced(rng: random.Random, pairs: int) -> str:
    brackets, to_open, to_close = "", pairs, 0
    while to_open or to_close:
        opens = to_open > 0 and (to_close == 0 or rng.random() < 0.5)
        brackets += "(" if opens else ")"
        to_open, to_close = (to_open - 1, to_close + 1) if opens else (to_open, to_close - 1)
    return brackets


def _is_balanced(brackets: str) -> bool:
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            return False
    return depth == 0
