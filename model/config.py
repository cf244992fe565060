"""What a hybrid model looks like: sizes, layer pattern, residual scales.

Field names are those of MiniMax-M1's config.json, so that a file and this class can be compared line by line.
`from_hf` also reads the names that transformers gave the same things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.errors import ModelError

LIGHTNING, SOFTMAX = 0, 1
LAYOUTS = ("minimax_m1", "minimax")
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_LAYER_TYPES = ("linear_attention", "full_attention")  # at the index of LIGHTNING and SOFTMAX
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


@dataclass(frozen=True)
class HybridConfig:
    """A MiniMax-M1 style hybrid. The defaults are the tiny policy that trains on a laptop, 0.28M parameters.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: width of the residual stream.
        num_hidden_layers: layers of both kinds together.
        num_attention_heads: heads of every attention layer.
        num_key_value_heads: key and value heads of softmax layers; lightning layers have one per head.
        head_dim: width of a head; heads * head_dim need not be hidden_size.
        rotary_dim: how many leading dimensions of a head are rotated by position in softmax layers; even.
        rope_theta: base of the rotation frequencies.
        intermediate_size: width of one expert.
        num_local_experts: experts of a layer.
        num_experts_per_tok: experts that each token visits.
        attn_type_list: 0 lightning or 1 softmax, for each layer.
        rms_norm_eps: of all norms but the one inside lightning attention.
        lightning_norm_eps: of the norm over the concatenated heads of lightning attention.
        postnorm: the residual is taken after the norm (MiniMax-M1) rather than before it.
        layernorm_linear_attention_alpha: residual scale of lightning layers; None is DeepNorm's (2 L)^(1/4).
        layernorm_linear_attention_beta: branch scale of lightning layers.
        layernorm_full_attention_alpha: residual scale of softmax layers; None is DeepNorm's (2 L)^(1/4).
        layernorm_full_attention_beta: branch scale of softmax layers.
        layernorm_mlp_alpha: residual scale of the experts' sublayer; None is DeepNorm's (2 L)^(1/4).
        layernorm_mlp_beta: branch scale of the experts' sublayer.
        max_position_embeddings: longest context in tokens that the model was made for.
        initializer_range: standard deviation of the initial weights.
        tie_word_embeddings: must be False; the head has its own float32 product.
        param_dtype: dtype of the parameters; router weights are float32 whatever it says.
    """

    vocab_size: int = 64
    hidden_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 8
    rope_theta: float = 10000.0
    intermediate_size: int = 32
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    attn_type_list: tuple[int, ...] = (0, 0, 0, 1)
    rms_norm_eps: float = 1e-5
    lightning_norm_eps: float = 1e-6
    postnorm: bool = True
    layernorm_linear_attention_alpha: float | None = None
    layernorm_linear_attention_beta: float = 1.0
    layernorm_full_attention_alpha: float | None = None
    layernorm_full_attention_beta: float = 1.0
    layernorm_mlp_alpha: float | None = None
    layernorm_mlp_beta: float = 1.0
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise ModelError("The model configuration cannot work: " + "; ".join(faults) + ".")

    @property
    def dtype(self) -> torch.dtype:
        """`param_dtype` as torch knows it."""
        return _torch_dtype(self.param_dtype)

    @property
    def lightning_layers(self) -> tuple[int, ...]:
        """Indices of the lightning layers."""
        return tuple(i for i, kind in enumerate(self.attn_type_list) if kind == LIGHTNING)

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Indices of the softmax layers."""
        return tuple(i for i, kind in enumerate(self.attn_type_list) if kind == SOFTMAX)

    def residual_scales(self, kind: str) -> tuple[float, float]:
        """(alpha, beta) of "linear_attention", "full_attention" or "mlp"; alpha defaults to (2 L)^(1/4)."""
        alpha = getattr(self, f"layernorm_{kind}_alpha")
        default = (2 * self.num_hidden_layers) ** 0.25
        return (default if alpha is None else alpha), getattr(self, f"layernorm_{kind}_beta")

    def attention_scales(self, layer: int) -> tuple[float, float]:
        """(alpha, beta) around the attention of layer `layer`."""
        return self.residual_scales(_LAYER_TYPES[self.attn_type_list[layer]])

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> HybridConfig:
        """Read a config.json of MiniMax-M1, MiniMax-Text-01 or transformers' `minimax`.

        Keys that do not concern the model's mathematics are ignored. Raises ModelError for a missing key and for
        a feature that this code does not have (shared experts, sliding windows, scaled rotary).
        """
        _refuse_unsupported(values)
        missing = [key for key in _COPIED if key not in values]
        if missing:
            raise ModelError(
                f"config.json lacks {', '.join(missing)}, without which no model can be built; "
                "use the config.json that belongs to the weights."
            )
        head_dim, rotary_dim = values.get("head_dim"), values.get("rotary_dim")
        if head_dim is None:
            head_dim = values["hidden_size"] // values["num_attention_heads"]
        rope = values.get("rope_parameters") or {}
        return cls(
            **{key: values[key] for key in _COPIED},
            **_scales_from_hf(values),
            head_dim=head_dim,
            rotary_dim=head_dim if rotary_dim is None else rotary_dim,  # 0 is a value: no rotation at all
            rope_theta=float(values.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            attn_type_list=_pattern_from_hf(values),
            rms_norm_eps=values.get("rms_norm_eps", 1e-5),
            lightning_norm_eps=values.get("lightning_norm_eps", 1e-6),
            # transformers' `minimax` has the post-norm built in and does not write the switch
            postnorm=values.get("postnorm", values.get("model_type") == "minimax"),
            max_position_embeddings=values.get("max_position_embeddings", 4096),
            initializer_range=values.get("initializer_range", 0.02),
            param_dtype=str(values.get("dtype") or values.get("torch_dtype") or "float32"),
        )

    def to_hf(self, layout: str) -> dict[str, Any]:
        """The config.json for "minimax_m1" (original, vLLM) or "minimax" (transformers)."""
        if layout not in LAYOUTS:
            raise ModelError(f"A checkpoint layout is one of {', '.join(LAYOUTS)}, not {layout!r}.")
        values = {key: getattr(self, key) for key in _COPIED}
        values |= {
            "model_type": layout,
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "lightning_norm_eps": self.lightning_norm_eps,
            "postnorm": self.postnorm,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": False,
            "attention_dropout": 0.0,
            "sliding_window": None,
            "router_jitter_noise": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
            "torch_dtype": self.param_dtype,
        }
        return values | (self._original_keys() if layout == "minimax_m1" else self._transformers_keys())

    def _original_keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "architectures": ["MiniMaxM1ForCausalLM"],
            "attn_type_list": list(self.attn_type_list),
            "rope_theta": self.rope_theta,
            "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid",  # vLLM's own default is a softmax over one logit, which is always 1
        }
        for kind in _KINDS:
            keys[f"layernorm_{kind}_alpha"], keys[f"layernorm_{kind}_beta"] = self.residual_scales(kind)
        return keys

    def _transformers_keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "architectures": ["MiniMaxForCausalLM"],
            "layer_types": [_LAYER_TYPES[kind] for kind in self.attn_type_list],
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "block_size": 256,
        }
        for kind, short in _KINDS.items():
            keys[f"{short}_alpha_factor"], keys[f"{short}_beta_factor"] = self.residual_scales(kind)
        return keys


