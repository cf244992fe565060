"""Span sets as people write them: "1-3, 7, 9-12".

In text both ends count, as in page ranges: "1-3" is the pages 1, 2 and 3, the span (1, 4), and "7" is the span (7, 8).
Only whole numbers have a text. Negative ones are written in full: "-3--1" is (-3, 0).
"""

from __future__ import annotations

import re

from spans.spanset import Pair, SpanSet

_PART = re.compile(r"\s*(-?\d+)\s*(?:-\s*(-?\d+)\s*)?")


class SpanSyntaxError(ValueError):
    """A text that is no span set; `part` is the piece that cannot be read."""

    def __init__(self, part: str) -> None:
        super().__init__(f"not a number or a range: {part.strip()!r}")
        self.part = part.strip()


def parse(text: str) -> SpanSet:
    """The set that `text` names; "" is the empty set. Raises SpanSyntaxError."""
    if not text.strip():
        return SpanSet()
    return SpanSet(_pair(part) for part in text.split(","))


def _pair(part: str) -> Pair:
    match = _PART.fullmatch(part)
    if match is None:
        raise SpanSyntaxError(part)
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise SpanSyntaxError(part)
    return first, last + 1


def render(spans: SpanSet) -> str:
    """The text that `parse` reads as `spans`."""
    return ", ".join(_text(int(low), int(high)) for low, high in spans)


def _text(low: int, high: int) -> str:
    return str(low) if high - low == 1 else f"{low}-{high - 1}"
