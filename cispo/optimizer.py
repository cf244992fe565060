"""The optimizer's settings. AdamW's betas and eps matter more in RL than they do in supervised training."""

from __future__ import annotations

from dataclasses import dataclass

from cispo.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    The MiniMax-M1 report (arXiv 2506.13585, section 3) uses betas (0.9, 0.95) and eps 1e-15, because most of its
    gradients are smaller than 1e-14 and eps 1e-8 would swallow them; a small model has larger ones.

    Attributes:
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, on every parameter.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        faults = []
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            faults.append(f"optimizer betas must lie in [0, 1); got {self.betas}.")
        if self.eps <= 0.0 or self.weight_decay < 0.0:
            faults.append(
                f"optimizer eps must be positive and weight_decay not negative; "
                f"got {self.eps:g} and {self.weight_decay:g}."
            )
        if faults:
            raise ConfigError(*faults)
