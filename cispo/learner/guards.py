"""The guards around an optimizer step. They work for every objective and are off unless set.

CISPO has no trust region. What warned and what held in measured runs is the k3 estimate of KL(behaviour || current),
mean(r - 1 - log r); gradient norm, entropy and mean ratio did not warn (docs/algorithm.md).
"""

from __future__ import annotations

import math

from cispo.types import UpdateSettings


def reason_to_skip(*, loss: float, grad_norm: float, kl: float, settings: UpdateSettings) -> str:
    """Why no step must be made: "nonfinite", "kl_stop", or "" if it may."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return "nonfinite"
    if settings.kl_stop > 0.0 and kl > settings.kl_stop:
        return "kl_stop"
    return ""


def guarded_lr(kl: float, settings: UpdateSettings) -> float:
    """The learning rate times min(1, kl_step / KL): scaling the rate works where scaling the loss does not (Adam)."""
    if settings.kl_step <= 0.0 or not kl > settings.kl_step:
        return settings.lr
    return settings.lr * settings.kl_step / kl
