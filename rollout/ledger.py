"""Every group of a run that was drawn and not yet taken: nothing is lost, and nothing is taken twice.

An index is drawn once. From then on it is in exactly one of four places until a step takes it or it comes to nothing:
waiting to be sampled (again), under way, or finished and ready; and each move is a method here.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from cispo.protocols import PromptSource
from cispo.types import Group, Prompt
from rollout.requests import Begun


@dataclass(frozen=True)
class Entry:
    """One drawn group: its place in the sequence of draws, its prompt, and what there is of it so far.

    Attributes:
        index, prompt: what was drawn.
        version: of its oldest token, or of the weights when it was given to a worker; None if it was not begun.
        begun: what was sampled of it before.
        group: the finished group.
    """

    index: int
    prompt: Prompt
    version: int | None = None
    begun: Begun | None = None
    group: Group | None = None


class Ledger:
    """See the head of the file."""

    def __init__(self, prompts: PromptSource) -> None:
        self.prompts = prompts
        self.next_index = 0
        self._waiting: list[Entry] = []
        self._under_way: dict[int, Entry] = {}
        self._ready: dict[int, Entry] = {}
        self._ready_order: list[tuple[int, int]] = []  # a heap of (version, index)
        self.num_by_version: Counter[int] = Counter()  # of those that were begun

    @property
    def num_under_way(self) -> int:
        """Groups that workers have."""
        return len(self._under_way)

    @property
    def num_waiting(self) -> int:
        """Groups that were drawn before a resume and wait to be sampled on."""
        return len(self._waiting)

    @property
    def num_ready(self) -> int:
        """Finished groups that no step has taken."""
        return len(self._ready)

    def is_under_way(self, index: int) -> bool:
        """A worker has it."""
        return index in self._under_way

    def oldest_ready(self) -> Group | None:
        """Of the finished groups of the oldest version the one that was drawn first."""
        return self._ready[self._ready_order[0][1]].group if self._ready_order else None

    def draw(self, version: int) -> Entry:
        """The next group to sample, under way from now on, with the weights of `version`."""
        if self._waiting:
            entry = self._waiting.pop(0)
        else:
            entry = Entry(self.next_index, self.prompts.next())
            self.next_index += 1
        if entry.version is None:
            entry = Entry(entry.index, entry.prompt, version, entry.begun)
            self.num_by_version[version] += 1
        self._under_way[entry.index] = entry
        return entry

    def finish(self, group: Group) -> None:
        """A worker has finished the group."""
        entry = self._leave(self._under_way, group.index)
        self._put(Entry(group.index, entry.prompt, group.oldest_version, group=group))

    def fail(self, index: int) -> Entry:
        """A group under way came to nothing."""
        return self._leave(self._under_way, index)

    def take(self, index: int) -> None:
        """A step has taken the group that `oldest_ready` offered, or dropped it."""
        if not self._ready_order or self._ready_order[0][1] != index:
            raise KeyError(index)
        heapq.heappop(self._ready_order)
        self._leave(self._ready, index)

    def overdue(self, oldest_version: int) -> list[int]:
        """Those under way that a step which allows `oldest_version` could not take."""
        return [
            index
            for index, entry in self._under_way.items()
            if entry.version is not None and entry.version < oldest_version
        ]

    def untaken(self, begun: dict[int, Begun]) -> list[Entry]:
        """All of them in the order of their draw, those under way with what there is of them."""
        under_way = [
            Entry(entry.index, entry.prompt, entry.version if entry.index in begun else None, begun.get(entry.index))
            for entry in self._under_way.values()
        ]
        return sorted([*self._waiting, *under_way, *self._ready.values()], key=lambda entry: entry.index)

    def restore(self, next_index: int, untaken: list[Entry]) -> None:
        """Go on where `untaken` was taken; those that were under way wait to be sampled on."""
        self.next_index = next_index
        self._waiting = [entry for entry in untaken if entry.group is None]
        self._under_way, self._ready, self._ready_order, self.num_by_version = {}, {}, [], Counter()
        # Those that were begun have an age from the first step on, whether a worker has them already or not.
        self.num_by_version.update(entry.version for entry in self._waiting if entry.version is not None)
        for entry in untaken:
            if entry.group is not None:
                self._put(entry)

    def _put(self, entry: Entry) -> None:
        assert entry.version is not None
        self._ready[entry.index] = entry
        heapq.heappush(self._ready_order, (entry.version, entry.index))
        self.num_by_version[entry.version] += 1

    def _leave(self, place: dict[int, Entry], index: int) -> Entry:
        entry = place.pop(index)
        if entry.version is not None:
            self.num_by_version[entry.version] -= 1
        return entry
