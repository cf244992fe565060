"""Experts spread over ranks: our router, megatron's dispatcher and experts.

Tokens are always shared out among the tensor ranks here, with sequence parallelism or without: each routes its own
part, and the dispatcher brings every token to the ranks that hold its experts (all-to-all over the expert ranks, then
all-gather over the tensor ranks, among which each expert is cut). Without sharing out, every tensor rank would send
the same tokens. So the router's gradient has a part on each tensor rank, and they are added up on the way back.

Shapes: T tokens of this rank, t of them this rank's to route, D model width, E experts, k experts per token, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from model.megatron.config import StageConfig
from model.moe import Router, choose_experts
from model.replay import Prescription


class ParallelRouter(Router):
    """model.moe.Router, the same on every rank, which tells megatron of its choice."""

    def __init__(self, config: StageConfig, pg_collection: ProcessGroupCollection) -> None:
        super().__init__(config.hybrid)
        self.ranks = pg_collection.tp

    def forward(  # type: ignore[override]
        self, x_tD: Tensor, num_counted: int, prescribe: Prescription | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> weights [t, E], 0 where an expert was not chosen; chosen bool [t, E]; totals [2, E] (routing.py).

        The totals are those of the first `num_counted` tokens: the others fill the row up.
        """
        weight_ED = copy_to_tensor_model_parallel_region(self.weight, group=self.ranks)
        prob_tE, weight_tk, expert_tk = choose_experts(weight_ED, x_tD, self.num_chosen, prescribe)
        weight_tE = torch.zeros_like(prob_tE).scatter(1, expert_tk, weight_tk)
        chosen_tE = torch.zeros_like(prob_tE, dtype=torch.bool).scatter_(1, expert_tk, True)
        counts_E = chosen_tE[:num_counted].sum(0).to(prob_tE.dtype)
        return weight_tE, chosen_tE, torch.stack([prob_tE[:num_counted].sum(0), counts_E])


class ParallelMoE(MoELayer):
    """model.moe.MoE; its steps are megatron's, put together so that the router's totals come out."""

    def forward(self, x: Tensor, num_counted: int, prescribe: Prescription | None = None) -> tuple[Tensor, Tensor]:
        """[T, D] -> [T, D] and the totals [2, E] of this rank's tokens; with sequence parallelism t stands for T."""
        if not self.config.sequence_parallel:
            x = scatter_to_sequence_parallel_region(x, group=self.tp_group)
        weight_tE, chosen_tE, totals_2E = self.router(x, num_counted, prescribe)
        visits, weights = self.preprocess(x, weight_tE, chosen_tE)
        visits, weights = self.dispatch(visits, weights)
        mixed, _ = self.routed_experts_compute(visits, weights)
        mixed = self.postprocess(self.combine(mixed), None)
        if not self.config.sequence_parallel:
            mixed = gather_from_sequence_parallel_region(mixed, tensor_parallel_output_grad=False, group=self.tp_group)
        return mixed, totals_2E


def expert_spec() -> Any:
    """How megatron builds a layer's experts."""
    matrices = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    experts = ModuleSpec(module=SequentialMLP, submodules=matrices)
    return ModuleSpec(module=ParallelMoE, submodules=MoESubmodules(experts=experts, router=ParallelRouter))
