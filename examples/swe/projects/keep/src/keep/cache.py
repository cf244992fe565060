"""The cache: least recently used entries go first, and entries have a time to live."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from keep.stats import Stats

Clock = Callable[[], float]
Evicted = Callable[[Hashable, Any, str], None]


class _Entry(NamedTuple):
    value: Any
    expires: float | None
    weight: int


class Cache:
    """A mapping that holds at most `capacity` by weight.

    Args:
        capacity: the sum of all weights is never more.
        ttl: seconds that an entry lives unless `put` says otherwise; None is for ever.
        clock: tells the time in seconds.
        on_evict: called with key, value and "capacity" or "expired" for each entry that had to go. What is deleted or
            replaced by its owner is not reported.
    """

    def __init__(
        self,
        capacity: int = 128,
        ttl: float | None = None,
        clock: Clock = time.monotonic,
        on_evict: Evicted | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a cache needs room for something, got a capacity of {capacity}")
        if ttl is not None and ttl <= 0:
            raise ValueError(f"entries need some time to live, got {ttl}")
        self.stats = Stats()
        self._capacity = capacity
        self._ttl = ttl
        self._clock = clock
        self._on_evict = on_evict
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()  # the least recently used first
        self._weight = 0

    def put(self, key: Hashable, value: Any, ttl: float | None = None, weight: int = 1) -> bool:
        """Keep `value`, and say whether there was room: an entry heavier than the capacity is not kept.

        An entry of the same key is replaced in any case. Entries that have expired go before any that have not.
        """
        if weight < 1:
            raise ValueError(f"a weight is at least 1, got {weight}")
        self.delete(key)
        if weight > self._capacity:
            return False
        if self._weight + weight > self._capacity:
            self.expire()
        while self._weight + weight > self._capacity:
            self._evict(next(iter(self._entries)), "capacity")
        ttl = self._ttl if ttl is None else ttl
        expires = None if ttl is None else self._clock() + ttl
        self._entries[key] = _Entry(value, expires, weight)
        self._weight += weight
        return True

    def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of `key`, which thereby is the most recently used; `default` if there is none."""
        if not self.has(key):
            self.stats.miss()
            return default
        self.stats.hit()
        self._entries.move_to_end(key)
        return self._entries[key].value

    def has(self, key: Hashable) -> bool:
        """Whether there is a living entry. It does not count as a use."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        if self._is_over(entry):
            self._evict(key, "expired")
            return False
        return True

    def delete(self, key: Hashable) -> bool:
        """Forget `key`, and say whether there was anything to forget."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._weight -= entry.weight
        return not self._is_over(entry)

    def touch(self, key: Hashable, ttl: float | None = None) -> bool:
        """Let a living entry live for a full `ttl` (default: the cache's) from now on; False if there is none."""
        if not self.has(key):
            return False
        ttl = self._ttl if ttl is None else ttl
        expires = None if ttl is None else self._clock() + ttl
        self._entries[key] = self._entries[key]._replace(expires=expires)
        self._entries.move_to_end(key)
        return True

    def expire(self) -> int:
        """Let go of all entries whose time is over; how many they were."""
        gone = [key for key, entry in self._entries.items() if self._is_over(entry)]
        for key in gone:
            self._evict(key, "expired")
        return len(gone)

    def keys(self) -> list[Hashable]:
        """The keys of living entries, the least recently used first."""
        return [key for key, entry in self._entries.items() if not self._is_over(entry)]

    def clear(self) -> None:
        """Forget everything, and report nothing."""
        self._entries.clear()
        self._weight = 0

    @property
    def weight(self) -> int:
        """The sum of the weights of living entries."""
        return sum(entry.weight for entry in self._entries.values() if not self._is_over(entry))

    def __len__(self) -> int:
        return len(self.keys())

    def _is_over(self, entry: _Entry) -> bool:
        return entry.expires is not None and entry.expires <= self._clock()

    def _evict(self, key: Hashable, why: str) -> None:
        entry = self._entries.pop(key)
        self._weight -= entry.weight
        self.stats.evicted(why)
        if self._on_evict is not None:
            self._on_evict(key, entry.value, why)
