"""How well a cache does."""

from __future__ import annotations

from collections import Counter


class Stats:
    """Counts hits, misses and evictions by their reason."""

    def __init__(self) -> None:
        self._hits = 0
        self._misses = 0
        self._evictions: Counter[str] = Counter()

    def hit(self) -> None:
        """A value was found."""
        self._hits += 1

    def miss(self) -> None:
        """A value was not found."""
        self._misses += 1

    def evicted(self, why: str) -> None:
        """An entry had to go."""
        self._evictions[why] += 1

    @property
    def hit_rate(self) -> float:
        """The share of look-ups that found something; 0 before the first."""
        asked = self._hits + self._misses
        return self._hits / asked if asked else 0.0

    def summary(self) -> dict[str, int]:
        """All counts by name."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "capacity": self._evictions["capacity"],
            "expired": self._evictions["expired"],
        }

    def reset(self) -> None:
        """Begin to count anew."""
        self._hits = self._misses = 0
        self._evictions.clear()
