"""One worker as the driver sees it: what it has to do, which calls to it are open, and since when.

Nothing here waits. `order` opens the calls that are due, `collect` takes in those that are answered, and both say the
same thing whether the worker is a process on another machine or an object in this one. What a worker should have
(weights, groups) is a wish that `order` works towards from whatever state the worker is in: so one that just started,
one that missed a version and one that is up to date need no code of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from cispo.errors import NeedsWhole, WeightSyncError, WorkerDied
from rollout.delivery import Publication
from rollout.receiver import Loaded
from rollout.requests import Begun, Finished, GroupRequest

log = logging.getLogger(__name__)

WHOLE = "whole"
"""The call, of the learner and not of the worker, for all bytes of a version."""


class WorkerHandle(Protocol):
    """A RolloutWorker, wherever it lives."""

    name: str

    def started(self) -> Future[int]:
        """Done once the worker is made."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method after the calls before it. The future raises WorkerDied if the process is gone."""

    def beside(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method while others are under way."""

    def restart(self) -> None:
        """Start the worker anew, without weights and without requests."""

    def stop(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Weights:
    """What every worker should sample with."""

    publication: Publication
    version: int


@dataclass
class Call:
    """An open call and when it was made."""

    future: Future[Any]
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Station:
    """See the head of the file.

    Attributes:
        worker: the worker.
        on_answer: called with this station, from any thread, when some call is done.
        assigned: what it has to do, by index; `unsent` are those of them that it was not told of yet.
        version: of its weights; None before the first.
        loaded: what it said of them.
        is_up: it has answered since it was (re)started.
        is_cut: its sequences are put aside until the next weights.
        is_leaving: it gets nothing more, and goes when it is done.
        has_left: it has gone, and its last answers mean nothing.
        num_left: trajectories that it still has to sample, as far as is known here.
        num_unscored: trajectories whose reward it waited for when it reported last.
        calls: the open calls by method.
        begun: what it had of its groups when it was asked for a snapshot; None before it answered.
        needs_whole: it can take nothing but all bytes of a version.
        death: its process is gone, and `restart` has not been called yet.
        num_deaths: since the newest weights were published.
    """

    worker: WorkerHandle
    on_answer: Callable[[Station], None]
    assigned: dict[int, GroupRequest] = field(default_factory=dict)
    unsent: list[GroupRequest] = field(default_factory=list)
    version: int | None = None
    loaded: Loaded | None = None
    is_up: bool = False
    is_cut: bool = False
    is_leaving: bool = False
    has_left: bool = False
    num_left: int = 0
    num_unscored: int = 0
    calls: dict[str, Call] = field(default_factory=dict)
    begun: dict[int, Begun] | None = None
    death: WorkerDied | None = None
    num_deaths: int = 0
    needs_whole: bool = False
    _loading: int | None = None
    _asked_whole_of: int | None = None
    _whole: tuple[int, Any] | None = None
    _without: int | None = None  # the version that it cannot have any more
    _given_since: int = 0  # trajectories that the report under way cannot count

    @property
    def name(self) -> str:
        """The worker's."""
        return self.worker.name

    def give(self, request: GroupRequest) -> None:
        """Add to what it has to do."""
        self.assigned[request.index] = request
        self.unsent.append(request)
        self.num_left += request.num_samples
        self._given_since += request.num_samples

    def take_back(self) -> list[GroupRequest]:
        """Everything that it had to do, in the order of the draw, and no longer has."""
        requests = sorted(self.assigned.values(), key=lambda request: request.index)
        self.assigned, self.unsent, self.num_left = {}, [], 0
        return requests

    def has_weights(self, weights: Weights | None) -> bool:
        """It samples with exactly these."""
        return weights is not None and self.version == weights.version

    def order(self, weights: Weights | None, advance_seconds: float) -> None:
        """Open every call that is due."""
        if not self.is_up:
            self._open("started", self.worker.started)
            return
        if weights is not None and self.version != weights.version and "load_weights" not in self.calls:
            self._offer(weights)
        if self.version is None and weights is not None:
            return  # without any wish for weights it samples with those that it was made with
        if self.unsent and "submit" not in self.calls:
            requests, self.unsent = self.unsent, []
            self._open("submit", lambda: self.worker.call("submit", requests))
        if self.assigned and not self.is_cut and "advance" not in self.calls:
            self._given_since = sum(request.num_samples for request in self.unsent)
            self._open("advance", lambda: self.worker.call("advance", advance_seconds))

    def _offer(self, weights: Weights) -> None:
        """Have it load these. One that needs the whole of them waits until the learner has made it, and it alone."""
        package = weights.publication.package
        if self.needs_whole:
            if weights.version in (self._asked_whole_of, self._without):
                return
            if self._whole is None or self._whole[0] != weights.version:
                self._asked_whole_of = weights.version
                self._open(WHOLE, weights.publication.whole)
                return
            package = self._whole[1]
        self._loading = weights.version
        self._open("load_weights", lambda: self.worker.beside("load_weights", package, weights.version))

    def order_snapshot(self) -> None:
        """Ask what there is of its groups, once all that it did before is known."""
        if self.is_up and self.begun is None and not self.calls:
            self._open("snapshot", lambda: self.worker.call("snapshot"))

    def cut(self) -> None:
        """Have its sequences put aside until the next weights."""
        if self.is_up and not self.is_cut:
            self.is_cut = True
            self._open("cut", lambda: self.worker.beside("cut"))

    def cancel(self, indices: list[int]) -> None:
        """Have these groups forgotten."""
        self.unsent = [request for request in self.unsent if request.index not in indices]
        for index in indices:
            self.assigned.pop(index, None)
        if not self.assigned:
            self.num_left = 0
        if self.is_up:
            self._open(f"cancel {indices}", lambda: self.worker.call("cancel", indices))

    def _open(self, method: str, make: Callable[[], Future[Any]]) -> None:
        if method not in self.calls:
            call = self.calls[method] = Call(make())
            call.future.add_done_callback(lambda _: self.on_answer(self))

    def collect(self) -> Finished:
        """Take in all that was answered, and close those calls; `death` is set if one of them failed with the process.

        What it finished before it died counts. Raises an error that ends the run.
        """
        result = Finished()
        for method in [method for method, call in self.calls.items() if call.future.done()]:
            try:
                answer = self.calls.pop(method).future.result()
            except WorkerDied as error:
                self.death = self.death or error
            except NeedsWhole as reason:  # which the next order offers
                if self.needs_whole:
                    raise
                self.needs_whole = True
                log.warning("%s; it is sent the whole version.", str(reason).rstrip("."))
            except WeightSyncError as reason:
                if method != WHOLE:
                    raise
                # The learner has gone on meanwhile: this worker waits for the version that is published next.
                log.warning("%s has no weights until the next version: %s", self.name, reason)
                self._without, self._asked_whole_of = self._asked_whole_of, None
            else:
                result = self._take_in(method, answer) or result
        return result

    def _take_in(self, method: str, answer: Any) -> Finished | None:
        """One answer; what it finished, if it is one of `advance`."""
        if method == "started":
            self.is_up = True
        elif method == WHOLE:
            assert self._asked_whole_of is not None
            self._whole, self._asked_whole_of = (self._asked_whole_of, answer), None
        elif method == "load_weights":
            self.version, self.is_cut = self._loading, False  # perhaps not the newest, which are sent next
            self.loaded, self.needs_whole, self._whole = answer, False, None
        elif method == "snapshot":
            self.begun = answer
        elif method == "advance":
            finished: Finished = answer
            for index in [*(group.index for group in finished.groups), *finished.failed]:
                self.assigned.pop(index, None)
            # Nothing is left if all was cancelled meanwhile, of which the worker may not know yet.
            self.num_left = finished.num_left + self._given_since if self.assigned else 0
            self.num_unscored = finished.num_unscored
            return finished
        return None

    def overdue(self, seconds: float, start_seconds: float) -> str:
        """The method that it has not answered for so long, or ""; of one that starts, `start_seconds` count."""
        now, limit = time.monotonic(), seconds if self.is_up else start_seconds
        waits = ((method, call) for method, call in self.calls.items() if method != WHOLE and not call.future.done())
        late = [method for method, call in waits if now - call.since > limit]
        return late[0].split()[0] if late else ""

    def restart(self) -> None:
        """Begin anew: without weights, with all groups still to be sent."""
        self.calls, self.begun, self.death = {}, None, None
        self.version, self.loaded, self.is_up, self.is_cut, self.needs_whole = None, None, False, False, False
        self._asked_whole_of, self._whole, self._without = None, None, None
        self.unsent = sorted(self.assigned.values(), key=lambda request: request.index)
        self.num_left = sum(request.num_samples for request in self.unsent)
        self.worker.restart()

    def silence(self, method: str, seconds: float) -> WorkerDied:
        """The error that stands for a missing answer."""
        setting = "rollout.deadline_seconds" if self.is_up else "cluster.start_seconds"
        return WorkerDied(
            f"The driver waited {seconds:g} s for {self.name} to answer {method!r}, and takes it for dead (raise "
            f"{setting} if the work is that slow)."
        )
