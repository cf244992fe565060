"""The layer: what model/layer.py makes of single-process parts, made of parallel ones through ModuleSpec.

Attributes are named as in checkpoints, as far as megatron's own names allow (weights.py translates the rest).

Shapes: t tokens of this rank, D model width, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from torch import Tensor

from model.config_file import LIGHTNING
from model.families import FAMILIES
from model.megatron.config import StageConfig
from model.megatron.experts import expert_spec
from model.megatron.mixers import ParallelLightningAttention, ParallelSoftmaxAttention
from model.megatron.norm import StreamNorm
from model.megatron.row import RankRow


@dataclass(frozen=True)
class LayerParts:
    """Specs of a layer's parts."""

    norm: Any
    mixer: Any
    channel_mixer: Any


def layer_spec(config: StageConfig, layer: int) -> Any:
    """How megatron builds layer `layer`, counted over all stages from 0."""
    kind = config.hybrid.attn_type_list[layer]
    mixer = ParallelLightningAttention if kind == LIGHTNING else ParallelSoftmaxAttention
    parts = LayerParts(StreamNorm, ModuleSpec(module=mixer, params={"layer": layer}), expert_spec())
    return ModuleSpec(module=ParallelLayer, params={"layer": layer}, submodules=parts)


class ParallelLayer(MegatronModule):
    """model.layer.Layer."""

    def __init__(
        self, config: StageConfig, submodules: LayerParts, layer: int, pg_collection: ProcessGroupCollection
    ) -> None:
        super().__init__(config)
        self.layer = layer
        self.self_attn = build_module(submodules.mixer, config=config, pg_collection=pg_collection)
        self.block_sparse_moe = build_module(
            submodules.channel_mixer, config=config, layer_number=layer + 1, pg_collection=pg_collection
        )
        self.input_layernorm = build_module(submodules.norm, config)
        self.post_attention_layernorm = build_module(submodules.norm, config)
        self.mixer_rule, self.channel_rule = FAMILIES[config.hybrid.family].rules(config.hybrid, layer)

    def forward(self, x_tD: Tensor, totals_L2E: Tensor, row: RankRow) -> tuple[Tensor, Tensor]:
        """The stream behind the layer, and the routers' totals with this layer's added."""
        u = self.input_layernorm(x_tD)
        y = self.mixer_rule(x_tD, u, self.self_attn(u, row.row))
        w = self.post_attention_layernorm(y)
        prescribe = None if row.replay is None else row.replay.prescription(self.layer)
        mixed, totals_2E = self.block_sparse_moe(w, row.num_counted, prescribe)
        totals_L2E = totals_L2E.index_add(0, _index(self.layer, totals_L2E), totals_2E[None])
        return self.channel_rule(y, w, mixed), totals_L2E


def _index(layer: int, like: Tensor) -> Tensor:
    return like.new_tensor([layer]).long()
