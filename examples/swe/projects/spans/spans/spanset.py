"""The set itself: a sorted list of spans that neither overlap nor touch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Number = int | float
Pair = tuple[Number, Number]


class SpanSet:
    """An immutable set of numbers, held as half-open spans."""

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._pairs = _merged(pairs)

    def pairs(self) -> list[Pair]:
        """The spans in order, as (low, high)."""
        return list(self._pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpanSet) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(tuple(self._pairs))

    def __repr__(self) -> str:
        return f"SpanSet({self._pairs!r})"

    def measure(self) -> Number:
        """The length of all spans together."""
        return sum(high - low for low, high in self._pairs)

    def bounds(self) -> Pair | None:
        """The smallest span that covers the set; None if it is empty."""
        if not self._pairs:
            return None
        return self._pairs[0][0], self._pairs[-1][1]

    def holds(self, number: Number) -> bool:
        """Whether `number` is in one of the spans."""
        index = bisect_right(self._pairs, number, key=lambda pair: pair[0]) - 1
        return index >= 0 and number < self._pairs[index][1]

    def covers(self, low: Number, high: Number) -> bool:
        """Whether one span holds everything from `low` up to `high`; an empty span is covered by any set."""
        if low >= high:
            return True
        index = bisect_right(self._pairs, low, key=lambda pair: pair[0]) - 1
        return index >= 0 and high <= self._pairs[index][1]

    def union(self, *others: SpanSet) -> SpanSet:
        """What is in this set or in any of the others."""
        pairs = list(self._pairs)
        for other in others:
            pairs.extend(other)
        return SpanSet(pairs)

    def intersect(self, other: SpanSet) -> SpanSet:
        """What is in both sets."""
        found: list[Pair] = []
        mine, theirs = self._pairs, other._pairs
        i = j = 0
        while i < len(mine) and j < len(theirs):
            low = max(mine[i][0], theirs[j][0])
            high = min(mine[i][1], theirs[j][1])
            if low < high:
                found.append((low, high))
            if mine[i][1] < theirs[j][1]:
                i += 1
            else:
                j += 1
        return SpanSet(found)

    def complement(self, low: Number, high: Number) -> SpanSet:
        """What is between `low` and `high` but not in this set."""
        gaps: list[Pair] = []
        start = low
        for left, right in self._pairs:
            if right <= start:
                continue
            if left >= high:
                break
            if left > start:
                gaps.append((start, left))
            start = right
        if start < high:
            gaps.append((start, high))
        return SpanSet(gaps)

    def subtract(self, other: SpanSet) -> SpanSet:
        """What is in this set but not in the other."""
        bounds = self.bounds()
        if bounds is None:
            return self
        return self.intersect(other.complement(*bounds))

    def shift(self, distance: Number) -> SpanSet:
        """The set moved by `distance`."""
        return SpanSet((low + distance, high + distance) for low, high in self._pairs)

    def grow(self, before: Number, after: Number | None = None) -> SpanSet:
        """Every span made longer at both ends; negative numbers shorten, and what has no length left goes.

        Without `after` both ends move by `before`.
        """
        after = before if after is None else after
        grown = ((low - before, high + after) for low, high in self._pairs)
        return SpanSet(pair for pair in grown if pair[0] < pair[1])


def _merged(pairs: Iterable[Pair]) -> list[Pair]:
    """Sorted, without empty spans; those that overlap or touch are joined.

    Raises ValueError for a span whose ends are the wrong way round.
    """
    merged: list[Pair] = []
    for low, high in sorted(pairs):
        if high < low:
            raise ValueError(f"a span must not end before it begins: {low}-{high}")
        if low == high:
            continue
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged
