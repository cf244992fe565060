"""Task `chain`: a sum from left to right modulo 10, reasoned step by step inside a think block.

    prompt      0-2+2-1=
    completion  <think>0-2=8;8+2=0;0-1=9</think>\\boxed{9}
    reference   "9", for the math verifier

The cold start shows two habits: to answer at once, and to think first with the odd slip. Reinforcement learning has
to find that thinking pays and that slips do not, so responses grow longer as they grow right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cispo.errors import ConfigError
from rollout.problem import Demonstration, Problem

MODULUS = 10


@dataclass(frozen=True)
class ChainConfig:
    """What chains look like.

    Attributes:
        min_length, max_length: how many numbers a chain has, the first digit (0 to 9) included; at least 2.
        min_operand, max_operand: range of the numbers after the first digit, within 0 to 9.
        direct_fraction: share of demonstrations that answer rightly at once, with an empty think block.
        slip_fraction: share of the trace steps of the other demonstrations whose result is wrong; the trace goes
            on from the wrong result and answers it.
    """

    min_length: int = 3
    max_length: int = 5
    min_operand: int = 1
    max_operand: int = 2
    direct_fraction: float = 0.6
    slip_fraction: float = 0.12

    def __post_init__(self) -> None:
        faults = []
        if not 2 <= self.min_length <= self.max_length:
            faults.append(f"chain needs 2 <= min_length <= max_length, got {self.min_length} and {self.max_length}.")
        if not 0 <= self.min_operand <= self.max_operand < MODULUS:
            faults.append(
                f"chain needs 0 <= min_operand <= max_operand <= 9, got {self.min_operand} and {self.max_operand}."
            )
        for name, share in (("direct_fraction", self.direct_fraction), ("slip_fraction", self.slip_fraction)):
            if not 0 <= share <= 1:
                faults.append(f"chain.{name} is a share between 0 and 1, got {share}.")
        if faults:
            raise ConfigError(*faults)


class ChainTask:
    """Chains of + and - modulo 10, with a trace that can be checked step by step."""

    name = "chain"

    def __init__(self, config: ChainConfig | None = None) -> None:
        self.config = config or ChainConfig()

    def problem(self, rng: random.Random) -> Problem:
        """One chain; its length is drawn first, evenly, so that short ones are not rare."""
        first, steps = self._draw(rng)
        value = first
        for operator, operand in steps:
            value = _apply(value, operator, operand)
        return Problem(_spell(first, steps), str(value))

    def demonstration(self, rng: random.Random) -> Demonstration:
        """A chain with a right direct answer, or with a trace that may slip."""
        first, steps = self._draw(rng)
        is_direct = rng.random() < self.config.direct_fraction
        slip_fraction = 0.0 if is_direct else self.config.slip_fraction
        trace, value = [], first
        for operator, operand in steps:
            result = _apply(value, operator, operand)
            if rng.random() < slip_fraction:
                result = (result + rng.randrange(1, MODULUS)) % MODULUS
            trace.append(f"{value}{operator}{operand}={result}")
            value = result
        thoughts = "" if is_direct else ";".join(trace)
        return Demonstration(_spell(first, steps), f"<think>{thoughts}</think>\\boxed{{{value}}}")

    def num_prompts(self) -> int:
        """First digit times (operator, operand) for every further place, over all lengths."""
        choices = 2 * (self.config.max_operand - self.config.min_operand + 1)
        lengths = range(self.config.min_length, self.config.max_length + 1)
        return MODULUS * sum(choices ** (length - 1) for length in lengths)

    def words(self) -> tuple[str, ...]:
        """The think block's marks and the opening of the box."""
        return ("<think>", "</think>", "\\boxed{")

    def _draw(self, rng: random.Random) -> tuple[int, list[tuple[str, int]]]:
        """First digit, then (operator, operand) for each further place."""
        length = rng.randint(self.config.min_length, self.config.max_length)
        first = rng.randrange(MODULUS)
        operands = (self.config.min_operand, self.config.max_operand)
        return first, [(rng.choice("+-"), rng.randint(*operands)) for _ in range(length - 1)]


def _apply(value: int, operator: str, operand: int) -> int:
    return (value + operand if operator == "+" else value - operand) % MODULUS


def _spell(first: int, steps: list[tuple[str, int]]) -> str:
    return str(first) + "".join(f"{operator}{operand}" for operator, operand in steps) + "="
