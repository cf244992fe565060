"""AdamW whose moments and float32 weights are spread over data ranks (megatron's distributed optimizer)."""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from model.megatron.schedule import Stages


class StageOptimizer:
    """One optimizer for the stages of this rank. All ranks call its methods together.

    Between `grad_norm` and `step` a learner may decide to leave the step out.
    """

    def __init__(
        self, stages: Stages, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        self.settings = OptimizerConfig(
            optimizer="adam",
            lr=0.0,
            min_lr=0.0,
            weight_decay=weight_decay,
            adam_beta1=betas[0],
            adam_beta2=betas[1],
            adam_eps=eps,
            bf16=stages[0].config.bf16,
            params_dtype=stages[0].config.params_dtype,
            use_distributed_optimizer=True,
        )
        # No overrides: weight decay goes for all weights alike, norms too, as in the other learners.
        self.megatron: Any = get_megatron_optimizer(self.settings, stages, config_overrides={})

    def grad_norm(self) -> float:
        """The norm of the gradient of the whole model, once `forward_backward` is through; NaN if it is not finite."""
        self.megatron.prepare_grads()
        return float(self.megatron.get_grad_norm())

    def step(self, lr: float, grad_norm: float, max_grad_norm: float) -> None:
        """Update with learning rate `lr` after scaling the gradient down to `max_grad_norm`, if it is longer."""
        for group in self.megatron.param_groups:
            group["lr"] = lr
        for optimizer in self.megatron.chained_optimizers:
            if optimizer.get_parameters():
                clip_grad_by_total_norm_fp32(optimizer.get_parameters(), max_grad_norm, grad_norm)
        self.megatron.step_with_ready_grads()
