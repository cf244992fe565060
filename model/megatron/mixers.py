"""Both mixers with their heads spread over tensor ranks.

A rank holds whole heads: column-parallel projections make its heads' queries, keys and values from all of u, and a
row-parallel one adds up what the ranks' heads say. In between nothing is new: attention over packed rows, also over
rows that context ranks share, is that of model/lightning.py and model/softmax.py (megatron's own needs
TransformerEngine for either). Checkpoints lay queries, keys and values of a lightning head side by side, and megatron
cuts rows evenly, so a rank's rows are the heads that it should hold.

Shapes: T tokens, t tokens of this rank (T, or its share of them with sequence parallelism), D model width, H and K
query and key heads of this rank, d head width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from model.lightning import DecayAttention, activated_heads, slopes
from model.megatron.config import StageConfig
from model.megatron.norm import HeadsNorm
from model.softmax import CausalAttention, rotate


class ParallelLightningAttention(DecayAttention):
    """model.lightning.LightningAttention; its decays are those of the heads' places among all heads."""

    sharded_state_dict = MegatronModule.sharded_state_dict

    def __init__(self, config: StageConfig, layer: int, pg_collection: ProcessGroupCollection) -> None:
        hybrid, ranks = config.hybrid, pg_collection.tp
        slope_of_all = slopes(hybrid.num_attention_heads, layer, hybrid.num_hidden_layers)
        super().__init__(layer, slope_of_all.chunk(ranks.size())[ranks.rank()])
        self.num_heads = hybrid.num_attention_heads // ranks.size()
        width, inner = hybrid.hidden_size, hybrid.num_attention_heads * hybrid.head_dim
        self.qkv_proj = _column(config, pg_collection, width, 3 * inner)
        self.output_gate = _column(config, pg_collection, width, inner)
        self.out_proj = _row(config, pg_collection, inner, width)
        self.norm = HeadsNorm(config, ranks)

    def _qkv(self, u_tD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return activated_heads(self.qkv_proj(u_tD)[0], self.num_heads)

    def _project(self, out_THd: Tensor, u_tD: Tensor) -> Tensor:
        gate = torch.sigmoid(self.output_gate(u_tD)[0])
        projected: Tensor = self.out_proj(gate * self.norm(out_THd.flatten(1)))[0]
        return projected


class ParallelSoftmaxAttention(CausalAttention):
    """model.softmax.SoftmaxAttention; a rank holds whole groups of query heads, each with its key and value head."""

    sharded_state_dict = MegatronModule.sharded_state_dict

    def __init__(self, config: StageConfig, layer: int, pg_collection: ProcessGroupCollection) -> None:
        hybrid, num_ranks = config.hybrid, pg_collection.tp.size()
        heads, kv_heads = hybrid.num_attention_heads, hybrid.num_key_value_heads
        own = dataclasses.replace(
            hybrid, num_attention_heads=heads // num_ranks, num_key_value_heads=kv_heads // num_ranks
        )
        super().__init__(own, layer)
        width, head = hybrid.hidden_size, hybrid.head_dim
        self.q_proj = _column(config, pg_collection, width, heads * head)
        self.k_proj = _column(config, pg_collection, width, kv_heads * head)
        self.v_proj = _column(config, pg_collection, width, kv_heads * head)
        self.o_proj = _row(config, pg_collection, heads * head, width)

    def _qkv(self, u_tD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            project(u_tD)[0].unflatten(1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _project(self, out_THd: Tensor) -> Tensor:
        projected: Tensor = self.o_proj(out_THd.flatten(1))[0]
        return projected


def _column(config: StageConfig, ranks: ProcessGroupCollection, width: int, outputs: int) -> Any:
    return ColumnParallelLinear(
        width, outputs, config=config, init_method=config.init_method, bias=False, tp_group=ranks.tp
    )


def _row(config: StageConfig, ranks: ProcessGroupCollection, inputs: int, width: int) -> Any:
    return RowParallelLinear(
        inputs,
        width,
        config=config,
        init_method=config.output_layer_init_method,
        bias=False,
        input_is_parallel=True,
        skip_bias_add=False,
        tp_group=ranks.tp,
    )
