r"""Answers that are numbers, and are compared exactly and without a process: `3\times10^5`, `\$1{,}250.50`, `12.5\%`,
`5\text{ cm}`, `2.5 million`, `1010_2`, `3:4`, `12:30`.

The reference decides what counts. A percentage may be answered as itself or as the fraction. A numeral in a base is
answered by the same digits, with that base or none. A ratio is answered by any equal ratio, a time of day only by
itself: a pair such as 12:30, which no ratio in lowest terms is, can only be a time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rewards.numerals import parse_numeral
from rewards.units import SCALES, split_unit, units_differ

_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|per\s?cent|percentage|pct)\.?\s*\}|\b(?:percent|percentage|pct))$"
)
_SCALE = re.compile(rf"(?<=[\d\s}}])\s*(?:\\text\s*\{{\s*)?({'|'.join(SCALES)})s?(?:\s*\}})?$")
_BASED = re.compile(
    r"(?:\(\s*)?([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)(?:\s*\))?\s*_\s*\{?\s*(?:\\text\s*\{\s*)?(\d{1,2}|[a-z]{3,8})\s*\}{0,2}"
)
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASE_WORDS = {name: str(base) for base, name in enumerate(_BASE_NAMES.split(), start=2)}
_HALF_OF_DAY = re.compile(r"\s*(?:\\text\s*\{\s*)?\b([ap])\.?\s?m\.?\s*\}?$", re.IGNORECASE)
_CLOCK = re.compile(r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?")


@dataclass(frozen=True)
class Quantity:
    """A number with what stands behind it; `unit` is "" for none that is known."""

    value: Fraction
    is_percent: bool
    unit: str


@dataclass(frozen=True)
class Ratio:
    """Two to four numerals with colons between, as a ratio or a time; `half` is "a" or "p" of a.m. and p.m."""

    parts: tuple[Fraction, ...]
    is_time: bool
    half: str
    is_clock: bool  # it looks like a time, and may be a ratio

    @property
    def quotient(self) -> Fraction | None:
        """The first part over the second; None for more parts, for a time, or over 0."""
        is_fraction = len(self.parts) == 2 and not self.is_time and self.parts[1] != 0
        return self.parts[0] / self.parts[1] if is_fraction else None


def same_quantity(gold: str, answer: str) -> bool | None:
    """Whether the answer is the reference's number, ratio, time or numeral; None if one of them is none of these."""
    ours, theirs = parse_quantity(gold), parse_quantity(answer)
    if ours is not None and theirs is not None:
        return _same_number(ours, theirs)
    if "_" in gold or "_" in answer:
        return _same_digits(gold, answer)
    if ":" in gold or ":" in answer:
        return _same_ratio(_ratio(gold), _ratio(answer), ours, theirs)
    return None


@lru_cache(maxsize=8192)
def parse_quantity(latex: str) -> Quantity | None:
    """The quantity that `latex` (tidied) spells out; None if it is anything else, an arithmetic for instance."""
    bare = _PERCENT.sub("", latex)
    is_percent, unit = bare != latex, ""
    value = parse_numeral(bare)
    if value is None and not is_percent:
        bare, unit = split_unit(bare)
        value = parse_numeral(bare)
    if value is None and (scale := _SCALE.search(bare)) is not None:
        number = parse_numeral(bare[: scale.start()])
        value = number and number * SCALES[scale[1]]
    return None if value is None else Quantity(value, is_percent, unit)


def _same_number(ours: Quantity, theirs: Quantity) -> bool:
    if units_differ(ours.unit, theirs.unit):
        return False
    if ours.is_percent == theirs.is_percent:
        return ours.value == theirs.value
    percentage, plain = (ours.value, theirs.value) if ours.is_percent else (theirs.value, ours.value)
    return plain in (percentage, percentage / 100)


def _same_digits(gold: str, answer: str) -> bool | None:
    """Numerals of which at least one names its base; a base on one side only does not count."""
    (ours, our_base), (theirs, their_base) = _based(gold), _based(answer)
    if not ours or not theirs:
        return None
    return ours == theirs and (our_base == their_base or not our_base or not their_base)


def _based(latex: str) -> tuple[str, str]:
    """(digits, base); the base is "" if none is named, both are "" if it is no numeral."""
    match = _BASED.fullmatch(latex)
    if match is None:
        return (latex.lower(), "") if re.fullmatch(r"\d[0-9A-Fa-f]*", latex) else ("", "")
    base = _BASE_WORDS.get(match[2], match[2])
    # `a_1` is the first of a sequence; digits beyond 9 need a base that has them.
    is_numeral = base.isdigit() and (match[1][0].isdigit() or int(base) > 10)
    return (match[1].lower(), base) if is_numeral else ("", "")


@lru_cache(maxsize=8192)
def _ratio(latex: str) -> Ratio | None:
    half = _HALF_OF_DAY.search(latex)
    bare = latex[: half.start()].strip() if half else latex
    parts = tuple(parse_numeral(part) for part in bare.split(":"))
    values = tuple(part for part in parts if part is not None)
    if not 2 <= len(parts) <= 4 or len(values) < len(parts):
        return None
    is_clock = _CLOCK.fullmatch(re.sub(r"\s", "", bare)) is not None
    lowest = all(value.denominator == 1 for value in values) and math.gcd(*map(int, values)) == 1
    has_zero = any(part.strip().startswith("0") for part in bare.split(":"))
    is_time = is_clock and (half is not None or not lowest or has_zero or len(parts) == 3)
    return Ratio(values, is_time, half[1].lower() if half else "", is_clock)


def _same_ratio(
    ours: Ratio | None, theirs: Ratio | None, our_number: Quantity | None, their_number: Quantity | None
) -> bool | None:
    if ours is not None and theirs is not None:
        if ours.is_time or (ours.is_clock and theirs.is_time):
            return ours.parts == theirs.parts and not (ours.half and theirs.half and ours.half != theirs.half)
        return _proportional(ours.parts, theirs.parts)
    ratio, number = (ours, their_number) if ours is not None else (theirs, our_number)
    if ratio is None or number is None:
        return None
    return ratio.quotient == number.value


def _proportional(ours: tuple[Fraction, ...], theirs: tuple[Fraction, ...]) -> bool:
    if len(ours) != len(theirs) or 0 in ours or 0 in theirs:
        return ours == theirs
    return len({a / b for a, b in zip(ours, theirs, strict=True)}) == 1
