r"""Answers of which only one is right, compared by their form: text, numbers, lists, JSON.

A comparison is strict: a right answer with something before or after it is wrong, and so is a part of it. What may
differ is how the same thing is written: spaces, letter case where it means nothing, `+5` for 5, JSON's spaces.

Each function takes (answer, gold), both stripped, and gives whether they are the same. It raises Unreadable for an
answer that is not of the form at all. Nothing is evaluated, and the longest answer takes milliseconds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, NoReturn

from rewards.numerals import parse_numeral

Rows = list[list[str]]

_WRAPPED = re.compile(r"\\text\s*\{([^{}]*)\}|\$([^$]*)\$")
_HEX = re.compile(r"([-+]?)0[xX]([0-9a-fA-F]+)")
_COMPLEX = re.compile(r"([-+]?\s*\d+(?:\.\d+)?)\s*([-+])\s*(\d+(?:\.\d+)?)\s*\*?\s*[ij]", re.ASCII)
_REDUCED = re.compile(r"(-?\d+)\s*/\s*(\d+)|(-?)\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", re.ASCII)
_DECIMAL = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?", re.ASCII)
_FACTOR = re.compile(r"([a-zA-Z])(?:\*\*(\d{1,4}))?|(\d+)", re.ASCII)


class Unreadable(ValueError):
    """The answer is not of the form that was asked for; the message says what is missing."""


def rows(text: str) -> Rows:
    """The words of each line that has any."""
    return [line.split() for line in text.splitlines() if line.strip()]


def same_text(answer: str, gold: str) -> bool:
    """The same words in the same lines, letter by letter."""
    return rows(answer) == rows(gold)


def same_words(answer: str, gold: str) -> bool:
    r"""The same words whatever their case; a full stop at the end and `\text{}` around do not count."""
    return rows(_bare(answer).casefold()) == rows(_bare(gold).casefold())


def same_letters(answer: str, gold: str) -> bool:
    """The same characters in order, spaces and degree signs left out: `(1.5, 2)`, `64.03`."""
    return _compact(answer) == _compact(gold)


def same_number(answer: str, gold: str) -> bool:
    """The same number exactly. A fraction is taken only where the right answer is none but an integer."""
    ours, theirs = parse_numeral(gold), parse_numeral(_bare(answer))
    if ours is None:
        raise ValueError(f"the right answer {gold!r} is no number")
    if theirs is None:
        raise Unreadable("no number")
    is_fraction = "/" in answer or "frac" in answer
    return ours == theirs and not (is_fraction and ours.denominator == 1)


def same_to_three_digits(answer: str, gold: str) -> bool:
    """The same decimal number, both rounded to three significant digits."""
    if _DECIMAL.fullmatch(answer) is None:
        raise Unreadable("no decimal number")
    context = Context(prec=3)
    return context.create_decimal(Decimal(answer)) == context.create_decimal(Decimal(gold))


def same_hexadecimal(answer: str, gold: str) -> bool:
    """The same integer in base 16, with its sign and 0x."""
    return _hexadecimal(answer) == _hexadecimal(gold)


def same_complex(answer: str, gold: str) -> bool:
    """The same complex number, written `-9.0 - 8.0i`, both parts exactly."""
    return _complex(answer) == _complex(gold)


def same_reduced_fraction(answer: str, gold: str) -> bool:
    r"""The same numerator over the same denominator, as `3/4` or `\frac{3}{4}`; an equal unreduced one is wrong."""
    return _pair(answer) == _pair(gold)


def same_items(answer: str, gold: str) -> bool:
    """The same items between commas, in order; brackets around all and quotes around each do not count."""
    return _items(answer) == _items(gold)


def same_numbers(answer: str, gold: str) -> bool:
    """As `same_items`, of numbers: 3, 3.0 and '3.00' are the same."""
    return _numbers(answer) == _numbers(gold)


def same_factors(answer: str, gold: str) -> bool:
    r"""The same integers between multiplication signs, in any order: `2 × 2 × 5`."""
    return _factors(answer) == _factors(gold)


def same_json(answer: str, gold: str) -> bool:
    """The same JSON value, types included: 1, 1.0 and true are three things."""
    return _canonical(read_json(answer)) == _canonical(json.loads(gold))


def same_groups(answer: str, gold: str) -> bool:
    """The same JSON list of lists of strings, whatever the order of the lists and in them."""
    return sorted(map(sorted, _lists(answer))) == sorted(map(sorted, _lists(gold)))


def same_set_of_lists(answer: str, gold: str) -> bool:
    """The same JSON list of lists of strings, whatever the order of the lists."""
    return sorted(_lists(answer)) == sorted(_lists(gold))


def same_antiderivative(answer: str, gold: str) -> bool:
    """The same sum of monomials but for constants: `x**2 + C` and `C + x**2 + 1`."""
    return _without_constants(polynomial(answer)) == _without_constants(polynomial(gold))


def polynomial(text: str) -> dict[tuple[tuple[str, int], ...], Fraction]:
    """Coefficients by monomial, a monomial being ((letter, power), ...): `3*x**2/4 - y` is {x²: 3/4, y: -1}.

    Raises Unreadable for parentheses and whatever else is no sum of monomials, and where a monomial comes twice.
    """
    terms = re.findall(r"([-+]?)([^-+]+)", re.sub(r"\s+", "", text).replace("^", "**"))
    if not terms or "".join(sign + term for sign, term in terms) != re.sub(r"\s+", "", text).replace("^", "**"):
        raise Unreadable("no sum of monomials")
    found: dict[tuple[tuple[str, int], ...], Fraction] = {}
    for sign, term in terms:
        monomial, coefficient = _monomial(term)
        if monomial in found:
            raise Unreadable("a monomial that comes twice")
        found[monomial] = -coefficient if sign == "-" else coefficient
    return {monomial: coefficient for monomial, coefficient in found.items() if coefficient}


def _monomial(term: str) -> tuple[tuple[tuple[str, int], ...], Fraction]:
    powers: Counter[str] = Counter()
    coefficient = Fraction(1)
    # "**" is inside a factor, so that what separates factors is a lone * or /.
    pieces = re.split(r"((?<!\*)\*(?!\*)|/)", term)
    for operator, piece in zip(["*", *pieces[1::2]], pieces[::2], strict=True):
        factor = _FACTOR.fullmatch(piece)
        if factor is None:
            raise Unreadable("no sum of monomials")
        letter, power, number = factor.groups()
        if letter:
            powers[letter] += int(power or 1) * (1 if operator == "*" else -1)
        elif operator == "/":
            coefficient /= int(number) or _unreadable("a division by zero")
        else:
            coefficient *= int(number)
    return tuple(sorted((letter, power) for letter, power in powers.items() if power)), coefficient


def _without_constants(
    found: dict[tuple[tuple[str, int], ...], Fraction],
) -> dict[tuple[tuple[str, int], ...], Fraction]:
    return {monomial: coefficient for monomial, coefficient in found.items() if monomial not in ((), (("C", 1),))}


def _unreadable(why: str) -> NoReturn:
    raise Unreadable(why)


def _bare(text: str) -> str:
    wrapped = _WRAPPED.fullmatch(text)
    inside = (wrapped[1] or wrapped[2] or "") if wrapped else text
    return inside.strip().removesuffix(".").rstrip()


def _compact(text: str) -> str:
    return "".join(text.replace("°", "").replace("^\\circ", "").split())


def _hexadecimal(text: str) -> int:
    match = _HEX.fullmatch(text.strip())
    if match is None:
        raise Unreadable("no hexadecimal number with 0x")
    return int(match[2], 16) * (-1 if match[1] == "-" else 1)


def _complex(text: str) -> tuple[Fraction, Fraction]:
    match = _COMPLEX.fullmatch(text.strip())
    if match is None:
        raise Unreadable("no complex number a + bi")
    real, sign, imaginary = match.groups()
    return Fraction("".join(real.split())), Fraction(sign + imaginary)


def _pair(text: str) -> tuple[int, int]:
    bare = _bare(text)
    match = _REDUCED.fullmatch(bare)
    if match is None:
        number = parse_numeral(bare)
        if number is None or number.denominator != 1:
            raise Unreadable("no fraction of two integers")
        return int(number), 1
    if match[1]:
        return int(match[1]), int(match[2])
    return int(match[3] + match[4]), int(match[5])


def _items(text: str) -> list[str]:
    inside = text.strip()
    if inside.startswith("[") and inside.endswith("]"):
        inside = inside[1:-1].strip()
    if not inside:
        return []
    return [_unquoted(item.strip()) for item in inside.split(",")]


def _unquoted(item: str) -> str:
    return item[1:-1] if len(item) >= 2 and item[0] == item[-1] and item[0] in "'\"" else item


def _numbers(text: str) -> list[Fraction]:
    if any(_DECIMAL.fullmatch(item) is None for item in _items(text)):
        raise Unreadable("no list of numbers")
    return [Fraction(item) for item in _items(text)]


def _factors(text: str) -> list[int]:
    pieces = [piece.strip() for piece in re.split(r"[×x*·]|\\times|\\cdot", text)]
    if not all(piece.isascii() and piece.isdigit() for piece in pieces):
        raise Unreadable("no product of integers")
    return sorted(int(piece) for piece in pieces)


def read_json(text: str) -> Any:
    """A JSON value; raises Unreadable for anything else, NaN and infinity included."""
    try:
        return json.loads(text, parse_constant=_unreadable)
    except (ValueError, RecursionError):
        raise Unreadable("no JSON") from None


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _lists(text: str) -> list[list[str]]:
    value = read_json(text)
    if not isinstance(value, list) or not all(
        isinstance(entry, list) and all(isinstance(item, str) for item in entry) for entry in value
    ):
        raise Unreadable("no JSON list of lists of strings")
    return value
