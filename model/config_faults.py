"""Why a configuration cannot work: every reason at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from model.config_bailing import layer_group_size
from model.config_file import LIGHTNING, SOFTMAX

if TYPE_CHECKING:
    from model.config import HybridConfig

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "num_local_experts",
    "num_experts_per_tok",
    "head_dim",
    "max_position_embeddings",
    "group_norm_size",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
)
OWN_FIELDS = {
    "minimax": (
        "lightning_norm_eps",
        "postnorm",
        "layernorm_linear_attention_alpha",
        "layernorm_linear_attention_beta",
        "layernorm_full_attention_alpha",
        "layernorm_full_attention_beta",
        "layernorm_mlp_alpha",
        "layernorm_mlp_beta",
    ),
    "bailing_linear": (
        "group_norm_size",
        "dense_intermediate_size",
        "first_k_dense_replace",
        "num_shared_experts",
        "n_group",
        "topk_group",
        "routed_scaling_factor",
    ),
}
"""Family -> fields that only it reads; in any other they keep their defaults."""


def faults_of(config: HybridConfig) -> list[str]:
    """Every reason why `config` cannot work."""
    if config.family not in OWN_FIELDS:
        return [f"family is one of {', '.join(OWN_FIELDS)}, not {config.family!r}"]
    faults = [f"{key} must be positive, not {getattr(config, key)}" for key in _POSITIVE if getattr(config, key) <= 0]
    can_divide = not faults
    faults += [*_layer_faults(config), *_foreign_fields(config)]
    if config.num_key_value_heads > 0 and config.num_attention_heads % config.num_key_value_heads:
        faults.append(
            f"num_attention_heads={config.num_attention_heads} is no multiple of "
            f"num_key_value_heads={config.num_key_value_heads}"
        )
    if can_divide and config.family == "bailing_linear":
        faults += _bailing_faults(config)
    if config.rotary_dim % 2 or not 0 <= config.rotary_dim <= config.head_dim:
        faults.append(f"rotary_dim={config.rotary_dim} must be even and at most head_dim={config.head_dim}")
    if config.num_experts_per_tok > config.num_local_experts:
        faults.append(
            f"num_experts_per_tok={config.num_experts_per_tok} exceeds num_local_experts={config.num_local_experts}"
        )
    if config.tie_word_embeddings:
        faults.append("tie_word_embeddings must be false, because the head and the embeddings have their own weights")
    if config.param_dtype not in _DTYPES:
        faults.append(f"param_dtype is one of {', '.join(_DTYPES)}, not {config.param_dtype!r}")
    return faults


def _layer_faults(config: HybridConfig) -> list[str]:
    faults = []
    if len(config.attn_type_list) != config.num_hidden_layers:
        faults.append(f"attn_type_list has {len(config.attn_type_list)} entries for {config.num_hidden_layers} layers")
    if any(kind not in (LIGHTNING, SOFTMAX) for kind in config.attn_type_list):
        faults.append(f"attn_type_list holds 0 (lightning) or 1 (softmax), not {config.attn_type_list}")
    return faults


def _foreign_fields(config: HybridConfig) -> list[str]:
    """Fields of another family that were set: whoever set them believes that they do something."""
    default = {field.name: field.default for field in dataclasses.fields(config)}
    return [
        f"{name}={getattr(config, name)} belongs to the family {family}, and this is {config.family}"
        for family, names in OWN_FIELDS.items()
        for name in names
        if family != config.family and getattr(config, name) != default[name]
    ]


def _bailing_faults(config: HybridConfig) -> list[str]:
    """What can be wrong with the pattern, dense layers and groups; every divisor is positive."""
    inner, dense = config.num_attention_heads * config.head_dim, config.first_k_dense_replace
    faults = []
    if layer_group_size(config.attn_type_list) is None:
        faults.append(
            f"attn_type_list={config.attn_type_list} is for no g softmax in every g-th layer and in those behind the "
            "last whole group of g"
        )
    if inner % config.group_norm_size:
        faults.append(f"group_norm_size={config.group_norm_size} does not divide the {inner} numbers of all heads")
    if not 0 <= dense < config.num_hidden_layers:
        faults.append(f"first_k_dense_replace={dense} must not be negative and must leave a layer with experts")
    if dense > 0 and config.dense_intermediate_size <= 0:
        faults.append(f"dense_intermediate_size must be positive, not {config.dense_intermediate_size}")
    if config.num_shared_experts < 0:
        faults.append(f"num_shared_experts must not be negative, but is {config.num_shared_experts}")
    return faults + _group_faults(config)


def _group_faults(config: HybridConfig) -> list[str]:
    experts, groups, kept = config.num_local_experts, config.n_group, config.topk_group
    if experts % groups:
        return [f"n_group={groups} must divide num_local_experts={experts}"]
    if kept > groups:
        return [f"topk_group={kept} exceeds n_group={groups}"]
    faults = []
    if kept < groups and experts // groups < 2:
        faults.append(f"a group is judged by its two best experts, but n_group={groups} leaves one to each")
    if kept * (experts // groups) < config.num_experts_per_tok:
        faults.append(
            f"topk_group={kept} groups hold {kept * (experts // groups)} experts, fewer than "
            f"num_experts_per_tok={config.num_experts_per_tok}"
        )
    return faults
