"""The workers of a run: who gets which group, and what becomes of those that die, fall silent, join or leave.

Nothing here waits: a worker's answer puts its station into a queue, which the service reads. Only stations that
answered, or that something is new for, are looked at, so a turn costs as much as its events and not as the fleet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

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
        max_restarts: of one worker under the same weights; one more death ends the run.
        advance_seconds: how long a worker works before it reports, if nothing was finished before.
        in_flight: with max_staleness above 0, trajectories that a worker has at a time: it is given another group
            when fewer are left to sample. 0 is as many as its engine has slots, and a group more.
        on_new_weights: "continue" samples on while the learner learns, and new weights reach sequences between two
            tokens; "cut" puts them aside when a step has what it needs, until the next weights are there.
        overdue: with max_staleness above 0, what a step does about a group that would be too old for the next one:
            "wait" for it, so none is lost, or "drop" it, which favours short traces.
    """

    draw_limit: float = 4.0
    deadline_seconds: float = 600.0
    max_restarts: int = 8
    advance_seconds: float = 1.0
    in_flight: int = 0
    on_new_weights: str = "continue"
    overdue: str = "wait"

    def __post_init__(self) -> None:
        faults = []
        if (
            self.draw_limit < 1.0
            or self.deadline_seconds <= 0.0
            or self.advance_seconds <= 0.0
            or min(self.max_restarts, self.in_flight) < 0
        ):
            faults.append(
                f"rollout needs draw_limit >= 1, positive deadline_seconds and advance_seconds, max_restarts >= 0 and "
                f"in_flight >= 0; got {self.draw_limit:g}, {self.deadline_seconds:g}, "
                f"{self.advance_seconds:g}, {self.max_restarts} and {self.in_flight}."
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
        start_seconds: how long a worker may take to start.
        moves_groups: a dead worker's groups go to others at once. Otherwise they wait for it to be back, so that who
            samples what does not depend on timing.
    """

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        config: RolloutConfig,
        *,
        start_seconds: float = 180.0,
        moves_groups: bool = False,
    ) -> None:
        self.answers: SimpleQueue[Station | None] = SimpleQueue()
        self.stations: list[Station] = []
        self.weights: Weights | None = None
        self.num_restarts = 0
        self.busy_seconds = 0.0
        self._config = config
        self._start_seconds = start_seconds
        self._moves_groups = moves_groups
        self._to_order: set[Station] = set()
        self._last_progress = time.monotonic()
        for worker in workers:
            self.add(worker)

    @property
    def staying(self) -> list[Station]:
        """Those that get more to do, in the order in which they came."""
        return [station for station in self.stations if not station.is_leaving] or self.stations

    def add(self, worker: WorkerHandle) -> None:
        """Another worker, which begins when it has started and has weights."""
        station = Station(worker, lambda station: self.answers.put(station))
        self.stations.append(station)
        self._to_order.add(station)

    def publish(self, weights: Weights) -> None:
        """From now on every worker should have these."""
        if self.weights is None or weights.version > self.weights.version:
            for station in self.stations:  # the run gets on, so what went wrong may be forgiven
                station.num_deaths = 0
        self.weights = weights
        self._to_order.update(self.stations)

    def give(self, station: Station, request: GroupRequest) -> None:
        """One more group for that worker."""
        if not any(other.assigned for other in self.stations):
            self._last_progress = time.monotonic()  # nobody could make any before
        station.give(request)
        self._to_order.add(station)

    def spread(self, requests: Sequence[GroupRequest]) -> None:
        """Each request to the worker with the fewest groups, of those that are up if groups may move."""
        for request in requests:
            up = [station for station in self.staying if station.is_up and self._moves_groups]
            self.give(min(up or self.staying, key=lambda station: len(station.assigned)), request)

    def least_loaded(self, most: int) -> Station | None:
        """The worker with the fewest trajectories to sample of those that are up and have fewer than `most`."""
        able = [s for s in self.staying if s.num_left < most and s.is_up and s.version is not None]
        return min(able, key=lambda station: station.num_left, default=None)

    def retire(self, name: str) -> None:
        """That worker gets nothing more and goes when it has finished what it has."""
        log.info("%s leaves when it is done", name)
        for station in [station for station in self.stations if station.name == name]:
            station.is_leaving = True
            self._let_go(station)

    def order(self) -> None:
        """Open every call that is due."""
        for station in self._to_order:
            station.order(self.weights, self._config.advance_seconds)
        self._to_order.clear()

    def order_snapshots(self) -> None:
        """Open only calls that ask what there is; `order` goes on afterwards."""
        for station in self.stations:
            station.order_snapshot()
        self._to_order.update(self.stations)

    def collect(self, answered: Iterable[Station]) -> Finished:
        """What these workers have finished; the dead are restarted.

        Raises WorkerDied when too many were, and whatever else a worker raised.
        """
        groups: list[Group] = []
        failed: dict[int, str] = {}
        for station in [station for station in answered if not station.has_left]:
            self._to_order.add(station)
            was_up = station.is_up
            finished = station.collect()
            groups += finished.groups
            failed |= finished.failed
            self.busy_seconds += finished.busy_seconds
            if finished.num_steps or finished.groups or finished.failed or was_up != station.is_up:
                self._last_progress = time.monotonic()
            if station.death is not None:
                self._recover(station, station.death)
            self._let_go(station)
        return Finished(tuple(groups), failed)

    def check_deadlines(self) -> None:
        """Restart the silent. Raises WorkerDied if too many were, DeadlineExceeded if the others get nowhere."""
        for station in list(self.stations):
            late = station.overdue(self._config.deadline_seconds, self._start_seconds)
            if late and self._can_do_without(station):
                self._relieve(station)
            elif late:
                seconds = self._config.deadline_seconds if station.is_up else self._start_seconds
                self._recover(station, station.silence(late, seconds))
        self._check_progress()

    def have_weights(self, *, also_starting: bool) -> bool:
        """Every worker samples with the newest weights; those that are starting will, and count if asked for."""
        return all(
            station.has_weights(self.weights) for station in self.stations if station.is_up or also_starting
        ) and any(station.is_up for station in self.stations)

    def cut(self) -> None:
        """Have everything put aside until the next weights."""
        for station in self.stations:
            station.cut()
            self._to_order.add(station)

    def cancel(self, indices: Iterable[int]) -> None:
        """Have these groups forgotten."""
        for station in self.stations:
            mine = [index for index in indices if index in station.assigned]
            if mine:
                station.cancel(mine)
                self._to_order.add(station)

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

    def _let_go(self, station: Station) -> None:
        if station.is_leaving and not station.assigned and len(self.stations) > 1:
            self.stations.remove(station)
            station.has_left = True
            self._to_order.discard(station)
            station.worker.stop()
            log.info("%s has left", station.name)

    def _can_do_without(self, station: Station) -> bool:
        """A worker that is long in starting, as on a cluster that has no room for it now, holds up nobody else."""
        return not station.is_up and self._moves_groups and any(other.is_up for other in self.stations)

    def _relieve(self, station: Station) -> None:
        """Give others what a worker that does not start was given while nobody was up."""
        if not station.assigned:
            return
        log.warning("%s does not start; the %d groups that it had go to others.", station.name, len(station.assigned))
        self._hand_on(station.take_back(), station)
        self._let_go(station)

    def _hand_on(self, requests: Sequence[GroupRequest], station: Station) -> None:
        """Each to the least loaded of the others that are up, or back to `station` if nobody is."""
        others = [other for other in self.staying if other is not station and other.is_up]
        for request in requests:
            self.give(min(others or [station], key=lambda other: other.num_left), request)

    def _recover(self, station: Station, error: WorkerDied) -> None:
        """Restart a dead worker; it, or others, sample its groups again, and the same seeds give the same groups."""
        self.num_restarts += 1
        station.num_deaths += 1
        if station.num_deaths > self._config.max_restarts:
            raise WorkerDied(
                f"{error} That was death number {station.num_deaths} of this worker under the same weights and "
                f"rollout.max_restarts is {self._config.max_restarts}; resume the run once the cause is mended."
            ) from error
        log.warning("%s It is restarted; %d groups that it had are sampled again.", error, len(station.assigned))
        requests = station.take_back() if self._moves_groups else []
        station.restart()
        self._to_order.add(station)
        self._last_progress = time.monotonic()
        self._hand_on(requests, station)

    def _check_progress(self) -> None:
        busy = [station for station in self.stations if station.assigned]
        now = time.monotonic()
        # Starting has a deadline of its own.
        if not busy or any(station.is_cut or (station.assigned and not station.is_up) for station in self.stations):
            self._last_progress = now
        elif now - self._last_progress > self._config.deadline_seconds:
            raise DeadlineExceeded(
                f"The driver waited {self._config.deadline_seconds:g} s for rollouts and saw no progress; under way: "
                f"{', '.join(map(_under_way, busy))}. Look at those workers' logs or the reward's; "
                f"raise rollout.deadline_seconds if the work is that slow."
            )


def _under_way(station: Station) -> str:
    unscored = f" ({station.num_unscored} trajectories wait for their reward)" if station.num_unscored else ""
    return f"{station.name} with {len(station.assigned)} groups{unscored}"
