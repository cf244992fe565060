"""Something that is told how a run goes, and several of them as one; implements cispo.protocols.Tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self


class RunTracker:
    """A Tracker that listens to nothing; each tracker below overrides what concerns it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of one step. A second call for the same step adds to the first (an evaluation)."""

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """The trajectories trained on at one step, made by cispo.records."""

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """How far something outside the steps is: cold start, an evaluation. `done == total` ends it."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over and reached its end."""

    def close(self) -> None:
        """Let go of terminal and network, also after an error; harmless after `finish`."""


class Trackers(RunTracker):
    """Tells several trackers, in order. As a context manager it closes them however the run ends."""

    def __init__(self, *trackers: RunTracker) -> None:
        self.trackers = trackers

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.rollouts(step, records)

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.phase(name, done, total, **numbers)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.finish(summary)

    def close(self) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
