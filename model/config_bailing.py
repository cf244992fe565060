"""config.json of Ring-linear-2.0 and Ling-linear-2.0: `bailing_moe_linear`. Sources: model/ring_linear.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.config_file import (
    LIGHTNING,
    SOFTMAX,
    ConfigFile,
    head_dim,
    is_scaled_rotary,
    refuse,
    require,
    shared_fields,
    shared_values,
)

if TYPE_CHECKING:
    from model.config import HybridConfig

_COPIED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts_per_tok",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "group_norm_size",
)
_RENAMED = {
    "num_local_experts": "num_experts",
    "intermediate_size": "moe_intermediate_size",
    "dense_intermediate_size": "intermediate_size",
}
"""Ours -> theirs. Their intermediate_size is that of dense layers, ours that of an expert."""

_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "linear_silu": False,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "tie_word_embeddings": False,
}
"""What this code computes; a file that says otherwise is refused, one that is silent means the same."""


def layer_pattern(num_layers: int, group_size: int) -> tuple[int, ...]:
    """Softmax in the last layer of each group, and in all layers behind the last whole group."""
    whole = num_layers // group_size * group_size
    is_softmax = [(layer + 1) % group_size == 0 or layer >= whole for layer in range(num_layers)]
    return tuple(SOFTMAX if softmax else LIGHTNING for softmax in is_softmax)


def layer_group_size(pattern: tuple[int, ...]) -> int | None:
    """The group size whose `layer_pattern` this is, or None."""
    sizes = range(1, len(pattern) + 1)
    return next((size for size in sizes if layer_pattern(len(pattern), size) == pattern), None)


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    shared_width, expert_width = (
        values.get(key) for key in ("moe_shared_expert_intermediate_size", "moe_intermediate_size")
    )
    refuse(
        values,
        {
            **{key: values.get(key, fixed) != fixed for key, fixed in _FIXED.items()},
            **is_scaled_rotary(values),
            "kv_lora_rank": values.get("kv_lora_rank") is not None,
            "moe_shared_expert_intermediate_size": None not in (shared_width, expert_width)
            and shared_width != expert_width,
            "layer_group_size": values.get("layer_group_size", 1) < 1,
        },
    )
    require(values, [*_COPIED, *_RENAMED.values(), "layer_group_size"])
    rope = values.get("rope_parameters") or {}
    share = values.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    return {
        "family": "bailing_linear",
        **{key: values[key] for key in _COPIED},
        **{ours: values[theirs] for ours, theirs in _RENAMED.items()},
        **shared_fields(values),
        "num_shared_experts": values.get("num_shared_experts") or 0,
        "head_dim": head_dim(values),
        "rotary_dim": int(head_dim(values) * share),
        "attn_type_list": layer_pattern(values["num_hidden_layers"], values["layer_group_size"]),
        "rms_norm_eps": values.get("rms_norm_eps", 1e-6),
    }


def _rotated_share(rotary_dim: int, head_dim: int) -> float:
    """The number of which int(head_dim * number) is rotary_dim, also where the quotient was rounded down."""
    share = rotary_dim / head_dim
    return share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1.0)


def _write(config: HybridConfig, layout: str) -> dict[str, Any]:
    return {
        **shared_values(config),
        **_FIXED,
        **{key: getattr(config, key) for key in _COPIED},
        **{theirs: getattr(config, ours) for ours, theirs in _RENAMED.items()},
        "architectures": ["BailingMoeLinearV2ForCausalLM"],
        "model_type": layout,
        "layer_group_size": layer_group_size(config.attn_type_list),
        "partial_rotary_factor": _rotated_share(config.rotary_dim, config.head_dim),
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "num_shared_experts": config.num_shared_experts or None,  # 0 would make an expert of no width
        "moe_shared_expert_intermediate_size": config.intermediate_size,
        "router_dtype": "fp32",
    }


BAILING = ConfigFile(layouts=("bailing_moe_linear",), read=_read, write=_write)
