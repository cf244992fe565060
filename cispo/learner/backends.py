"""Which learner a configuration names. The library behind it is imported when it is asked for, and no other."""

from __future__ import annotations

from cispo.errors import ConfigError
from cispo.learner.config import LearnerConfig
from cispo.learner.ranks import Ranks
from cispo.learner.shared import SharedLearner
from model import HybridLM


def make_learner(lm: HybridLM, config: LearnerConfig, ranks: Ranks | None = None) -> SharedLearner:
    """The learner that `config.kind` names, around `lm`, as one of `ranks`; alone by default.

    Raises ConfigError if its library is not installed.
    """
    if config.kind == "local":
        from cispo.learner.local import LocalLearner

        return LocalLearner(lm, config, ranks)
    if config.kind == "deepspeed":
        from cispo.learner.deepspeed import DeepSpeedLearner

        return DeepSpeedLearner(lm, config, ranks)
    raise ConfigError(f"learner.kind must be local or deepspeed, because no other can be run yet; got {config.kind}.")
