"""Carries a version of the weights from the learner to every worker and says what that took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cispo.protocols import RolloutSource
from configs.fleet import SyncConfig
from launch.learner_ranks import LearnerRanks
from rollout.delivery import Publication

log = logging.getLogger(__name__)


class VerifiedSync:
    """Implements the WeightSync protocol over any transport: rank 0 makes a package, and every worker is offered it.

    Args:
        learner: its ranks.
        rollouts: give the package to the workers.
        config: which transport.
        num_workers: tells how many a broadcast is to wait for.
    """

    def __init__(
        self, learner: LearnerRanks, rollouts: RolloutSource, config: SyncConfig, num_workers: Callable[[], int]
    ) -> None:
        self.learner = learner
        self.rollouts = rollouts
        self.config = config
        self.num_workers = num_workers
        self._has_told = False

    def publish(self, learner: object, *, version: int) -> Mapping[str, float]:
        """See WeightSync; returns once every worker samples with `version`.

        The package is waited for here, before any worker is asked to read it: or a dead learner would look like a
        worker that fails to load, and workers could be given half a version.
        """
        begin = time.perf_counter()
        package = self.learner.package(version)
        if self.config.transport == "object_store":
            loaded = self.rollouts.load_weights(Publication(package), version)
        else:
            publication = Publication(package, lambda: self.learner.whole_package(version))
            num_workers = self.num_workers() if self.config.transport == "broadcast" else 0
            sending = self.learner.send(num_workers) if num_workers else None
            loaded = self.rollouts.load_weights(publication, version)
            if sending is not None:
                self._tell(self.learner.sent(sending, version))
        return self._metrics(loaded, time.perf_counter() - begin)

    def _tell(self, reason: str) -> None:
        if reason:
            log.warning("%s; workers that it did not reach are sent the whole version.", reason)

    def _metrics(self, loaded: Sequence[Any], seconds: float) -> dict[str, float]:
        metrics = {"sync/seconds": seconds}
        if loaded:
            metrics["sync/bytes"] = float(max(each.num_bytes for each in loaded))
        differences = [each.canary_difference for each in loaded if each.canary_difference is not None]
        if differences:
            metrics["sync/canary_logp_diff_max"] = max(differences)
        elif self.config.canary_tokens and not self._has_told:
            self._has_told = True
            log.warning("the canary is left out: this engine cannot compute log-probabilities of a given text.")
        return metrics
