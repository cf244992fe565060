"""The learner that a configuration names. The library behind it is imported when it is asked for, and no other."""

from __future__ import annotations

from cispo.errors import ConfigError
from cispo.learner.config import LearnerConfig
from cispo.learner.policy import Policy
from cispo.learner.ranks import Ranks
from cispo.learner.shared import SharedLearner


def make_learner(policy: Policy, config: LearnerConfig, ranks: Ranks) -> SharedLearner:
    """`policy` in the hands of the learner that `config.kind` names, as one of `ranks`.

    Raises ConfigError if its library is not installed.
    """
    check_installed(config)
    if config.kind == "megatron":
        from cispo.learner.megatron import MegatronLearner

        return MegatronLearner(policy, config, ranks)
    if config.kind == "deepspeed":
        from cispo.learner.deepspeed import DeepSpeedLearner

        return DeepSpeedLearner(policy.lm(), config, ranks)
    from cispo.learner.local import LocalLearner

    return LocalLearner(policy.lm(), config, ranks)


def check_installed(config: LearnerConfig) -> None:
    """Raise ConfigError unless the configured backend's library is there; nothing heavy is imported."""
    from importlib.util import find_spec

    if config.kind != "local" and find_spec(config.kind) is None:
        raise ConfigError(
            f"learner.kind={config.kind} needs a library that is not installed here; run "
            f"`pip install 'cispo[{config.kind}]'`, or use learner=local."
        )
