"""The learner that a configuration names."""

from __future__ import annotations

from cispo.learner.config import LearnerConfig
from cispo.learner.policy import Policy
from cispo.learner.ranks import Ranks
from cispo.learner.shared import SharedLearner


def make_learner(policy: Policy, config: LearnerConfig, ranks: Ranks) -> SharedLearner:
    """`policy` in the hands of the configured backend; its library is imported here and nowhere else."""
    if config.kind == "megatron":
        from cispo.learner.megatron import MegatronLearner

        return MegatronLearner(policy, config, ranks)
    from cispo.learner.local import LocalLearner

    return LocalLearner(policy.lm(), config, ranks)
