"""What is refused before any parser sees it: answers whose size alone can stall or crash a grader.

Most nested or towering input burns a grader's whole deadline (28 hostile strings: 2.0 to 2.7 s and up to 370 MB each),
so a policy that learns to write it would slow the run down. Counting characters and estimating digits costs
microseconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cispo.errors import ConfigError

# The greedy prefix makes it the last power whose both sides are plain integers, as a tower is worked out.
_LAST_POWER = re.compile(r"(.*)(?:\((\d+)\)|(?<!\d)(\d+))\^(?:\((\d+)\)|(\d+))", re.DOTALL)
_FACTORIAL = re.compile(r"(?<!\d)(\d+) ?\}? ?(?:!|\\factorial)")
_REPEATED_FACTORIAL = re.compile(r"!\s*[)}\]]+\s*!")


@dataclass(frozen=True)
class AnswerLimits:
    """The largest answer that is parsed at all.

    Attributes:
        max_characters: length of the answer.
        max_nesting: depth of braces, brackets and parentheses.
        max_digits: digits of any integer that the answer spells, as a literal, a power or a factorial.
    """

    max_characters: int = 512
    max_nesting: int = 32
    max_digits: int = 1000

    def __post_init__(self) -> None:
        for name in ("max_characters", "max_nesting", "max_digits"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"Answer limits need {name} of at least 1, but got {getattr(self, name)}; raise {name}."
                )


def too_big(answer: str, limits: AnswerLimits) -> str | None:
    """Why the answer must not be parsed, or None if it may be."""
    if len(answer) > limits.max_characters:
        return f"longer than {limits.max_characters} characters"
    if answer.isdigit():
        return None if len(answer) <= limits.max_digits else f"a number of more than {limits.max_digits} digits"
    if _nesting(answer) > limits.max_nesting:
        return f"nested deeper than {limits.max_nesting}"
    if _spells_huge_number(answer, limits.max_digits):
        return f"a number of more than {limits.max_digits} digits"
    return None


def _nesting(answer: str) -> int:
    depth = deepest = 0
    for character in answer:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest


def _spells_huge_number(answer: str, max_digits: int) -> bool:
    answer = " ".join(answer.split())  # one blank at most, so that no pattern tries every way to share them out
    if any(len(run) > max_digits for run in re.findall(r"\d+", answer)):
        return True
    if _REPEATED_FACTORIAL.search(answer):
        return True
    if any(math.lgamma(float(n[:9]) + 1) > max_digits * math.log(10) for n in _FACTORIAL.findall(answer)):
        return True
    return _has_huge_power(answer, max_digits)


def _has_huge_power(answer: str, max_digits: int) -> bool:
    """Powers of integers are worked out from the innermost, until one is too long."""
    answer = re.sub(r"\s", "", answer).replace("**", "^").translate(str.maketrans("{}", "()"))
    for _ in range(answer.count("^")):
        power = _LAST_POWER.match(answer)
        if power is None:
            return False
        base, exponent = int(power[2] or power[3]), power[4] or power[5]
        if base > 1 and (len(exponent) > 10 or int(exponent) * math.log10(base) >= max_digits):
            return True
        value = base ** int(exponent) if base > 1 else base
        # In parentheses, so that its digits do not run into what follows.
        answer = f"{power[1]}({value}){answer[power.end() :]}"
        while (flat := re.sub(r"\(\((\d+)\)\)", r"(\1)", answer)) != answer:
            answer = flat
    return False
