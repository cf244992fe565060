"""Cells into columns of equal width."""

from __future__ import annotations

import unicodedata

ELLIPSIS = "…"


def width(text: str) -> int:
    """How many places `text` takes on a screen: wide East Asian characters take two, combining ones none."""
    places = 0
    for character in text:
        if unicodedata.combining(character):
            continue
        places += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return places


def shorten(text: str, places: int) -> str:
    """`text` if it fits, else its beginning and an ellipsis, together at most `places` wide."""
    if width(text) <= places:
        return text
    if places < 1:
        return ""
    kept = ""
    for character in text:
        if width(kept + character) > places - 1:
            break
        kept += character
    return kept.rstrip() + ELLIPSIS


def align(text: str, places: int, side: str = "left") -> str:
    """`text` with spaces up to `places`, set to the left, right or center; longer text stays as it is.

    An odd space goes to the right of centered text.
    """
    missing = max(0, places - width(text))
    if side == "left":
        return text + " " * missing
    if side == "right":
        return " " * missing + text
    if side == "center":
        return " " * (missing // 2) + text + " " * (missing - missing // 2)
    raise ValueError(f"text is set left, right or center, not {side!r}")


def is_number(text: str) -> bool:
    """Whether a cell is a decimal number, such as 12, -0.5 or 1,234.5."""
    digits = text.strip().replace(",", "").removeprefix("-")
    whole, point, part = digits.partition(".")
    return whole.isdecimal() and (part.isdecimal() if point else True)


def number(text: str) -> float:
    """The value of such a cell."""
    return float(text.strip().replace(",", ""))
