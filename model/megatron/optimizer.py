"""AdamW whose moments and float32 weights are spread over data ranks (megatron's distributed optimizer)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig, ParamKey, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import Tensor, nn

from model.megatron.schedule import Stages


class StageOptimizer:
    """One optimizer for the stages of this rank. All ranks call its methods together.

    Between `clip` and `step` a learner may decide to leave the step out.
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
        # With overrides of our own, weight decay goes for all weights alike, norms too, as in the other learners.
        # Routers get a group of their own: in one with bfloat16 weights, megatron 0.16 takes a float32 weight's moments
        # for its neighbour's when it saves.
        routers: dict[Any, Any] = {ParamKey(name="*.router.weight"): {"wd_mult": 1.0}}
        self.megatron: Any = get_megatron_optimizer(self.settings, stages, config_overrides=routers)
        self.num_steps = 0
        for optimizer in self.megatron.chained_optimizers:  # so that checkpoints can be written or read at any time
            optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
        self._tell_steps()
        self._masters = dict(_masters(self.megatron.chained_optimizers))

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm`, once `forward_backward` is through.

        Returns the norm before, that of the whole model's gradient and the same on all ranks; NaN or inf if the
        gradient has any.
        """
        self.megatron.prepare_grads()
        norm = float(self.megatron.get_grad_norm())
        for optimizer in self.megatron.chained_optimizers:
            if optimizer.get_parameters():
                clip_grad_by_total_norm_fp32(optimizer.get_parameters(), max_norm, norm)
        return norm

    def step(self, lr: float) -> None:
        """Move the weights by what `clip` left."""
        for group in self.megatron.param_groups:
            group["lr"] = lr
        self.megatron.step_with_ready_grads()
        self.num_steps += 1

    def put_master(self, parameter: nn.Parameter, first: int, values: Tensor) -> None:
        """Write `values`, the flattened parameter's from place `first` on, where this rank keeps it in float32."""
        if parameter not in self._masters:
            return
        master, start = self._masters[parameter]
        begin, end = max(first, start), min(first + values.numel(), start + master.numel())
        if begin < end:
            master.data.view(-1)[begin - start : end - start].copy_(values.flatten()[begin - first : end - first])

    def load_moments(self, moments: list[dict[int, Any]], num_steps: int) -> None:
        """Take over moments and float32 weights as checkpoint.py has read them, after `num_steps` steps."""
        for optimizer, own in zip(self.megatron.chained_optimizers, moments, strict=True):
            for state in optimizer.optimizer.state.values():
                state.pop("step", None)  # megatron looks for it among the tensors
            optimizer.load_parameter_state_from_fully_reshardable(own)
        self.num_steps = num_steps
        self._tell_steps()

    def _tell_steps(self) -> None:
        """Torch's AdamW counts steps for each weight, fused ones for each group."""
        for optimizer in self.megatron.chained_optimizers:
            if isinstance(optimizer.optimizer, torch.optim.AdamW):
                for state in optimizer.optimizer.state.values():
                    state["step"] = torch.tensor(float(self.num_steps))
            else:
                for group in optimizer.optimizer.param_groups:
                    group["step"] = self.num_steps


def _masters(optimizers: list[Any]) -> Iterator[tuple[nn.Parameter, tuple[Tensor, int]]]:
    """Of each narrow parameter of which this rank updates a run: the run in float32, and its place in the parameter."""
    for optimizer in optimizers:
        for narrow, wide in zip(optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups, strict=True):
            for parameter, master in zip(narrow, wide, strict=True):
                yield parameter, (master, optimizer._get_model_param_range_map(parameter)["param"].start)
