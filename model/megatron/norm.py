"""Norms whose gradients and checkpoints megatron treats rightly."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint

from model.megatron.config import StageConfig
from model.norm import RMSNorm


class StreamNorm(RMSNorm):
    """The norm of the residual stream. With sequence parallelism a rank sees some tokens, so gradients are added up."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config.hidden_size, config.layernorm_epsilon, config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class HeadsNorm(RMSNorm):
    """The norm over all heads of a lightning layer, of which a tensor rank holds some."""

    def __init__(self, config: StageConfig, group: dist.ProcessGroup) -> None:
        hybrid = config.hybrid
        width = hybrid.num_attention_heads * hybrid.head_dim // group.size()
        super().__init__(width, hybrid.lightning_norm_eps, config.params_dtype, group)
        self.weight.tensor_model_parallel = True  # type: ignore[attr-defined]
        self.weight.partition_dim, self.weight.partition_stride = 0, 1  # type: ignore[attr-defined]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For megatron's checkpoints: cut like the heads."""
        group = ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"]
        weights = self.state_dict(keep_vars=True)
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            weights, prefix, {"weight": 0}, sharded_offsets, tp_group=self.ranks, dp_cp_group=group
        )
        return sharded