def _torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _faults(config: HybridConfig) -> list[str]:
    """Every reason why `config` cannot work."""
    positive = (*_COPIED, "head_dim", "max_position_embeddings")
    faults = [f"{key} must be positive, not {getattr(config, key)}" for key in positive if getattr(config, key) <= 0]
    if len(config.attn_type_list) != config.num_hidden_layers:
        faults.append(f"attn_type_list has {len(config.attn_type_list)} entries for {config.num_hidden_layers} layers")
    if any(kind not in (LIGHTNING, SOFTMAX) for kind in config.attn_type_list):
        faults.append(f"attn_type_list holds 0 (lightning) or 1 (softmax), not {config.attn_type_list}")
    if config.num_key_value_heads > 0 and config.num_attention_heads % config.num_key_value_heads:
        faults.append(
            f"num_attention_heads={config.num_attention_heads} is no multiple of "
            f"num_key_value_heads={config.num_key_value_heads}"
        )
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


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    """Raise ModelError for features that would silently change the logits."""
    rope_type = (values.get("rope_parameters") or {}).get("rope_type", "default")
    refused = {
        "shared_intermediate_size": bool(values.get("shared_intermediate_size")),
        "sliding_window": values.get("sliding_window") is not None,
        "rope_scaling": values.get("rope_scaling") is not None,
        "rope_parameters": rope_type != "default",
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "num_local_experts": isinstance(values.get("num_local_experts"), list),
    }
    for key, bad in refused.items():
        if bad:
            raise ModelError(
                f"config.json sets {key} to {values[key]!r}, which this model code does not compute; "
                "use a checkpoint without it."
            )


def _pattern_from_hf(values: Mapping[str, Any]) -> tuple[int, ...]:
    if values.get("attn_type_list") is not None:
        return tuple(values["attn_type_list"])
    layer_types = values.get("layer_types")
    if layer_types is None or any(name not in _LAYER_TYPES for name in layer_types):
        raise ModelError(
            "config.json must name the kind of every layer, as attn_type_list of 0 and 1 or as layer_types of "
            f"{' and '.join(_LAYER_TYPES)}; it has layer_types={layer_types!r}."
        )
    return tuple(_LAYER_TYPES.index(name) for name in layer_types)


def _scales_from_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """Residual scales under either spelling; absent ones are 1, as in both reference implementations."""
    scales = {}
    for kind, short in _KINDS.items():
        for part in ("alpha", "beta"):
            name = f"layernorm_{kind}_{part}"
            scales[name] = float(values.get(name, values.get(f"{short}_{part}_factor", 1.0)))
    return scales
