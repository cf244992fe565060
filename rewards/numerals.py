r"""LaTeX numerals as exact fractions, without a parser: the fast path of math grading.

More than nine in ten answers of a math run are integers, decimals or simple fractions. They are read here in
microseconds and compared exactly, so `123456789012345678` is not `123456789012345679`, and `0.333333` is not 1/3.

Policy where notations clash: `1,000`, `1{,}000` and `1\,000` are one thousand; `3,14` is not a decimal and `1 2` is
not twelve (both are no numerals at all); `03` is 3, `- 1` is -1, `1e3` is 1000; `1\frac12` and `1 1/2` are 3/2;
`0.\overline{3}` is 1/3.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_DIGITS = 1000
_MAX_EXPONENT = 100

_SIGN = r"(?P<sign>[-+−]?)\s*"
_THOUSANDS = r"[1-9]\d{0,2}(?:(?:,(?:\\!)?|\{,\}|\\,|\\;)\d{3})+"
_DECIMAL = re.compile(
    rf"{_SIGN}(?P<whole>{_THOUSANDS}|\d*)"
    r"(?:\.(?P<part>\d*)(?:\\(?:overline|bar)\s*(?:\{(?P<repeat>\d+)\}|(?P<repeat_digit>\d)))?)?"
    r"(?:[eE](?P<exponent>[-+]?\d{1,4}))?",
    re.ASCII,
)
_FRACTION = re.compile(
    rf"{_SIGN}(?:(?P<whole>\d+)\s*(?=\\)|(?P<whole_plain>\d+)\s+(?=\d))?"
    r"(?:\\[dt]?frac\s*(?:\{\s*(?P<top>-?\s*\d+)\s*\}|(?P<top_digit>\d))\s*"
    r"(?:\{\s*(?P<bottom>-?\s*\d+)\s*\}|(?P<bottom_digit>\d))"
    r"|(?P<over>\d+)\s*/\s*(?P<under>\d+))",
    re.ASCII,
)


def parse_numeral(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction or mixed number; None for anything else.

    Longer than 1,000 characters, a power of ten beyond 100 or a denominator of 0 is None too.
    """
    text = text.strip()
    if not text or len(text) > _MAX_DIGITS:
        return None
    if text.isascii() and text.isdigit():
        return Fraction(int(text))
    value = _decimal(text)
    return value if value is not None else _fraction(text)


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    whole = re.sub(r"\D", "", match["whole"])
    part = match["part"] or ""
    repeat = match["repeat"] or match["repeat_digit"] or ""
    if not whole and not part and not repeat:
        return None
    value = Fraction(int(whole + part or "0"), 10 ** len(part))
    if repeat:
        value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(part))
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > _MAX_EXPONENT:
        return None
    return _signed(match["sign"], value * Fraction(10) ** exponent)


def _fraction(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    top = _integer(match["top"] or match["top_digit"] or match["over"])
    bottom = _integer(match["bottom"] or match["bottom_digit"] or match["under"])
    whole = match["whole"] or match["whole_plain"]
    # A mixed number has no sign inside: `1\frac{-1}{2}` is a product, not 1/2.
    if bottom == 0 or (whole and (top < 0 or bottom < 0)):
        return None
    return _signed(match["sign"], int(whole or 0) + Fraction(top, bottom))


def _integer(digits: str) -> int:
    return int("".join(digits.split()))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign in ("-", "−") else value
