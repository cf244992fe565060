r"""LaTeX numerals as exact fractions, without a parser: the fast path of math grading.

More than nine in ten answers of a math run are integers, decimals or simple fractions. They are read here in
microseconds and compared exactly, so `123456789012345678` is not `123456789012345679`, and `0.333333` is not 1/3.

Policy where notations clash: `1,000`, `1{,}000` and `1\,000` are one thousand; `3,14` is not a decimal and `1 2` is
not twelve (both are no numerals at all); `03` is 3, `- 1` is -1, `1e3` is 1000; `1\frac12` and `1 1/2` are 3/2;
`0.\overline{3}` is 1/3.

Also here: whether an answer is an arithmetic that nobody worked out, `3+2-1`, which no numeral is answered by.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

_MAX_DIGITS = 1000
_MAX_EXPONENT = 100

_SIGN = r"(?P<sign>[-+−]?)\s*"
_THOUSANDS = r"[1-9]\d{0,2}(?:(?:,(?:\\!)?|\{,\}|\\,|\\;)\d{3})+"
_DECIMAL = re.compile(
    rf"{_SIGN}(?P<whole>{_THOUSANDS}|\d*)"
    r"(?:\.(?P<part>\d*)(?:\\(?:overline|bar|dot)\s*(?:\{(?P<repeat>\d+)\}|(?P<repeat_digit>\d))|\((?P<repeat_round>\d+)\))?)?"
    r"(?:[eE](?P<exponent>[-+]?\d{1,4})|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*(?P<ten>[-+]?\d{1,4})\s*\}|(?P<ten_digit>\d)))?",
    re.ASCII,
)
_FRACTION = re.compile(
    rf"{_SIGN}(?:(?P<whole>\d+)\s*(?=\\)|(?P<whole_plain>\d+)\s+(?=\d))?"
    r"(?:\\[dt]?frac\s*(?:\{\s*(?P<top>-?\s*\d+)\s*\}|(?P<top_digit>\d))\s*"
    r"(?:\{\s*(?P<bottom>-?\s*\d+)\s*\}|(?P<bottom_digit>\d))"
    r"|(?P<over>\d+)\s*/\s*(?P<under>\d+))",
    re.ASCII,
)
_NUMERAL_START = re.compile(r"[-+−(]*\s*(?:[\d.(+-]|\\[dt]?frac)", re.ASCII)
_POWER = re.compile(rf"{_SIGN}(?P<number>\d+)\s*\^\s*(?:\{{\s*(?P<exponent>-?\d{{1,4}})\s*\}}|(?P<digit>\d))", re.ASCII)

_INVISIBLE = re.compile(
    r"\\text\w*\s*\{(?:[^\W\d]|[\s.])*\}|\{[\s{}]*\}"  # units, words, empty groups
    r"|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|q?quad|math(?:rm|bf|it)|text\w*|limits)(?![A-Za-z])"
    r"|\\[,;:!>\s$%]|[\s~$%\u00b0]|\^\{?\\circ\}?"
)
_SCIENTIFIC = re.compile(r"(?<!\d)\d+(?:\.\d+)?(?:\\times|\\cdot|[×·*])10\^(?:\{[-−]?\d+\}|\d)")
_OPERATOR = r"(?:[-+−–*∗×·÷/]|\\(?:cdot|times|div|ast|[bp]?mod(?![A-Za-z])))"
_OPENING = r"(?:[(\[{|+−-]|\\[A-Za-z]+)*"
_CLOSING = r"(?:[)\]}|!]|\\(?:factorial|r?vert|rfloor|rceil))*"
_BETWEEN_NUMERALS = re.compile(rf"[\d.]{_CLOSING}({_OPERATOR})(?={_OPENING}[\d.])")
_OPERATION = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim(?:inf|sup)?|max|min|sup|inf|gcd|lcm|det)(?![A-Za-z])|\\frac\{d\}\{d[a-z]\}"
    r"|\\begin\{vmatrix\}|\\operatorname\{(?:lcm|gcd|max|min)\}"
)
_EQUALS = re.compile(r"=|\\equiv|\\approx")
_PLAIN_FRACTION = re.compile(r"(?<![\d.])[-+−]?\d+/\d+(?![\d.])")
_NOTATION = re.compile(rf"{_OPERATOR}|\\(?:[dtc]?frac|sqrt)")


def is_arithmetic(latex: str) -> bool:
    r"""Whether something is left to be worked out: numerals joined by + - * / or =, or a sum, integral or limit.

    So are `3+2-1`, `(5+2)=7`, `x=2\cdot3`, `\int_0^3 1\,dx`, `\gcd(6,9)`.

    Not so are one fraction of integers, 1/2, scientific notation, 3\times10^5, a power, a root, a factorial or a
    function of a number, and an equation whose other side has a letter, x_1=5.
    """
    if _OPERATION.search(latex):
        return True
    bare = _SCIENTIFIC.sub("1", _INVISIBLE.sub("", latex))
    sides = _EQUALS.split(bare)
    return any(map(_joins_numerals, sides)) or any(
        _is_number(left) and _is_number(right) for left, right in pairwise(sides)
    )


def _joins_numerals(side: str) -> bool:
    operators = _BETWEEN_NUMERALS.findall(side)
    if operators == ["/"]:
        return _PLAIN_FRACTION.search(re.sub(r"[()\[\]{}]", "", side)) is None
    return bool(operators)


def _is_number(side: str) -> bool:
    """Digits, and neither a letter nor the name of one or of a function."""
    plain = _NOTATION.sub("", side)
    return re.search(r"\d", plain) is not None and re.search(r"[^\W\d_]", plain) is None


def parse_numeral(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number or power; None for anything else.

    Longer than 1,000 characters, a power of ten beyond 100 or a denominator of 0 is None too.
    """
    text = text.strip()
    if not text or len(text) > _MAX_DIGITS:
        return None
    if text.isascii() and (text.isdigit() or (text[0] == "-" and text[1:].isdigit())):
        return Fraction(int(text))
    if not _NUMERAL_START.match(text):
        return None
    if text.startswith("(") and text.endswith(")"):
        return parse_numeral(text[1:-1])
    for read in (_decimal, _fraction, _power):
        value = read(text)
        if value is not None:
            return value
    return None


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    whole = re.sub(r"\D", "", match["whole"])
    part = match["part"] or ""
    repeat = match["repeat"] or match["repeat_digit"] or match["repeat_round"] or ""
    if not whole and not part and not repeat:
        return None
    value = Fraction(int(whole + part or "0"), 10 ** len(part))
    if repeat:
        value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(part))
    exponent = int(match["exponent"] or match["ten"] or match["ten_digit"] or 0)
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


def _power(text: str) -> Fraction | None:
    match = _POWER.fullmatch(text)
    if match is None:
        return None
    power, exponent = int(match["number"]), int(match["exponent"] or match["digit"])
    if (power == 0 and exponent <= 0) or abs(exponent) * len(match["number"]) > _MAX_DIGITS:
        return None
    return _signed(match["sign"], Fraction(power) ** exponent)


def _integer(digits: str) -> int:
    return int("".join(digits.split()))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign in ("-", "−") else value
