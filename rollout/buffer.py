"""What is kept of the groups that come in for one step, and why the rest is not.

Groups are judged in the order in which their prompts were drawn, not in which they finish: so the same run keeps the
same groups whichever worker was faster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from cispo.types import Group, Harvest


class Intake:
    """Collects the groups of one step until there are enough, or the draw limit is reached."""

    def __init__(
        self, num_groups: int, *, oldest_version: int, keep: Callable[[Group], bool], draw_limit: float
    ) -> None:
        self.num_groups = num_groups
        self.oldest_version = oldest_version
        self.keep = keep
        self.max_drawn = max(num_groups, math.floor(num_groups * draw_limit))
        self._kept: list[Group] = []
        self._seen: list[Group] = []
        self._dropped: Counter[str] = Counter()

    def add(self, finished: list[Group], num_failed: int) -> None:
        """Judge finished groups; `num_failed` more were drawn but came to nothing."""
        self._dropped["failed"] += num_failed
        for group in sorted(finished, key=lambda group: group.index):
            self._seen.append(group)
            reason = self._reason_to_drop(group)
            if reason:
                self._dropped[reason] += 1
            else:
                self._kept.append(group)

    def _reason_to_drop(self, group: Group) -> str:
        if sum(score.usable for score in group.scores) < 2:
            return "failed"
        if group.oldest_version < self.oldest_version:
            return "stale"
        return "" if self.keep(group) else "flat"

    @property
    def num_drawn(self) -> int:
        """Groups judged so far."""
        return len(self._kept) + self._dropped.total()

    @property
    def missing(self) -> int:
        """How many more groups to draw: what is still wanted, within the draw limit."""
        return max(0, min(self.num_groups - len(self._kept), self.max_drawn - self.num_drawn))

    def harvest(self) -> Harvest:
        """What came in, groups in the order of their draw."""
        return Harvest(
            groups=tuple(sorted(self._kept, key=lambda group: group.index)),
            dropped={reason: count for reason, count in self._dropped.items() if count},
            drawn=self.num_drawn,
            seen=tuple(sorted(self._seen, key=lambda group: group.index)),
        )
