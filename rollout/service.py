"""The driver's side of sampling: draws prompts, spreads groups over workers, gathers what comes back, survives deaths.

Synchronous (max_staleness 0): groups are drawn in waves, a wave is finished before the next is drawn, and nothing is
under way when new weights are published. So a run is reproducible: who gets which group does not depend on timing.
Asynchronous: workers always have `max_staleness` steps' worth of groups ahead of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cispo.errors import ConfigError, DeadlineExceeded, WorkerDied
from cispo.protocols import PromptSource, State
from cispo.schedule import Schedule, value_at
from cispo.types import Group, Harvest, Prompt
from rollout.buffer import Intake
from rollout.seeding import stable_rng
from rollout.worker import Finished, GroupRequest, window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutConfig:
    """How the driver deals with its workers.

    Attributes:
        draw_limit: groups drawn for one step, at most, as a multiple of groups_per_step; 1 never draws a second time.
        deadline_seconds: how long the driver waits for a sign of progress from any worker.
        max_restarts: workers restarted in one run before it is stopped.
        advance_seconds: how long a worker works before it reports; short enough to be told of new weights soon.
    """

    draw_limit: float = 4.0
    deadline_seconds: float = 600.0
    max_restarts: int = 8
    advance_seconds: float = 1.0

    def __post_init__(self) -> None:
        if (
            self.draw_limit < 1.0
            or self.deadline_seconds <= 0.0
            or self.advance_seconds <= 0.0
            or self.max_restarts < 0
        ):
            raise ConfigError(
                f"rollout needs draw_limit >= 1, positive deadline_seconds and advance_seconds and max_restarts >= 0; "
                f"got {self.draw_limit:g}, {self.deadline_seconds:g}, {self.advance_seconds:g} and {self.max_restarts}."
            )


class WorkerHandle(Protocol):
    """A RolloutWorker, wherever it lives."""

    name: str

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the worker. The future raises WorkerDied if its process is gone."""

    def restart(self) -> None:
        """Start the worker anew, without weights and without requests."""


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
        self._pool = _WorkerPool(workers, config)
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

    def load_weights(self, package: Any, version: int) -> None:
        """See RolloutSource.load_weights."""
        self._pool.load_weights(package, version)
        self._version = version

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
        return window(value_at(self.draw.max_new_tokens, self._version))

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


class _WorkerPool:
    """The workers with what each has to do: dispatch, waiting with a deadline, recovery of the dead."""

    def __init__(self, workers: Sequence[WorkerHandle], config: RolloutConfig) -> None:
        self._workers = list(workers)
        self._config = config
        self._assigned: dict[str, dict[int, GroupRequest]] = {worker.name: {} for worker in workers}
        self._calls: dict[str, Future[Finished]] = {}
        self._weights: tuple[Any, int] | None = None
        self._num_restarts = 0

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Each request to the worker with the fewest groups."""
        batches: dict[str, list[GroupRequest]] = {worker.name: [] for worker in self._workers}
        for request in requests:
            name = min(self._assigned, key=lambda n: len(self._assigned[n]))
            self._assigned[name][request.index] = request
            batches[name].append(request)
        for worker in self._workers:
            if batches[worker.name]:
                self._reliably(worker, "submit", batches[worker.name])

    def wait(self) -> Finished:
        """What any worker finishes next. Raises DeadlineExceeded when none shows progress in time."""
        end = time.monotonic() + self._config.deadline_seconds
        while time.monotonic() < end:
            self._keep_busy()
            done, _ = wait(self._calls.values(), timeout=end - time.monotonic(), return_when=FIRST_COMPLETED)
            finished = self._merge([worker for worker in self._workers if self._calls.get(worker.name) in done])
            if finished.groups or finished.failed:
                return finished
            if finished.num_steps:
                end = time.monotonic() + self._config.deadline_seconds
        busy = {name: len(requests) for name, requests in self._assigned.items() if requests}
        raise DeadlineExceeded(
            f"the driver waited {self._config.deadline_seconds:g} s for rollouts and saw no progress; under way: "
            f"{_listed(busy)}. Look at those workers' logs; raise rollout.deadline_seconds if the work is that slow."
        )

    def load_weights(self, package: Any, version: int) -> None:
        """All workers take the weights, or the first error is raised."""
        self._weights = (package, version)
        calls = [(worker, worker.call("load_weights", package, version)) for worker in self._workers]
        for worker, call in calls:
            try:
                call.result(timeout=self._config.deadline_seconds)
            except WorkerDied as error:
                self._recover(worker, error)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"the driver waited {self._config.deadline_seconds:g} s for {worker.name} to load the weights of "
                    f"version {version}; look at its log, or raise rollout.deadline_seconds."
                ) from error

    def _keep_busy(self) -> None:
        for worker in self._workers:
            if self._assigned[worker.name] and worker.name not in self._calls:
                self._calls[worker.name] = worker.call("advance", self._config.advance_seconds)

    def _merge(self, answered: Sequence[WorkerHandle]) -> Finished:
        groups: list[Group] = []
        failed: dict[int, str] = {}
        num_steps = 0
        for worker in answered:
            try:
                finished = self._calls.pop(worker.name).result()
            except WorkerDied as error:
                self._recover(worker, error)
                continue
            groups += finished.groups
            failed |= finished.failed
            num_steps += finished.num_steps
            for index in [*(group.index for group in finished.groups), *finished.failed]:
                del self._assigned[worker.name][index]
        return Finished(tuple(groups), failed, num_steps)

    def _reliably(self, worker: WorkerHandle, method: str, *arguments: Any) -> None:
        """Call and wait; a death is mended, which repeats whatever the worker had to do."""
        try:
            worker.call(method, *arguments).result(timeout=self._config.deadline_seconds)
        except WorkerDied as error:
            self._recover(worker, error)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the driver waited {self._config.deadline_seconds:g} s for {worker.name} to answer {method!r}; look "
                f"at its log, or raise rollout.deadline_seconds if the work is that slow."
            ) from error

    def _recover(self, worker: WorkerHandle, error: WorkerDied) -> None:
        """Restart a dead worker with the last weights and the groups it had; the same seeds give the same groups."""
        self._num_restarts += 1
        if self._num_restarts > self._config.max_restarts:
            raise WorkerDied(
                f"{error} That was death number {self._num_restarts} of a worker in this run and "
                f"rollout.max_restarts is {self._config.max_restarts}; resume the run once the cause is mended."
            ) from error
        requests = sorted(self._assigned[worker.name].values(), key=lambda request: request.index)
        log.warning("%s It is restarted; %d groups that it had are sampled again.", error, len(requests))
        self._calls.pop(worker.name, None)
        worker.restart()
        if self._weights:
            self._reliably(worker, "load_weights", *self._weights)
        if requests:
            self._reliably(worker, "submit", requests)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} with {count} groups" for name, count in counts.items()) or "nothing"
