"""Carries a version of the weights from the learner to every worker, checksummed, through one copy in shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cispo.errors import CispoError, DeadlineExceeded, WorkerDied
from cispo.learner.local import LocalLearner
from cispo.optimizer import OptimizerConfig
from cispo.protocols import RolloutSource, WeightStream
from cispo.types import PackedBatch, Trajectory, UpdateResult, UpdateSettings
from launch.actors import Handle
from rollout.receiver import WeightPackage, make_package


class LearnerDied(CispoError):
    """The learner's process is gone, and with it every update since the last checkpoint."""


class LearnerHost:
    """The learner where it lives: the Learner's methods, and the package that a weight sync sends."""

    def __init__(self, make: Any, *arguments: Any) -> None:
        self.learner: LocalLearner = make(*arguments)

    def package(self, version: int) -> WeightPackage:
        """The present weights as `version`."""
        return make_package(self.learner.weights(), version)

    def weights(self) -> list[tuple[str, Any]]:
        """The present weights, all at once: an iterator cannot cross a process border."""
        return list(make_package(self.learner.weights(), 0).arrays.items())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)


class RemoteLearner:
    """Implements the Learner protocol by calls to a LearnerHost, each with a deadline."""

    def __init__(self, handle: Handle, *, deadline_seconds: float) -> None:
        self.handle = handle
        self.deadline_seconds = deadline_seconds

    def update(self, batch: PackedBatch, settings: UpdateSettings) -> UpdateResult:
        """See Learner."""
        result: UpdateResult = self._call("update", batch, settings)
        return result

    def weights(self) -> WeightStream:
        """See Learner."""
        stream: Iterator[tuple[str, Any]] = iter(self._call("weights"))
        return stream

    def probe(self, trajectory: Trajectory) -> dict[str, float]:
        """See Learner."""
        metrics: dict[str, float] = self._call("probe", trajectory)
        return metrics

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """See Learner."""
        self._call("new_optimizer", config)

    def save(self, folder: Path) -> None:
        """See Learner."""
        self._call("save", folder)

    def load(self, folder: Path) -> None:
        """See Learner."""
        self._call("load", folder)

    def export(self, folder: Path, *, eos_token_id: int | None = None, pad_token_id: int | None = None) -> None:
        """See Learner."""
        self._call("export", folder, eos_token_id=eos_token_id, pad_token_id=pad_token_id)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return await_learner(self.handle.call(method, *arguments, **named), method, self.deadline_seconds)


def await_learner(call: Future[Any], what: str, seconds: float) -> Any:
    """The call's result; a dead or silent learner ends the run with a sentence, for its optimizer state is gone."""
    try:
        return call.result(timeout=seconds)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"The driver waited {seconds:g} s for the learner to {what}; look at its log, or raise "
            f"cluster.update_seconds if the learner is that slow."
        ) from error
    except WorkerDied as error:
        raise LearnerDied(
            f"{error} The learner was to {what}, and what it learnt since the last checkpoint went with it."
        ) from error


class ObjectStoreSync:
    """Implements the WeightSync protocol: the learner puts one package into the object store, every worker reads it.

    On one node the workers map the same memory, so the weights are copied once, by the learner.
    """

    def __init__(self, learner: Handle, rollouts: RolloutSource, *, deadline_seconds: float) -> None:
        self.learner = learner
        self.rollouts = rollouts
        self.deadline_seconds = deadline_seconds

    def publish(self, learner: object, *, version: int) -> None:
        """See WeightSync; returns once every worker samples with `version`.

        The package is waited for here, before any worker is asked to read it: or a dead learner would look like a
        worker that fails to load.
        """
        call = self.learner.reference("package", version)
        package = await_learner(call, f"pack the weights of version {version}", self.deadline_seconds)
        self.rollouts.load_weights(package, version)
