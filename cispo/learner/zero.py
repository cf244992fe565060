"""DeepSpeed's settings, and what is needed of its optimizers and they do not offer.

Whether to step is decided after the gradients are known, so this rank's part of them must be read, scaled or forgotten;
and moments must exist before the first step, for a state to be read into. There are three optimizers for stages 1 to 3
and two dtypes. They keep the same things under different names, which are DeepSpeed's own (0.19): so they are written
down in this one file, and tests/cispo/test_deepspeed.py holds each to what plain torch does. A *part* is a flat float32
tensor: this rank's share of a group of weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from cispo.learner.config import LearnerConfig
from model import HybridLM

BUCKET_ELEMENTS = 1 << 25
"""Gradients that are added up over the ranks at a time, and weights that are gathered ahead: 128 MiB in float32."""


def engine_config(config: LearnerConfig, lm: HybridLM) -> dict[str, Any]:
    """DeepSpeed's own settings. Sums are made in float32; it neither clips nor looks for overflows."""
    zero: dict[str, Any] = {
        "stage": config.deepspeed.stage,
        "overlap_comm": False,
        "reduce_bucket_size": min(BUCKET_ELEMENTS, sum(weight.numel() for weight in lm.parameters())),
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        "memory_efficient_linear": False,  # it would replace torch's for everybody in this process
        "stage3_param_persistence_threshold": lm.config.hidden_size,  # norms stay whole, matrices are cut
    }
    for part, is_out in (
        ("offload_optimizer", config.deepspeed.offload_optimizer),
        ("offload_param", config.deepspeed.offload_weights),
    ):
        if is_out:
            zero[part] = {"device": "cpu", "pin_memory": lm.device.type != "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the last row of an update is named as it comes
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its Adam for the CPU would have to be compiled
        "bf16": {"enabled": lm.config.dtype == torch.bfloat16, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "gradient_clipping": 0.0,
        "steps_per_print": None,
    }


class ZeroOptimizer(ABC):
    """One of DeepSpeed's optimizers, seen from outside."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def adam(self) -> torch.optim.Optimizer:
        """The optimizer inside, which works on the parts."""
        inner: torch.optim.Optimizer = self.optimizer.optimizer
        return inner

    @property
    @abstractmethod
    def parts(self) -> list[Tensor]:
        """This rank's parts of the master weights."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """This rank's parts of the gradients, in place, between the last backward pass and the step."""

    @abstractmethod
    def forget_gradients(self) -> None:
        """As after a step, but no weight and no moment has moved."""

    @abstractmethod
    def give(self) -> None:
        """Round the masters into the weights, on all ranks."""

    def reset_moments(self) -> None:
        """Moments that have seen nothing; with a step count of 0 they are what AdamW would begin with."""
        self.adam.state.clear()
        for part in self.parts:
            self.adam.state[part] = fresh_moments(part)

    def set_steps(self, steps: float) -> None:
        """How many steps the moments have seen."""
        for part in self.parts:
            self.adam.state[part]["step"].fill_(steps)

    @property
    def steps(self) -> float:
        """How many steps the moments have seen."""
        return float(self.adam.state[self.parts[0]]["step"])


class _FlatGroups(ZeroOptimizer):
    """Stages 1 and 2: each group of weights is one flat tensor, cut into as many parts as there are ranks."""

    @property
    def parts(self) -> list[Tensor]:
        found: list[Tensor] = self.optimizer.single_partition_of_fp32_groups
        return found

    def gradients(self) -> list[Tensor]:
        if self.optimizer.cpu_offload:
            self.optimizer._wait_for_offload_copies()
            return [part.grad for part in self.parts if part.grad is not None]
        return [gradient for group in self.optimizer.averaged_gradients.values() for gradient in group]

    def forget_gradients(self) -> None:
        zero = self.optimizer
        zero.zero_grad(set_to_none=True)
        for index in zero.averaged_gradients:
            zero.averaged_gradients[index] = None
            zero.all_grad_tensors[index] = None
        zero.micro_step_id = -1
        if zero.cpu_offload:
            zero.reset_cpu_buffers()
            zero._offload_accumulated_param_ids = set()

    def give(self) -> None:
        self.optimizer.update_lp_params()

    def reset_moments(self) -> None:
        super().reset_moments()
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()


class _Bfloat16Groups(_FlatGroups):
    """Stage 1 in bfloat16: gradients add up in float32 and are whole on every rank."""

    @property
    def parts(self) -> list[Tensor]:
        found: list[Tensor] = self.optimizer.fp32_groups_flat_partition
        return found

    def gradients(self) -> list[Tensor]:
        found: list[Tensor] = self.optimizer.fp32_groups_gradient_flat_partition
        return found

    def forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


class _CutWeights(ZeroOptimizer):
    """Stage 3: every weight is cut by itself, and a part is made of the shares of several."""

    @property
    def parts(self) -> list[Tensor]:
        found: list[Tensor] = self.optimizer.fp32_partitioned_groups_flat
        return found

    def gradients(self) -> list[Tensor]:
        if self.optimizer.offload_optimizer:
            return [part.grad for part in self.parts if part.grad is not None]
        return [gradient for group in self.optimizer.averaged_gradients.values() for gradient in group]

    def forget_gradients(self) -> None:
        zero = self.optimizer
        zero._pre_step()
        zero._partition_all_parameters()
        zero.zero_grad(set_to_none=True)
        if zero.offload_optimizer:
            zero.reset_cpu_buffers()
        else:
            zero.averaged_gradients = {}

    def give(self) -> None:
        zero = self.optimizer
        zero._partition_all_parameters()  # else those that stay whole would not be gathered anew
        for index in range(len(self.parts)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def fresh_moments(weight: Tensor) -> dict[str, Tensor]:
    """AdamW's, of a weight that has not been moved yet."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=weight.device),
        "exp_avg": torch.zeros_like(weight, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(weight, requires_grad=False),
    }


def seen_from_outside(optimizer: Any) -> ZeroOptimizer:
    """Whichever of the three `optimizer` is."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _CutWeights(optimizer)
    if hasattr(optimizer, "fp32_groups_gradient_flat_partition"):
        return _Bfloat16Groups(optimizer)
    return _FlatGroups(optimizer)
