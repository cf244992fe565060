"""Looking for room: where something of a given length fits between what is taken."""

from __future__ import annotations

from collections.abc import Iterator

from spans.spanset import Number, Pair, SpanSet


def free_slots(opened: SpanSet, taken: SpanSet, length: Number, step: Number | None = None) -> list[Pair]:
    """All slots of `length` that lie in `opened` and touch nothing of `taken`.

    Slots begin at the start of a free span and then every `step` (default: `length`, so they do not overlap).
    """
    if length <= 0:
        raise ValueError(f"a slot needs a positive length, got {length}")
    step = length if step is None else step
    if step <= 0:
        raise ValueError(f"the step between slots must be positive, got {step}")
    return [slot for span in opened.subtract(taken) for slot in _slots_of(span, length, step)]


def _slots_of(span: Pair, length: Number, step: Number) -> Iterator[Pair]:
    start, end = span
    while start + length <= end:
        yield start, start + length
        start += step


def first_free(opened: SpanSet, taken: SpanSet, length: Number, earliest: Number | None = None) -> Pair | None:
    """The first slot of `length` that begins at `earliest` or later; None if there is none."""
    for low, high in opened.subtract(taken):
        start = low if earliest is None else max(low, earliest)
        if start + length <= high:
            return start, start + length
    return None
