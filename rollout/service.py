"""The driver's side of sampling: draws prompts, judges what comes back, and keeps the cursor of a run.

Synchronous (max_staleness 0): groups are drawn in waves, a wave is finished before the next is drawn, and nothing is
under way when new weights are published. So a run is reproducible: who gets which group does not depend on timing.

Asynchronous: at any time there are as many groups under way or ready as the present step still wants and
`max_staleness` steps more, so no group can be older than allowed when its turn comes; they go to whoever has the least
to do. A thread of its own keeps the workers busy while the learner learns, if the workers are processes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from cispo.protocols import PromptSource
from cispo.schedule import Schedule, value_at
from cispo.types import Group, Harvest, Prompt
from rollout.buffer import Intake, may_be_taken
from rollout.delivery import Publication
from rollout.ledger import Ledger
from rollout.ledger_file import read_ledger, write_ledger
from rollout.requests import Finished, GroupRequest
from rollout.seeding import stable_rng
from rollout.station import Station, Weights, WorkerHandle
from rollout.worker_pool import RolloutConfig, WorkerPool

log = logging.getLogger(__name__)

TURN_SECONDS = 1.0
"""How long a turn waits, at most, before deadlines are looked at again."""

Answers = SimpleQueue[Station | None]
WaitFor = Callable[[Answers, float], set[Station]]


def first_answer(answers: Answers, seconds: float) -> set[Station]:
    """Wait for an answer and take all that are there; none after so many seconds. None in the queue only wakes."""
    answered = set()
    try:
        answered.add(answers.get(timeout=seconds))
        while True:
            answered.add(answers.get_nowait())
    except Empty:
        return {station for station in answered if station is not None}


@dataclass(frozen=True)
class Draw:
    """What makes the requests of a run: how many samples of each prompt, how long, from which seed."""

    seed: int
    group_size: int
    max_new_tokens: Schedule
    max_staleness: int = 0


class RolloutService:
    """Implements the RolloutSource protocol over workers.

    Args:
        workers: at least one.
        prompts: the training stream.
        draw: what is asked for.
        config: deadlines and limits; `in_flight` is the number itself here, if max_staleness is above 0.
        start_seconds: how long a worker may take to start.
        in_background: keep the workers busy between the calls, too; for workers that are processes.
        adjust: called every second or so, in between two turns, to add workers to the pool or retire some.
        wait_for: waits until the queue of answers has one, or so many seconds; another may have a clock of its own.
    """

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        prompts: PromptSource,
        draw: Draw,
        config: RolloutConfig,
        *,
        start_seconds: float = 180.0,
        in_background: bool = False,
        adjust: Callable[[WorkerPool], None] | None = None,
        wait_for: WaitFor = first_answer,
    ) -> None:
        self.draw = draw
        self.config = config
        self.pool = WorkerPool(workers, config, start_seconds=start_seconds, moves_groups=draw.max_staleness > 0)
        self._ledger = Ledger(prompts)
        self._intake: Intake | None = None
        self._groups_per_step = 0
        self._num_failed = 0
        self._samples: dict[int, Group | str] = {}
        self._may_advance = True
        self._window_began = time.monotonic()
        self._adjust = adjust
        self._wait_for = wait_for
        self._look_again_at = 0.0
        # All of the above is touched with the lock held, by one turn after the other.
        self._changed = threading.Condition(threading.RLock())
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None
        if in_background:
            self._thread = threading.Thread(target=self._turn_for_ever, name="rollouts", daemon=True)
            self._thread.start()

    def take(self, num_groups: int, *, oldest_version: int, keep: Callable[[Group], bool]) -> Harvest:
        """See RolloutSource.take."""
        intake = Intake(num_groups, oldest_version=oldest_version, keep=keep, draw_limit=self.config.draw_limit)
        with self._changed:
            self._intake, self._groups_per_step = intake, num_groups
        self._wait_until(lambda: not intake.missing)
        with self._changed:
            self._intake = None
            if self.draw.max_staleness and self.config.on_new_weights == "cut":
                self.pool.cut()
            self._order()
        return intake.harvest()

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
        with self._changed:
            self._samples = {}
            self.pool.spread(requests)
        self._wait_until(lambda: len(self._samples) == len(requests))
        outcomes = [self._samples[request.index] for request in requests]
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            if isinstance(outcome, str):
                log.warning("prompt %s could not be evaluated: %s", prompt.id, outcome)
        return [outcome for outcome in outcomes if isinstance(outcome, Group)]

    def load_weights(self, package: Any, version: int) -> list[Any]:
        """See RolloutSource.load_weights; `package` may be a Publication.

        Synchronous: returns once every worker has them. Asynchronous: once every worker that is up has; one that is
        starting gets them before its first group.
        """
        with self._changed:
            publication = package if isinstance(package, Publication) else Publication(package)
            self.pool.publish(Weights(publication, version))
        self._wait_until(lambda: self.pool.have_weights(also_starting=not self.draw.max_staleness))
        return [station.loaded for station in self.pool.stations if station.loaded is not None]

    @property
    def num_receivers(self) -> int:
        """Workers that will come to a broadcast: those that `load_weights` waits for and that do not need all of it."""
        with self._changed:
            awaited = [each for each in self.pool.stations if each.is_up or not self.draw.max_staleness]
            return sum(not station.needs_whole for station in awaited)

    def save(self, folder: Path) -> None:
        """Write the cursor and every group that was drawn and not taken, with what there is of it."""
        with self._changed:
            self._may_advance = False
        self._wait_until(self.pool.has_snapshot)
        with self._changed:
            entries = self._ledger.untaken(self.pool.take_snapshot())
            cursor = {"prompts": self._ledger.prompts.state(), "next_index": self._ledger.next_index}
            self._may_advance = True
        write_ledger(folder, cursor, entries)
        self._poke()

    def load(self, folder: Path) -> None:
        """Go on exactly where `save` was called."""
        cursor, entries = read_ledger(folder)
        with self._changed:
            self._ledger.prompts.restore(cursor["prompts"])
            self._ledger.restore(int(cursor["next_index"]), entries)

    def metrics(self) -> dict[str, float]:
        """perf/*: how the workers spent the time since the last call, and how much is under way."""
        with self._changed:
            now = time.monotonic()
            available = (now - self._window_began) * len(self.pool.stations)
            metrics = {
                "perf/rollout_idle_fraction": max(0.0, 1.0 - self.pool.busy_seconds / max(available, 1e-9)),
                "perf/groups_under_way": float(self._ledger.num_under_way),
                "perf/groups_ready": float(self._ledger.num_ready),
                "perf/workers": float(sum(station.is_up for station in self.pool.stations)),
                "perf/worker_restarts": float(self.pool.num_restarts),
            }
            self._window_began, self.pool.busy_seconds = now, 0.0
        return metrics

    def close(self) -> None:
        """End the thread, if there is one; the workers are others' to end."""
        self._is_closed = True
        self._poke()
        if self._thread:
            self._thread.join(timeout=10 * TURN_SECONDS)

    @property
    def _window(self) -> int:
        return int(value_at(self.draw.max_new_tokens, self._version))

    @property
    def _version(self) -> int:
        return self.pool.weights.version if self.pool.weights else 0

    def _seed(self, *parts: str | int) -> int:
        return stable_rng("rollout", self.draw.seed, *parts).getrandbits(63)

    def _turn_for_ever(self) -> None:
        while not self._is_closed:
            try:
                self.turn()
            except BaseException as error:  # it belongs to whoever waits for the rollouts
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return

    def _wait_until(self, is_true: Callable[[], bool]) -> None:
        """Make turns, or let the thread make them, until it is; deadlines are the pool's, and raise here."""
        self._poke()
        if self._thread is None:
            while not is_true():
                self.turn()
            return
        with self._changed:
            while not is_true():
                if self._error:
                    raise self._error
                self._changed.wait(timeout=TURN_SECONDS)

    def _poke(self) -> None:
        """There is something new to do: end the wait of the turn under way."""
        if self._thread:
            self.pool.answers.put(None)

    def turn(self) -> None:
        """Order what is due, wait for any answer, take in all that came, and order what is due then."""
        with self._changed:
            self._order()
        answered = self._wait_for(self.pool.answers, TURN_SECONDS)
        with self._changed:
            self._gather(self.pool.collect(answered))
            if time.monotonic() > self._look_again_at:
                self._look_again_at = time.monotonic() + min(TURN_SECONDS, self.config.deadline_seconds / 10)
                self.pool.check_deadlines()
                if self._adjust:
                    self._adjust(self.pool)
            self._order()
            self._changed.notify_all()

    def _order(self) -> None:
        if not self._may_advance:
            self.pool.order_snapshots()
            return
        self._fill()
        self._draw()
        self.pool.order()

    def _fill(self) -> None:
        """Give the step's intake what is ready, oldest draw first, and what may go now; the rest waits."""
        intake = self._intake
        if intake is None:
            return
        self._num_failed, num_failed = 0, self._num_failed
        intake.add([], num_failed)
        if self.config.overdue == "drop":
            self._drop_overdue(intake)
        while intake.missing and (group := self._next_to_take(intake)):
            self._ledger.take(group.index)
            intake.add([group], 0)

    def _next_to_take(self, intake: Intake) -> Group | None:
        """The oldest finished group, if this step may take it; if not, no other may: the younger can wait longer."""
        group = self._ledger.oldest_ready()
        if group is None or self.config.overdue == "drop":
            return group
        may_go = may_be_taken(
            group.oldest_version,
            self._ledger.num_by_version,
            oldest_version=intake.oldest_version,
            num_missing=intake.missing,
            groups_per_step=self._groups_per_step,
        )
        return group if may_go else None

    def _drop_overdue(self, intake: Intake) -> None:
        overdue = self._ledger.overdue(intake.oldest_version)
        self.pool.cancel(overdue)
        for index in overdue:
            self._ledger.fail(index)
        intake.drop_unfinished(len(overdue))

    def _draw(self) -> None:
        missing = self._intake.missing if self._intake else 0
        ahead = self._groups_per_step * self.draw.max_staleness
        if ahead:
            room = missing + ahead - self._ledger.num_under_way - self._ledger.num_ready
            room = max(room, self._ledger.num_waiting)  # drawn already, and perhaps due before all that is ready
            while room > 0 and (station := self.pool.least_loaded(self.config.in_flight)):
                self.pool.give(station, self._next_request(station.version))
                room -= 1
        elif not self._ledger.num_under_way:
            self.pool.spread([self._next_request() for _ in range(missing)])

    def _next_request(self, version: int | None = None) -> GroupRequest:
        """The next group, for a worker that samples with `version`; None is the newest, as of all when synchronous."""
        entry = self._ledger.draw(self._version if version is None else version)
        return GroupRequest(
            entry.index,
            entry.prompt,
            self.draw.group_size,
            self._seed("train", entry.index),
            self._window,
            begun=entry.begun,
        )

    def _gather(self, finished: Finished) -> None:
        """Take in what workers have finished: of the training stream (indices from 0), or for `sample`."""
        for group in finished.groups:
            if group.index < 0:
                self._samples[group.index] = group
            elif self._ledger.is_under_way(group.index):  # or it was given up as it came
                self._ledger.finish(group)
        for index, reason in finished.failed.items():
            if index < 0:
                self._samples[index] = reason
            elif self._ledger.is_under_way(index):
                log.warning("prompt %s came to nothing: %s", self._ledger.fail(index).prompt.id, reason)
                self._num_failed += 1
