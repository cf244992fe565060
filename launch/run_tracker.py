"""What is told how a run goes: the base of every tracker; together they are cispo.protocols.Tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cispo.histogram import Histogram


class RunTracker:
    """A Tracker that listens to nothing; each tracker below overrides what concerns it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of one step. A second call for the same step adds to the first (an evaluation)."""

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """The trajectories trained on at one step, made by cispo.records."""

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """The distributions of one step; told before its numbers."""

    def alarm(self, step: int, metric: str, text: str) -> None:
        """A warning about a metric, which was logged already."""

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """How far something outside the steps is: cold start, an evaluation. `done == total` ends it."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over and reached its end."""

    def close(self, error: BaseException | None = None) -> None:
        """Let go of terminal and network, also after an error; harmless after `finish`."""
