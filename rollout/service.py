"""The driver's side of sampling: draws prompts, judges what comes back, and keeps the cursor of a run.

Synchronous (max_staleness 0): groups are drawn in waves, a wave is finished before the next is drawn, and nothing is
under way when new weights are published. So a run is reproducible: who gets which group does not depend on timing.
Asynchronous: workers always have `max_staleness` steps' worth of groups ahead of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cispo.protocols import PromptSource, State
from cispo.schedule import Schedule, value_at
from cispo.types import Group, Harvest, Prompt
from rollout.buffer import Intake
from rollout.seeding import stable_rng
from rollout.worker import Finished, GroupRequest
from rollout.worker_pool import RolloutConfig, WorkerHandle, WorkerPool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """What makes the requests of a run: how many samples of each prompt, how long, from which seed."""

    seed: int
    group_size: int
    max_new_tokens: Schedule
    max_staleness: int = 0


class RolloutService:
    """Implements the RolloutSource protocol over workers."""

    def __init__(
        self, workers: Sequence[WorkerHandle], prompts: PromptSource, draw: Draw, config: RolloutConfig
    ) -> None:
        self.prompts = prompts
        self.draw = draw
        self.config = config
        self._pool = WorkerPool(workers, config)
        self._next_index = 0
        self._version = 0
        self._again: list[tuple[int, Prompt]] = []
        self._under_way: dict[int, GroupRequest] = {}
        self._ready: list[Group] = []
        self._num_failed = 0

    def take(self, num_groups: int, *, oldest_version: int, keep: Callable[[Group], bool]) -> Harvest:
        """See RolloutSource.take."""
        intake = Intake(num_groups, oldest_version=oldest_version, keep=keep, draw_limit=self.config.draw_limit)
        run_ahead = num_groups * self.draw.max_staleness
        while True:
            self._fill(intake)
            if run_ahead or not self._under_way:
                self._draw(intake.missing + run_ahead - len(self._under_way) - len(self._ready))
            if not intake.missing:
                self._pool.keep_busy()  # what is drawn ahead is sampled while the learner learns
                return intake.harvest()
            self._gather(self._pool.wait())

    def sample(self, prompts: Sequence[Prompt], *, num_samples: int, greedy: bool) -> list[Group]:
        """See RolloutSource.sample. Negative indices keep these groups apart from the training stream."""
        requests = [
            GroupRequest(
                index=-1 - i,
                prompt=prompt,
                num_samples=num_samples,
                seed=self._seed("eval", prompt.id),
                max_new_tokens=self._window,
                greedy=greedy,
            )
            for i, prompt in enumerate(prompts)
        ]
        self._pool.submit(requests)
        groups: dict[int, Group] = {}
        failed: dict[int, str] = {}
        while len(groups) + len(failed) < len(requests):
            finished = self._pool.wait()
            groups |= {group.index: group for group in finished.groups if group.index < 0}
            failed |= {index: reason for index, reason in finished.failed.items() if index < 0}
            self._gather(finished)
        for index, reason in failed.items():
            log.warning("prompt %s could not be evaluated: %s", prompts[-1 - index].id, reason)
        return [groups[request.index] for request in requests if request.index in groups]

    def load_weights(self, package: Any, version: int) -> Sequence[Any]:
        """See RolloutSource.load_weights."""
        said = self._pool.load_weights(package, version)
        self._version = version
        return said

    def state(self) -> State:
        """The cursor, and every prompt that was drawn but not taken: it will be sampled again, under its old index."""
        untaken = [(request.index, request.prompt) for request in self._under_way.values()]
        untaken += [(group.index, group.prompt) for group in self._ready] + self._again
        return {
            "prompts": self.prompts.state(),
            "next_index": self._next_index,
            "again": [[index, asdict(prompt)] for index, prompt in sorted(untaken, key=lambda entry: entry[0])],
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        self.prompts.restore(state["prompts"])
        self._next_index = int(state["next_index"])
        self._again = [
            (int(index), Prompt(**(prompt | {"token_ids": tuple(prompt["token_ids"])})))
            for index, prompt in state["again"]
        ]

    @property
    def _window(self) -> int:
        return int(value_at(self.draw.max_new_tokens, self._version))

    def _seed(self, *parts: str | int) -> int:
        return stable_rng("rollout", self.draw.seed, *parts).getrandbits(63)

    def _fill(self, intake: Intake) -> None:
        """Give the intake what is ready, oldest draw first, until it has enough; the rest waits for the next step."""
        self._num_failed, num_failed = 0, self._num_failed
        intake.add([], num_failed)
        self._ready.sort(key=lambda group: group.index)
        while self._ready and intake.missing:
            intake.add([self._ready.pop(0)], 0)

    def _draw(self, count: int) -> None:
        requests = []
        for _ in range(count):
            index, prompt = self._again.pop(0) if self._again else self._next()
            requests.append(GroupRequest(index, prompt, self.draw.group_size, self._seed("train", index), self._window))
        self._under_way |= {request.index: request for request in requests}
        self._pool.submit(requests)

    def _next(self) -> tuple[int, Prompt]:
        self._next_index += 1
        return self._next_index - 1, self.prompts.next()

    def _gather(self, finished: Finished) -> None:
        """Take in what belongs to the training stream (indices from 0)."""
        for group in finished.groups:
            if group.index >= 0:
                del self._under_way[group.index]
                self._ready.append(group)
        for index, reason in finished.failed.items():
            if index >= 0:
                log.warning("prompt %s came to nothing: %s", self._under_way.pop(index).prompt.id, reason)
                self._num_failed += 1
