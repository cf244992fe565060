"""The workers of a run: who gets which group, and what becomes of those that die, fall silent, join or leave.

Nothing here waits: the service does, with `open_calls` in hand.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from cispo.errors import ConfigError, DeadlineExceeded, WorkerDied
from cispo.types import Group
from rollout.requests import Begun, Finished, GroupRequest
from rollout.station import Station, Weights, WorkerHandle

log = logging.getLogger(__name__)

ON_NEW_WEIGHTS = ("continue", "cut")
OVERDUE = ("wait", "drop")


@dataclass(frozen=True)
class RolloutConfig:
    """How the driver deals with its workers.

    Attributes:
        draw_limit: groups drawn for one step, at most, as a multiple of groups_per_step; 1 never draws a second time.
        deadline_seconds: how long the driver waits for an answer of a worker, and for any sign of progress.
        max_restarts: workers restarted in one run before it is stopped.
        advance_seconds: how long a worker works before it reports, if nothing was finished before.
        groups_in_flight: with max_staleness above 0, groups that a worker has at a time; 0 is one more than its
            engine has slots for.
        on_new_weights: "continue" samples on while the learner learns, and new weights reach sequences between two
            tokens; "cut" puts them aside when a step has what it needs, until the next weights are there.
        overdue: with max_staleness above 0, what a step does about a group that would be too old for the next one:
            "wait" for it, so none is lost, or "drop" it, which favours short traces.
    """

    draw_limit: float = 4.0
    deadline_seconds: float = 600.0
    max_restarts: int = 8
    advance_seconds: float = 1.0
    groups_in_flight: int = 0
    on_new_weights: str = "continue"
    overdue: str = "wait"

    def __post_init__(self) -> None:
        faults = []
        if (
            self.draw_limit < 1.0
            or self.deadline_seconds <= 0.0
            or self.advance_seconds <= 0.0
            or min(self.max_restarts, self.groups_in_flight) < 0
        ):
            faults.append(
                f"rollout needs draw_limit >= 1, positive deadline_seconds and advance_seconds, max_restarts >= 0 and "
                f"groups_in_flight >= 0; got {self.draw_limit:g}, {self.deadline_seconds:g}, "
                f"{self.advance_seconds:g}, {self.max_restarts} and {self.groups_in_flight}."
            )
        for name, choices in (("on_new_weights", ON_NEW_WEIGHTS), ("overdue", OVERDUE)):
            if getattr(self, name) not in choices:
                faults.append(f"rollout.{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        if faults:
            raise ConfigError(*faults)


class WorkerPool:
    """Gives groups to workers and gathers what they finish.

    Args:
        workers: at least one.
        config: deadlines and limits.
        moves_groups: a dead worker's groups go to others at once. Otherwise they wait for it to be back, so that who
            samples what does not depend on timing.
    """

    def __init__(self, workers: Sequence[WorkerHandle], config: RolloutConfig, *, moves_groups: bool = False) -> None:
        self.stations = [Station(worker) for worker in workers]
        self.weights: Weights | None = None
        self.num_restarts = 0
        self.busy_seconds = 0.0
        self._config = config
        self._moves_groups = moves_groups
        self._last_progress = time.monotonic()

    def spread(self, requests: Sequence[GroupRequest]) -> None:
        """Each request to the worker with the fewest groups, whether it is up or not."""
        for request in requests:
            min(self._staying(), key=lambda station: len(station.assigned)).give(request)

    def least_loaded(self, most: int) -> Station | None:
        """The worker with the least to sample of those that are up and have fewer than `most` groups."""
        able = [s for s in self._staying() if s.is_up and s.version is not None and len(s.assigned) < most]
        return min(able, key=lambda station: station.num_samples, default=None)

    def add(self, worker: WorkerHandle) -> None:
        """Another worker, which begins when it has started and has weights."""
        log.info("%s joins", worker.name)
        self.stations.append(Station(worker))

    def retire(self, name: str) -> None:
        """That worker gets nothing more and goes when it has finished what it has."""
        log.info("%s leaves when it is done", name)
        for station in self.stations:
            station.is_leaving |= station.name == name

    def order(self, *, may_advance: bool = True) -> None:
        """Open every call that is due."""
        for station in self.stations:
            if may_advance:
                station.order(self.weights, self._config.advance_seconds)
            else:
                station.order_snapshot()

    def open_calls(self) -> list[Future[Any]]:
        """What there is to wait for."""
        return [call.future for station in self.stations for call in station.calls.values()]

    def collect(self) -> Finished:
        """What the workers have finished. The dead and the silent are restarted.

        Raises WorkerDied when too many were, DeadlineExceeded when the living make no progress, and whatever else a
        worker raised.
        """
        groups: list[Group] = []
        failed: dict[int, str] = {}
        num_steps = 0
        for station in list(self.stations):
            try:
                late = station.overdue(self._config.deadline_seconds)
                if late and not self._can_do_without(station, late):
                    raise station.silence(late, self._config.deadline_seconds)
                was_up = station.is_up
                finished = station.collect()
            except WorkerDied as error:
                self._recover(station, error)
                continue
            groups += finished.groups
            failed |= finished.failed
            num_steps += finished.num_steps
            self.busy_seconds += finished.busy_seconds
            if num_steps or finished.groups or finished.failed or was_up != station.is_up:
                self._last_progress = time.monotonic()
            self._let_go(station)
        self._check_progress()
        return Finished(tuple(groups), failed, num_steps)

    def have_weights(self, *, also_starting: bool) -> bool:
        """Every worker samples with the newest weights; those that are starting will, and count if asked for."""
        return all(
            station.has_weights(self.weights) for station in self.stations if station.is_up or also_starting
        ) and any(station.is_up for station in self.stations)

    def cut(self) -> None:
        """Have everything put aside until the next weights."""
        for station in self.stations:
            station.cut()

    def cancel(self, indices: Iterable[int]) -> None:
        """Have these groups forgotten."""
        for station in self.stations:
            mine = [index for index in indices if index in station.assigned]
            if mine:
                station.cancel(mine)

    def has_snapshot(self) -> bool:
        """Every worker that is up has said what it has of its groups."""
        return all(station.begun is not None for station in self.stations if station.is_up)

    def take_snapshot(self) -> dict[int, Begun]:
        """What they said, forgotten here."""
        begun: dict[int, Begun] = {}
        for station in self.stations:
            for index, request in station.assigned.items():  # not sent yet, or lost with a process
                if request.begun is not None:
                    begun[index] = request.begun
            begun |= station.begun or {}
            station.begun = None
        return begun

    def _staying(self) -> list[Station]:
        return [station for station in self.stations if not station.is_leaving] or self.stations

    def _let_go(self, station: Station) -> None:
        if station.is_leaving and not station.assigned and len(self.stations) > 1:
            self.stations.remove(station)
            station.worker.stop()
            log.info("%s has left", station.name)

    def _can_do_without(self, station: Station, late: str) -> bool:
        """A worker that is long in starting, as on a cluster that has no room for it now, holds up nobody else."""
        return late == "started" and self._moves_groups and any(other.is_up for other in self.stations)

    def _recover(self, station: Station, error: WorkerDied) -> None:
        """Restart a dead worker; it, or others, sample its groups again, and the same seeds give the same groups."""
        self.num_restarts += 1
        if self.num_restarts > self._config.max_restarts:
            raise WorkerDied(
                f"{error} That was death number {self.num_restarts} of a worker in this run and "
                f"rollout.max_restarts is {self._config.max_restarts}; resume the run once the cause is mended."
            ) from error
        log.warning("%s It is restarted; %d groups that it had are sampled again.", error, len(station.assigned))
        requests = station.take_back() if self._moves_groups else []
        station.restart()
        self._last_progress = time.monotonic()
        others = [other for other in self._staying() if other is not station and other.is_up]
        for request in requests:
            min(others or [station], key=lambda other: other.num_samples).give(request)

    def _check_progress(self) -> None:
        busy = {station.name: len(station.assigned) for station in self.stations if station.assigned}
        now = time.monotonic()
        if not busy or any(station.is_cut for station in self.stations):
            self._last_progress = now
        elif now - self._last_progress > self._config.deadline_seconds:
            raise DeadlineExceeded(
                f"The driver waited {self._config.deadline_seconds:g} s for rollouts and saw no progress; under way: "
                f"{_listed(busy)}. Look at those workers' logs; raise rollout.deadline_seconds if the work is that "
                f"slow."
            )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} with {count} groups" for name, count in counts.items())
