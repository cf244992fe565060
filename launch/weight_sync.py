"""Carries a version of the weights from the learner to every worker, checksummed, through one copy in shared memory."""

from __future__ import annotations

from cispo.protocols import RolloutSource
from launch.learner_ranks import LearnerRanks


class ObjectStoreSync:
    """Implements the WeightSync protocol: the learner puts one package into the object store, every worker reads it.

    On one node the workers map the same memory, so the weights are copied once, by the learner.
    """

    def __init__(self, learner: LearnerRanks, rollouts: RolloutSource) -> None:
        self.learner = learner
        self.rollouts = rollouts

    def publish(self, learner: object, *, version: int) -> None:
        """See WeightSync; returns once every worker samples with `version`.

        The package is waited for here, before any worker is asked to read it: or a dead learner would look like a
        worker that fails to load.
        """
        package = self.learner.package(version)
        self.rollouts.load_weights(package, version)
