"""The workers and what each has to do: dispatch, waiting with a deadline, recovery of the dead."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from cispo.errors import ConfigError, DeadlineExceeded, WorkerDied
from cispo.types import Group
from rollout.delivery import Delivery
from rollout.worker import Finished, GroupRequest

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


class WorkerPool:
    """Gives groups to workers and gathers what they finish."""

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
            self.keep_busy()
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

    def load_weights(self, package: Any, version: int) -> list[Any]:
        """All workers take the weights, or the first error is raised; what each said."""
        self._weights = (package, version)
        deliveries = {worker.name: Delivery(worker, package, version) for worker in self._workers}
        wait([delivery.call for delivery in deliveries.values()], self._config.deadline_seconds, FIRST_EXCEPTION)
        # Those who failed come first: a broadcast goes on for the others when the dead one is back.
        failed_first = sorted(self._workers, key=lambda worker: not _has_failed(deliveries[worker.name].call))
        return [self._await_weights(worker, deliveries[worker.name], version) for worker in failed_first]

    def _await_weights(self, worker: WorkerHandle, delivery: Delivery, version: int) -> Any:
        try:
            return delivery.result(timeout=self._config.deadline_seconds)
        except WorkerDied as error:
            return self._recover(worker, error)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the driver waited {self._config.deadline_seconds:g} s for {worker.name} to load the weights of "
                f"version {version}; look at its log, or raise rollout.deadline_seconds."
            ) from error

    def keep_busy(self) -> None:
        """Set every worker that has groups to work, and do not wait for it."""
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

    def _recover(self, worker: WorkerHandle, error: WorkerDied) -> Any:
        """Restart a dead worker with the last weights and the groups it had; the same seeds give the same groups.

        Returns what it said of the weights.
        """
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
        loaded = None
        if self._weights:
            loaded = self._await_weights(worker, Delivery(worker, *self._weights), self._weights[1])
        if requests:
            self._reliably(worker, "submit", requests)
        return loaded


def _has_failed(call: Future[Any]) -> bool:
    return call.done() and call.exception() is not None


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} with {count} groups" for name, count in counts.items()) or "nothing"
