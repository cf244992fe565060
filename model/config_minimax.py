"""config.json of MiniMax-M1 and MiniMax-Text-01, which vLLM reads too, and of transformers' `minimax`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.config_file import ConfigFile, head_dim, is_scaled_rotary, refuse, require, shared_fields, shared_values
from model.errors import ModelError

if TYPE_CHECKING:
    from model.config import HybridConfig

LAYER_TYPES = ("linear_attention", "full_attention")
"""transformers' names of the layers' kinds, at the index of LIGHTNING and SOFTMAX."""

_KINDS = {"linear_attention": "linear_attn", "full_attention": "full_attn", "mlp": "mlp"}
_COPIED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "num_local_experts",
    "num_experts_per_tok",
)


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    refuse(
        values,
        {
            "shared_intermediate_size": bool(values.get("shared_intermediate_size")),
            "sliding_window": values.get("sliding_window") is not None,
            **is_scaled_rotary(values),
            "hidden_act": values.get("hidden_act", "silu") != "silu",
            "num_local_experts": isinstance(values.get("num_local_experts"), list),
        },
    )
    require(values, _COPIED)
    rotary_dim = values.get("rotary_dim")
    return {
        **{key: values[key] for key in _COPIED},
        **shared_fields(values),
        **_scales(values),
        "head_dim": head_dim(values),
        "rotary_dim": head_dim(values) if rotary_dim is None else rotary_dim,  # 0 is a value: no rotation at all
        "attn_type_list": _pattern(values),
        "rms_norm_eps": values.get("rms_norm_eps", 1e-5),
        "lightning_norm_eps": values.get("lightning_norm_eps", 1e-6),
        # transformers' `minimax` has the post-norm built in and does not write the switch
        "postnorm": values.get("postnorm", values.get("model_type") == "minimax"),
    }


def _pattern(values: Mapping[str, Any]) -> tuple[int, ...]:
    if values.get("attn_type_list") is not None:
        return tuple(values["attn_type_list"])
    layer_types = values.get("layer_types")
    if layer_types is None or any(name not in LAYER_TYPES for name in layer_types):
        raise ModelError(
            "config.json must name the kind of every layer, as attn_type_list of 0 and 1 or as layer_types of "
            f"{' and '.join(LAYER_TYPES)}; it has layer_types={layer_types!r}."
        )
    return tuple(LAYER_TYPES.index(name) for name in layer_types)


def _scales(values: Mapping[str, Any]) -> dict[str, float]:
    """Residual scales under either spelling; absent ones are 1, as in both reference implementations."""
    scales = {}
    for kind, short in _KINDS.items():
        for part in ("alpha", "beta"):
            name = f"layernorm_{kind}_{part}"
            scales[name] = float(values.get(name, values.get(f"{short}_{part}_factor", 1.0)))
    return scales


def _write(config: HybridConfig, layout: str) -> dict[str, Any]:
    values = {key: getattr(config, key) for key in _COPIED} | shared_values(config)
    values |= {
        "model_type": layout,
        "rotary_dim": config.rotary_dim,
        "lightning_norm_eps": config.lightning_norm_eps,
        "postnorm": config.postnorm,
        "sliding_window": None,
        "router_jitter_noise": 0.0,
    }
    return values | (_original_keys(config) if layout == "minimax_m1" else _transformers_keys(config))


def _original_keys(config: HybridConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "architectures": ["MiniMaxM1ForCausalLM"],
        "attn_type_list": list(config.attn_type_list),
        "rope_theta": config.rope_theta,
        "shared_intermediate_size": 0,
        "shared_moe_mode": "sigmoid",  # vLLM's own default is a softmax over one logit, which is always 1
    }
    for kind in _KINDS:
        keys[f"layernorm_{kind}_alpha"], keys[f"layernorm_{kind}_beta"] = config.residual_scales(kind)
    return keys


def _transformers_keys(config: HybridConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "architectures": ["MiniMaxForCausalLM"],
        "layer_types": [LAYER_TYPES[kind] for kind in config.attn_type_list],
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "block_size": 256,
    }
    for kind, short in _KINDS.items():
        keys[f"{short}_alpha_factor"], keys[f"{short}_beta_factor"] = config.residual_scales(kind)
    return keys


MINIMAX = ConfigFile(layouts=("minimax_m1", "minimax"), read=_read, write=_write)
