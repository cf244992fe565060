"""Task `program`: write the Python function that a phrase describes; the sandbox runs it against tests.

    prompt      xa5my=                      x add 5, multiply by y: strictly left to right
    completion  f=lambda x,y:(x+5)*y
    reference   {"entry": "f", "tests": [{"args": [3, 7], "returns": 56}, ...]}, for the code verifier

The cold start teaches syntax only. Half of its prompts are symbols (`x+5*y=`), which are copied in order; half are
words with operators drawn at random; parentheses are drawn at random in both. So reinforcement learning has to find
what a, s and m mean and where parentheses are needed. The variables make the answer a program: but for the rare phrase
that is constant (`xsx=`), no number passes the tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cispo.errors import ConfigError
from rollout.problem import Demonstration, Problem
from rollout.seeding import stable_rng

Values = NDArray[np.int64]

VARIABLES = ("x", "y")
HEADER = "f=lambda x,y:"
SYMBOL_OF = {"a": "+", "s": "-", "m": "*"}
_APPLY: dict[str, Callable[[Values, Values], Values]] = {"a": np.add, "s": np.subtract, "m": np.multiply}

# Arguments come from 2 to 12: 0 and 1 would hide the difference between operators, and 11 values a variable tell
# any two polynomials of degree 4 (at most four operands) apart somewhere.
_GRID_X, _GRID_Y = (axis.ravel() for axis in np.meshgrid(np.arange(2, 13), np.arange(2, 13)))


@dataclass(frozen=True)
class ProgramConfig:
    """What phrases look like.

    Attributes:
        min_operands, max_operands: how many operands a phrase has, 2 to 4 (all readings of a phrase are told apart
            by its tests, and beyond 4 there are thousands).
        max_digit: operands are x, y or a digit from 1 to this one.
        num_tests: argument pairs of a reference; more where that many cannot tell every wrong reading apart.
        symbol_fraction: share of demonstrations with symbol prompts, whose operators are copied.
        wrap_fraction: probability of parentheses around the prefix after each operator but the last one.
    """

    min_operands: int = 2
    max_operands: int = 4
    max_digit: int = 9
    num_tests: int = 4
    symbol_fraction: float = 0.5
    wrap_fraction: float = 0.5

    def __post_init__(self) -> None:
        faults = []
        if not 2 <= self.min_operands <= self.max_operands <= 4:
            faults.append(
                f"program needs 2 <= min_operands <= max_operands <= 4, got {self.min_operands} "
                f"and {self.max_operands}."
            )
        if not 1 <= self.max_digit <= 9:
            faults.append(f"program.max_digit is one digit from 1 to 9, got {self.max_digit}.")
        if not 1 <= self.num_tests <= 100:
            faults.append(f"program.num_tests must be between 1 and 100, got {self.num_tests}.")
        for name, share in (("symbol_fraction", self.symbol_fraction), ("wrap_fraction", self.wrap_fraction)):
            if not 0 <= share <= 1:
                faults.append(f"program.{name} is a share between 0 and 1, got {share}.")
        if faults:
            raise ConfigError(*faults)


class ProgramTask:
    """Phrases of add, subtract and multiply over digits and two variables."""

    name = "program"

    def __init__(self, config: ProgramConfig | None = None) -> None:
        self.config = config or ProgramConfig()
        self._operands = (*map(str, range(1, self.config.max_digit + 1)), *VARIABLES)

    def problem(self, rng: random.Random) -> Problem:
        """One phrase in words, with tests that follow from its text alone."""
        operands, letters = self._draw(rng)
        text = _spell(operands, letters)
        return Problem(text, {"entry": "f", "tests": _tests(text, operands, letters, self.config.num_tests)})

    def demonstration(self, rng: random.Random) -> Demonstration:
        """A phrase in symbols that is copied, or one in words whose operators are drawn; see the module's text."""
        operands, letters = self._draw(rng)
        symbols = [SYMBOL_OF[letter] for letter in letters]
        prompt = _spell(operands, symbols)
        if rng.random() >= self.config.symbol_fraction:
            prompt = _spell(operands, letters)
            symbols = [rng.choice("+-*") for _ in letters]
        return Demonstration(prompt, HEADER + self._expression(rng, operands, symbols))

    def num_prompts(self) -> int:
        """Operators times operands with at least one variable, over all lengths."""
        symbols, digits = len(self._operands), self.config.max_digit
        lengths = range(self.config.min_operands, self.config.max_operands + 1)
        return sum(len(SYMBOL_OF) ** (n - 1) * (symbols**n - digits**n) for n in lengths)

    def words(self) -> tuple[str, ...]:
        """The head of every program."""
        return (HEADER,)

    def _draw(self, rng: random.Random) -> tuple[list[str], list[str]]:
        """Operands, of which one at least is a variable, and the operators' letters between them."""
        num = rng.randint(self.config.min_operands, self.config.max_operands)
        operands = [rng.choice(self._operands) for _ in range(num)]
        while not set(operands) & set(VARIABLES):
            operands = [rng.choice(self._operands) for _ in range(num)]
        return operands, [rng.choice("asm") for _ in range(num - 1)]

    def _expression(self, rng: random.Random, operands: list[str], symbols: list[str]) -> str:
        """Operands and symbols in order, with the prefix wrapped at random after each operator but the last."""
        text = operands[0]
        for place, (symbol, operand) in enumerate(zip(symbols, operands[1:], strict=True), start=1):
            text += symbol + operand
            if place < len(symbols) and rng.random() < self.config.wrap_fraction:
                text = f"({text})"
        return text


