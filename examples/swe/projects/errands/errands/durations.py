"""Durations as people write them: "1h 30m", "2d", "45"."""

from __future__ import annotations

import re

MINUTES = {"d": 24 * 60, "h": 60, "m": 1}
_PART = re.compile(r"(\d+)\s*([dhm])?\s*")


def parse_duration(text: str) -> int:
    """Minutes. Units go from large to small, each once; a last number without a unit is minutes.

    Raises ValueError.
    """
    rest = text.strip().lower()
    if not rest:
        raise ValueError("an empty text is no duration")
    total = 0
    smallest = 10 * MINUTES["d"]
    while rest:
        match = _PART.match(rest)
        size = MINUTES[match[2] or "m"] if match else smallest
        if match is None or size >= smallest:
            raise ValueError(f"not a duration: {text!r}")
        total += int(match[1]) * size
        smallest = size
        rest = rest[match.end() :]
    return total


def show_duration(minutes: int) -> str:
    """The shortest text that `parse_duration` reads as `minutes`: units whose number is 0 are left out."""
    if minutes < 0:
        raise ValueError(f"a duration is not negative: {minutes}")
    parts: list[str] = []
    for unit, size in MINUTES.items():
        count, minutes = divmod(minutes, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0m"
