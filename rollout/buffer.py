"""What is kept of the groups that come in for one step, and why the rest is not.

Groups are judged in the order in which their prompts were drawn, not in which they finish: so the same run keeps the
same groups whichever worker was faster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

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

    def drop_unfinished(self, num_stale: int) -> None:
        """So many groups were given up before they were finished, because they would have been too old."""
        self._dropped["stale"] += num_stale

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


def may_be_taken(
    version: int, num_by_version: Mapping[int, int], *, oldest_version: int, num_missing: int, groups_per_step: int
) -> bool:
    """Whether a step may take a group of `version` now, and every other can still be taken before it is too old.

    A group of version v has to be taken by the step whose oldest allowed version is v. So of all that are older than
    some bound j steps ahead, at most j steps' worth may be left when this step is over; and if as many must go now as
    this step still has room for, then one that could wait has to. Groups are taken in any order but for this: a long
    trace holds up nobody until it is about to be lost, and none is.

    Args:
        version: of the oldest token of the group.
        num_by_version: how many groups of each version were drawn and not taken, finished or under way, this one
            included.
        oldest_version: the oldest allowed in this step.
        num_missing: groups that this step still wants.
        groups_per_step: what one step takes.
    """
    num_due = sum(num for v, num in num_by_version.items() if v < oldest_version)
    for ahead in range(max(0, version - oldest_version)):
        num_due += num_by_version.get(oldest_version + ahead, 0)
        if num_due - ahead * groups_per_step >= num_missing:
            return False
    return True
