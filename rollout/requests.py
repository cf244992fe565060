"""What the driver asks of a rollout worker, and what the worker answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cispo.protocols import ModelState
from cispo.types import Group, Prompt, Trajectory
from rollout.episode import EpisodeSoFar


@dataclass(frozen=True)
class Begun:
    """What a worker had of a group when it was asked: plain data, so another worker can go on with it.

    Attributes:
        trajectories: those that had ended, by member. They are scored again: a score is a function of them.
        state: the engine's snapshot of those in their first turn; None if there are none, or if it cannot make any.
        episodes: those in a later turn, or that wait for what their environment says.
    """

    trajectories: Mapping[int, Trajectory]
    state: ModelState | None
    episodes: Mapping[int, EpisodeSoFar] = field(default_factory=dict)

    def has_all(self, num_samples: int) -> bool:
        """False if some member is in none of them, because the engine could not save it."""
        saved = {*self.trajectories, *self.episodes}
        if self.state is not None:
            names = (name.split("/")[0] for name in self.state.arrays if name.endswith("/rules"))
            saved |= {*self.state.meta["fresh"], *map(int, names)}
        return len(saved) == num_samples


@dataclass(frozen=True)
class GroupRequest:
    """One prompt to be sampled `num_samples` times and scored; `index` is its place in the run's sequence of draws.

    Attributes:
        begun: a part of the work that was done before, elsewhere or in an earlier life of the run.
    """

    index: int
    prompt: Prompt
    num_samples: int
    seed: int
    max_new_tokens: int
    greedy: bool = False
    begun: Begun | None = None


@dataclass(frozen=True)
class Finished:
    """What a worker got done in one `advance`.

    Attributes:
        groups: complete and scored.
        failed: index of each group that came to nothing, with the reason.
        num_steps: decode steps made: a worker that makes none and finishes none is stuck.
        busy_seconds: how long it was sampling; the rest of the time it waited for scores or for work.
        num_left: trajectories that it still has to sample.
        num_unscored: trajectories that are sampled and whose reward is not there.
    """

    groups: tuple[Group, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    num_steps: int = 0
    busy_seconds: float = 0.0
    num_left: int = 0
    num_unscored: int = 0
