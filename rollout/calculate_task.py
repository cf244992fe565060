"""Task `calculate`: products and sums of two-digit numbers, too long for a small policy but not for a tool.

    prompt       calc:47*83+12=
    first turn   <tool:python>print(47*83+12)</tool>
    observation  <result>3913
                 </result>
    second turn  \\boxed{3913}
    reference    "3913", for the math verifier

The cold start shows two habits: to guess at once, and to call python with the odd slip of a digit. Reinforcement
learning has to find that asking pays and that slips do not. Needs `episode.environment=tools`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cispo.errors import ConfigError
from rollout.problem import Demonstration, Problem
from rollout.tool_calls import END_CALL, opening, result

PREFIX = "calc:"


@dataclass(frozen=True)
class CalculateConfig:
    """What is to be calculated.

    Attributes:
        min_operands, max_operands: how many numbers there are, at least 2.
        max_operand: numbers are drawn from 2 to this one.
        guess_fraction: share of demonstrations that answer at once, with a number that is drawn.
        slip_fraction: share of the other demonstrations whose call has one wrong digit; its result is answered.
    """

    min_operands: int = 2
    max_operands: int = 3
    max_operand: int = 99
    guess_fraction: float = 0.5
    slip_fraction: float = 0.15

    def __post_init__(self) -> None:
        faults = []
        if not 2 <= self.min_operands <= self.max_operands:
            faults.append(
                f"calculate needs 2 <= min_operands <= max_operands, got {self.min_operands} and {self.max_operands}."
            )
        if self.max_operand < 2:
            faults.append(f"calculate.max_operand must be at least 2, got {self.max_operand}.")
        for name, share in (("guess_fraction", self.guess_fraction), ("slip_fraction", self.slip_fraction)):
            if not 0 <= share <= 1:
                faults.append(f"calculate.{name} is a share between 0 and 1, got {share}.")
        if faults:
            raise ConfigError(*faults)


class CalculateTask:
    """Expressions of +, - and *, with the usual precedence."""

    name = "calculate"

    def __init__(self, config: CalculateConfig | None = None) -> None:
        self.config = config or CalculateConfig()

    def problem(self, rng: random.Random) -> Problem:
        """One expression; how many numbers it has is drawn first, evenly."""
        expression = self._draw(rng)
        return Problem(f"{PREFIX}{expression}=", str(value_of(expression)))

    def demonstration(self, rng: random.Random) -> Demonstration:
        """A guess, or a call and the answer that follows from it."""
        expression = self._draw(rng)
        prompt = f"{PREFIX}{expression}="
        if rng.random() < self.config.guess_fraction:
            num_digits = len(str(abs(value_of(expression))))
            return Demonstration(prompt, _answer(rng.randrange(10 ** (num_digits - 1), 10**num_digits)))
        called = _slipped(rng, expression) if rng.random() < self.config.slip_fraction else expression
        value = value_of(called)
        call = f"{opening('python')}print({called}){END_CALL}"
        return Demonstration(prompt, call, ((result(f"{value}\n"), _answer(value)),))

    def num_prompts(self) -> int:
        """Numbers times operators, over all lengths."""
        numbers = self.config.max_operand - 1
        lengths = range(self.config.min_operands, self.config.max_operands + 1)
        return sum(numbers**length * 3 ** (length - 1) for length in lengths)

    def words(self) -> tuple[str, ...]:
        """The task's mark and the opening of the box; the marks of tools are the environment's."""
        return (PREFIX, "\\boxed{")

    def _draw(self, rng: random.Random) -> str:
        num = rng.randint(self.config.min_operands, self.config.max_operands)
        expression = str(rng.randint(2, self.config.max_operand))
        for _ in range(num - 1):
            expression += rng.choice("+-*") + str(rng.randint(2, self.config.max_operand))
        return expression


def value_of(expression: str) -> int:
    """The value of numbers joined by +, - and *."""
    for operator in "+-*":
        left, found, right = expression.rpartition(operator)
        if found and operator == "+":
            return value_of(left) + value_of(right)
        if found and operator == "-":
            return value_of(left) - value_of(right)
        if found:
            return value_of(left) * value_of(right)
    return int(expression)


def _slipped(rng: random.Random, expression: str) -> str:
    """The expression with one digit replaced; never by 0, which may not begin a number."""
    place = rng.choice([i for i, sign in enumerate(expression) if sign.isdigit()])
    return expression[:place] + rng.choice([d for d in "123456789" if d != expression[place]]) + expression[place + 1 :]


def _answer(value: int) -> str:
    return f"\\boxed{{{value}}}"
