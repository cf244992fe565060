"""The learner that a configuration names."""

from __future__ import annotations

from cispo.learner.config import LearnerConfig
from cispo.learner.ranks import Ranks
from cispo.learner.shared import SharedLearner
from model import HybridLM


def make_learner(lm: HybridLM, config: LearnerConfig, ranks: Ranks) -> SharedLearner:
    """`lm` in the hands of the configured backend; its library is imported here and nowhere else."""
    from cispo.learner.local import LocalLearner

    return LocalLearner(lm, config, ranks)
