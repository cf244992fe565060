"""Warnings about a run that is going wrong, in time and not too often: what was seen, the limit, and what to do.

Drift is wanted and its alarm speaks at every step. Mismatch and capped ratios mean a fault or a setting, which stays
until somebody does something: such an alarm speaks once, and again when its value has doubled or after a while.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cispo.errors import ConfigError

log = logging.getLogger(__name__)

Tell = Callable[[int, str, str], None]
"""Whoever else is told of a warning: step, metric, the whole sentence."""

WORSE = 2.0
"""An alarm that has spoken speaks again when its value is so many times what it was then."""


@dataclass(frozen=True)
class AlarmConfig:
    """When a run is worth a warning; inf is never.

    Attributes:
        mismatch_kl: mismatch/kl or mismatch/eval_kl above it. Healthy runs stay below 1e-3; one at 0.013 lost its
            reward within 20 steps.
        mismatch_logp: mismatch/logp_abs_diff_mean, or that of eval, above it.
        capped_fraction: ratio/capped_fraction or correction/capped_fraction above it.
        repeat_after: steps for which an alarm that has spoken is silent, unless its value doubles.
    """

    mismatch_kl: float = 0.01
    mismatch_logp: float = 0.03
    capped_fraction: float = 0.1
    repeat_after: int = 50

    def __post_init__(self) -> None:
        faults = [
            f"alarms.{name} must be positive, and inf is never; got {getattr(self, name):g}."
            for name in LIMITS
            if not getattr(self, name) > 0.0
        ]
        if self.repeat_after < 1:
            faults.append(f"alarms.repeat_after must be at least 1; got {self.repeat_after}.")
        if faults:
            raise ConfigError(*faults)


MISMATCH_ADVICE = (
    "sampler and learner disagree about tokens of the same weights. See which mismatch/<kind> stands out; compare "
    "precision and temperature on both sides; for a mixture of experts set correction.replay_experts=true; until the "
    "cause is found, correction.ratio_against=proximal or the masks of `correction` limit the damage"
)
LIMITS = {
    "mismatch_kl": (("mismatch/kl", "mismatch/eval_kl"), MISMATCH_ADVICE),
    "mismatch_logp": (("mismatch/logp_abs_diff_mean", "mismatch/eval_logp_abs_diff_mean"), MISMATCH_ADVICE),
    "capped_fraction": (
        ("ratio/capped_fraction", "correction/capped_fraction"),
        "the policy is far from the one that sampled. If mismatch/* is high see there; else lower learner.lr, "
        "updates_per_step or max_staleness, or set kl_stop; a higher ratio_cap would only hide it",
    ),
}
"""For each limit of AlarmConfig, the metrics of which the largest counts, and what to do."""


class Alarms:
    """The alarms of one run."""

    def __init__(self, config: AlarmConfig, tell: Tell) -> None:
        self._config = config
        self._tell = tell
        self._spoken: dict[str, tuple[int, float]] = {}

    def look(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Warn of what is above its limit; `alarm/<limit>`, 1 or 0 for each limit of which a metric is there."""
        raised = {}
        for name, (watched, advice) in LIMITS.items():
            there = [metric for metric in watched if not math.isnan(metrics.get(metric, math.nan))]
            if not there:
                continue
            metric = max(there, key=metrics.__getitem__)
            value, limit = metrics[metric], getattr(self._config, name)
            raised[f"alarm/{name}"] = float(value > limit)
            if value > limit and self._has_to_speak(name, step, value):
                _warn(step, metric, f"{metric} is {value:.3g}, above alarms.{name}={limit:g}: {advice}.", self._tell)
        return raised

    def _has_to_speak(self, name: str, step: int, value: float) -> bool:
        """True at the first time, after a silence, or if it has become much worse; notes that it was said."""
        spoken_at, spoken_value = self._spoken.get(name, (-math.inf, 0.0))
        if step - spoken_at < self._config.repeat_after and value < WORSE * spoken_value:
            return False
        self._spoken[name] = step, value
        return True


def warn_of_drift(step: int, metrics: Mapping[str, float], kl_warn: float, tell: Tell) -> None:
    """CISPO has no trust region: tell people when the policy leaves the one that sampled, before it collapses."""
    kl = metrics.get("drift/kl_p95", 0.0)
    if kl > kl_warn:
        _warn(
            step,
            "drift/kl_p95",
            f"drift/kl_p95 is {kl:.3g}, above kl_warn={kl_warn:g}; runs that stay there tend to collapse. Lower "
            f"learner.lr or updates_per_step, or set kl_stop, kl_step or the mask (docs/algorithm.md).",
            tell,
        )


def _warn(step: int, metric: str, text: str, tell: Tell) -> None:
    log.warning("step %d: %s", step, text)
    tell(step, metric, f"step {step}: {text}")
