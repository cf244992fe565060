"""Tasks `reverse`, `sort` and `count`: one digit string, one answer, no arithmetic; small steps to try a set-up with.

    prompt      reverse:4712=            sort:4712=              count:7in4717=
    completion  <think></think>\\boxed{2174}                      ...\\boxed{2}
    reference   "2174"                   "1247"                  "2", all for the math verifier

The digits run from 1 to 9, so an answer is an integer without leading zeros and its own only spelling. The cold start
shows the form: a share of its answers is wrong, by digits in random order or by a random count.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cispo.errors import ConfigError
from rollout.problem import Demonstration, Problem

DIGITS = "123456789"


@dataclass(frozen=True)
class DigitsConfig:
    """What the digit strings look like.

    Attributes:
        min_length, max_length: how many digits a string has; at least 2 and at most 9, so that a count is one digit.
        random_fraction: share of demonstrations whose answer is drawn at random, and so mostly wrong.
    """

    min_length: int = 2
    max_length: int = 5
    random_fraction: float = 0.5

    def __post_init__(self) -> None:
        faults = []
        if not 2 <= self.min_length <= self.max_length <= 9:
            faults.append(
                f"A digit string needs 2 <= min_length <= max_length <= 9, got {self.min_length} and {self.max_length}."
            )
        if not 0 <= self.random_fraction <= 1:
            faults.append(f"random_fraction is a share between 0 and 1, got {self.random_fraction}.")
        if faults:
            raise ConfigError(*faults)

    def draw(self, rng: random.Random) -> str:
        """A string of digits whose length is drawn first, evenly."""
        return "".join(rng.choices(DIGITS, k=rng.randint(self.min_length, self.max_length)))

    def num_strings(self) -> int:
        """How many strings `draw` can give."""
        return sum(len(DIGITS) ** length for length in range(self.min_length, self.max_length + 1))


class ReverseTask:
    """The digits from last to first."""

    name = "reverse"

    def __init__(self, config: DigitsConfig | None = None) -> None:
        self.config = config or DigitsConfig()

    def problem(self, rng: random.Random) -> Problem:
        """One string and its reverse."""
        digits = self.config.draw(rng)
        return Problem(f"reverse:{digits}=", digits[::-1])

    def demonstration(self, rng: random.Random) -> Demonstration:
        """The reverse, or the digits in random order."""
        digits = self.config.draw(rng)
        return _demonstration(f"reverse:{digits}=", _maybe_shuffled(digits[::-1], self.config, rng))

    def num_prompts(self) -> int:
        """One prompt a string."""
        return self.config.num_strings()

    def words(self) -> tuple[str, ...]:
        """The task's mark and the form of an answer."""
        return ("reverse:", *ANSWER_WORDS)


class SortTask:
    """The digits in rising order."""

    name = "sort"

    def __init__(self, config: DigitsConfig | None = None) -> None:
        self.config = config or DigitsConfig()

    def problem(self, rng: random.Random) -> Problem:
        """One string and its digits in order."""
        digits = self.config.draw(rng)
        return Problem(f"sort:{digits}=", "".join(sorted(digits)))

    def demonstration(self, rng: random.Random) -> Demonstration:
        """The digits in order, or in random order."""
        digits = self.config.draw(rng)
        return _demonstration(f"sort:{digits}=", _maybe_shuffled("".join(sorted(digits)), self.config, rng))

    def num_prompts(self) -> int:
        """One prompt a string."""
        return self.config.num_strings()

    def words(self) -> tuple[str, ...]:
        """The task's mark and the form of an answer."""
        return ("sort:", *ANSWER_WORDS)


class CountTask:
    """How often a digit occurs."""

    name = "count"

    def __init__(self, config: DigitsConfig | None = None) -> None:
        self.config = config or DigitsConfig()

    def problem(self, rng: random.Random) -> Problem:
        """One digit, one string, and how often the one is in the other; mostly a digit that is there."""
        wanted, digits = self._draw(rng)
        return Problem(f"count:{wanted}in{digits}=", str(digits.count(wanted)))

    def demonstration(self, rng: random.Random) -> Demonstration:
        """The count, or a random number up to the string's length."""
        wanted, digits = self._draw(rng)
        answer = digits.count(wanted)
        if rng.random() < self.config.random_fraction:
            answer = rng.randint(0, len(digits))
        return _demonstration(f"count:{wanted}in{digits}=", str(answer))

    def num_prompts(self) -> int:
        """Every digit with every string."""
        return len(DIGITS) * self.config.num_strings()

    def words(self) -> tuple[str, ...]:
        """The task's marks and the form of an answer."""
        return ("count:", "in", *ANSWER_WORDS)

    def _draw(self, rng: random.Random) -> tuple[str, str]:
        digits = self.config.draw(rng)
        # A digit drawn from all nine is absent from most strings, and "0" would be a good guess.
        return rng.choice(digits if rng.random() < 0.75 else DIGITS), digits


ANSWER_WORDS = ("<think>", "</think>", "\\boxed{")


def _maybe_shuffled(answer: str, config: DigitsConfig, rng: random.Random) -> str:
    return "".join(rng.sample(answer, len(answer))) if rng.random() < config.random_fraction else answer


def _demonstration(prompt: str, answer: str) -> Demonstration:
    return Demonstration(prompt, f"<think></think>\\boxed{{{answer}}}")
