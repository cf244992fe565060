"""From the model's configuration and a layout to megatron's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from model.config import HybridConfig
from model.errors import ModelError
from model.layout import Layout

FAMILY = "minimax"


@dataclass
class StageConfig(TransformerConfig):
    """Megatron's configuration, which knows the model's own."""

    hybrid: HybridConfig = field(default_factory=HybridConfig)


def stage_config(config: HybridConfig, layout: Layout, *, recompute_layers: int = 0) -> StageConfig:
    """Megatron's configuration of `config` laid out as `layout`.

    Args:
        config: the model.
        layout: how it lies over the ranks.
        recompute_layers: in how many layers at a time activations are made again by the backward pass, which then
            keeps only what enters the first of them; 0 keeps everything.

    Raises ModelError for a family that has no parts here; `initialise_ranks` refuses what cannot be cut so.
    """
    if config.family != FAMILY:
        raise ModelError(
            f"model/megatron has the layers of the family {FAMILY} only, not of {config.family}; use another learner."
        )
    return StageConfig(
        hybrid=config,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=config.head_dim,
        layernorm_epsilon=config.rms_norm_eps,
        normalization="RMSNorm",
        recompute_granularity="full" if recompute_layers else None,
        recompute_method="uniform" if recompute_layers else None,
        recompute_num_layers=recompute_layers or None,
        **_precision(config.dtype),
        **_experts(config),
        **_parallel(layout),
    )


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    return {"params_dtype": dtype, "pipeline_dtype": dtype, "bf16": dtype == torch.bfloat16}


def _experts(config: HybridConfig) -> dict[str, Any]:
    return {
        "ffn_hidden_size": config.intermediate_size,
        "moe_ffn_hidden_size": config.intermediate_size,
        "num_moe_experts": config.num_local_experts,
        "moe_router_topk": config.num_experts_per_tok,
        "moe_token_dispatcher_type": "alltoall",
        "moe_router_load_balancing_type": "none",  # the balancing loss is the objective's (routing.py)
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
    }


def _parallel(layout: Layout) -> dict[str, Any]:
    is_interleaved = layout.virtual_pipeline > 1
    return {
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": virtual_stages(layout),
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.tensor,
        "sequence_parallel": layout.sequence_parallel,
        # Rows differ in length; the weights of tokens carry the aggregation, so ranks add up and nobody divides.
        "variable_seq_lengths": True,
        "calculate_per_token_loss": True,
        # Interleaved, two stages talk in both directions at once; told apart only if each message goes by itself.
        "overlap_p2p_comm": is_interleaved,
        "batch_p2p_comm": not is_interleaved,
        # Messages are under way while the schedule goes on: gloo reads the memory then, CUDA's streams wait.
        "deallocate_pipeline_outputs": torch.cuda.is_available(),
        "use_cpu_initialization": not torch.cuda.is_available(),
        "init_method": _zero,
        "output_layer_init_method": _zero,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # Fusions need TransformerEngine or apex.
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
    }


def virtual_stages(layout: Layout) -> int | None:
    """As megatron counts them: None unless there are several."""
    return layout.virtual_pipeline if layout.virtual_pipeline > 1 else None


def _zero(weight: Tensor) -> None:
    """Weights are loaded, never drawn here (weights.py); until then, and where vocabularies are padded, they are 0."""
    with torch.no_grad():
        weight.zero_()
