r"""The unit, currency or counted thing that a quantity ends with: `5\text{ cm}^2`, `\$5`, `60 miles per hour`.

Units are names here and are never converted: a reference of 5 cm says which unit was asked for, so 50 mm is another
answer, and so is 5 m. A unit that only one side has does not count, nor does a word that no table knows (`5 apples`).
"""

from __future__ import annotations

import re
from functools import lru_cache

_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "dm": "decimeter decimetre", "m": "meter metre",
    "km": "kilometer kilometre", "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "mg": "milligram", "g": "gram", "kg": "kilogram kilo", "t": "ton tonne", "oz": "ounce", "lb": "pound lbs",
    "ms": "millisecond", "s": "second sec secs", "min": "minute mins", "h": "hour hr hrs", "day": "d", "week": "",
    "month": "", "year": "yr yrs", "ml": "milliliter millilitre cc", "l": "liter litre", "gal": "gallon",
    "dollar": "usd", "cent": "", "euro": "eur", "rad": "radian", "n": "newton", "j": "joule", "w": "watt", "v": "volt",
    "hz": "hertz", "pa": "pascal", "k": "kelvin", "mol": "mole",
}  # fmt: skip
_CANONICAL = {
    spelling: name
    for name, others in _NAMES.items()
    for word in (name, *others.split())
    for spelling in ((word, f"{word}s") if len(word) > 2 else (word,))
}
_SIGNS = {r"\$": "dollar", "$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}
_WHOLE = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "kmph": "km/h", "fps": "ft/s"}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
"""Words that are part of the number."""
_MEANINGFUL = (
    "or and not to between minus plus times negative than least most over half no never from if per "
    "percent approximately about more less except but nor is into out with without"
)

_WORD = r"[A-Za-z]+(?:\.(?=\s|$|[A-Za-z]))?"
_TAIL = re.compile(
    rf"\s*(?:\\text\s*\{{(?P<text>[^{{}}]*)\}}|\\frac\s*\{{\s*\\text\s*\{{(?P<over>[^{{}}]*)\}}\s*\}}\s*"
    rf"\{{\s*\\text\s*\{{(?P<under>[^{{}}]*)\}}\s*\}}|(?<=[\d\s}}])(?P<plain>{_WORD}(?:[ /]{_WORD}){{0,4}}))"
    r"\s*(?:\^\s*\{?\s*(?P<power>-?\d)\s*\}?)?\s*\.?\s*$"
)
_MONEY_BEFORE = re.compile(r"(?P<minus>-?)\s*(?P<sign>\\?\$|[€£¥])\s*(?P<amount>[-+\d.\\{(].*)")
_MONEY_AFTER = re.compile(r"(?P<amount>.*[\d})])\s*(?P<sign>\\?\$|[€£¥])")
_DEGREES = re.compile(r"(?P<rest>.+?)\s*\^\s*\\circ\s*(?P<scale>\\text\s*\{\s*[CFK]\s*\}|[CFK])?\s*$")

_FUNCTION = re.compile(r"\\[a-z]*(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")  # its degrees are no unit of its value


@lru_cache(maxsize=8192)
def split_unit(latex: str) -> tuple[str, str]:
    r"""(what stands before the unit, the unit's canonical name).

    The name is "" where there is none, or only words that are no known unit; words that may carry meaning, such as
    `\text{or}`, are left where they are.

    Example: `5\,\text{square centimetres}` gives ("5", "cm^2"), `5 apples` gives ("5", ""), `x` gives ("x", "").
    """
    if match := _MONEY_BEFORE.fullmatch(latex):
        amount, unit = split_unit(match["amount"])
        return match["minus"] + amount, unit or _SIGNS[match["sign"]]
    if match := _MONEY_AFTER.fullmatch(latex):
        return match["amount"], _SIGNS[match["sign"]]
    if (match := _DEGREES.fullmatch(latex)) and not _FUNCTION.search(match["rest"]):
        scale = re.sub(r"\\text|[\s{}]", "", match["scale"] or "")
        return match["rest"].strip(), f"degree {scale}".strip()
    match = _TAIL.search(latex)
    if match is None or not re.search(r"[\d})]\s*$|\\pi\s*$", latex[: match.start()]):
        return latex, ""
    name = _unit(match)
    return (latex, "") if name is None else (latex[: match.start()].strip(), name)


def units_differ(ours: str, theirs: str) -> bool:
    """Whether both sides name a unit, and not the same."""
    return bool(ours and theirs and ours != theirs)


def _unit(match: re.Match[str]) -> str | None:
    """The canonical name; "" if it is no unit; None if the words must stay."""
    if match["over"] is not None:
        words = f"{match['over']}/{match['under']}"
    else:
        words = match["text"] if match["text"] is not None else match["plain"]
    words = " ".join(words.replace(".", " ").lower().split())
    if words in ("degrees", "degree"):
        return "degree"
    if match["plain"] is not None and not _is_no_product(match["plain"], match.string[: match.start("plain")]):
        return None
    name = _named(words, match["power"] or "")
    if name:
        return name
    bare = set(re.findall(r"[^\W\d_]+", words))
    if match["plain"] is not None and not all(len(word) > 2 for word in bare):
        return None  # `5 xy mod z` is mathematics
    if bare & {*_MEANINGFUL.split(), *SCALES} or re.search(r"[^\w\s'/-]|\d", words):
        return None
    return ""


def _is_no_product(words: str, before: str) -> bool:
    """`5 m` and `5cm` are quantities; `3m`, `2ab` and `5 xy` are products of variables."""
    if len(words) == 1 or words.lower() in ("ms", "in", "pa"):
        return before.endswith(" ") and words in _CANONICAL
    return len(words) > 2 or words.lower() in _CANONICAL


def _named(words: str, power: str) -> str:
    """`square centimetres`, `cm` with the power 2 and `sq cm` are cm^2; "" if a part is unknown."""
    if words in _WHOLE:
        return _WHOLE[words]
    over, *under = re.split(r"\s*/\s*|\s+per\s+", words)
    parts = [_factor(over, "" if under else power), *(_factor(part, power) for part in under)]
    return "/".join(parts) if all(parts) else ""


def _factor(words: str, power: str) -> str:
    for prefix, exponent in (("square ", "2"), ("sq ", "2"), ("cubic ", "3"), ("cu ", "3")):
        if words.startswith(prefix):
            words, power = words[len(prefix) :], exponent
    for suffix, exponent in ((" squared", "2"), (" cubed", "3")):
        if words.endswith(suffix):
            words, power = words[: -len(suffix)], exponent
    name = _CANONICAL.get(words, "")
    return f"{name}^{power}" if name and power not in ("", "1") else name