def _spell(operands: list[str], operators: list[str]) -> str:
    return operands[0] + "".join(o + operand for o, operand in zip(operators, operands[1:], strict=True)) + "="


def _tests(text: str, operands: list[str], letters: list[str], num_tests: int) -> list[dict[str, Any]]:
    """Argument pairs, drawn from the text's hash, on which every wrong reading fails at least once.

    A reading keeps the operands' order and is free in operators and parentheses. Readings that are the same
    polynomial as the right one (5+2+x with or without parentheses) are right and pass everywhere.
    """
    returns_P = _left_to_right(operands, letters)
    differs_RP = _readings(operands) != returns_P
    wrong_RP = differs_RP[differs_RP.any(axis=1)]
    points = stable_rng("program", text).sample(range(len(returns_P)), len(returns_P))
    num = num_tests
    while not wrong_RP[:, points[:num]].any(axis=1).all():  # ends: all points together tell all readings apart
        num += 1
    return [{"args": [int(_GRID_X[p]), int(_GRID_Y[p])], "returns": int(returns_P[p])} for p in points[:num]]


def _operand_values(operand: str) -> Values:
    """int64 [P]: the operand on every point of the grid."""
    match operand:
        case "x":
            return _GRID_X
        case "y":
            return _GRID_Y
        case digit:
            return np.full_like(_GRID_X, int(digit))


def _left_to_right(operands: list[str], letters: list[str]) -> Values:
    """int64 [P]: what the phrase means."""
    values_P = _operand_values(operands[0])
    for letter, operand in zip(letters, operands[1:], strict=True):
        values_P = _APPLY[letter](values_P, _operand_values(operand))
    return values_P


def _readings(operands: list[str]) -> Values:
    """int64 [R, P]: every choice of operators and parentheses; 3, 18 or 135 readings for 2, 3 or 4 operands."""
    if len(operands) == 1:
        return _operand_values(operands[0])[None, :]
    readings = []
    for cut in range(1, len(operands)):
        left_RP, right_RP = _readings(operands[:cut]), _readings(operands[cut:])
        for apply in _APPLY.values():
            readings.append(apply(left_RP[:, None], right_RP[None, :]).reshape(-1, len(_GRID_X)))
    return np.concatenate(readings)
