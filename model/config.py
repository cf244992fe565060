"""What a hybrid model looks like: its family, sizes, layer pattern, and what only its family has.

Field names are those of MiniMax-M1's config.json, so that a file and this class can be compared line by line; a family
with other names for the same things translates them (model/config_file.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.config_bailing import BAILING
from model.config_faults import faults_of
from model.config_file import LIGHTNING, SOFTMAX
from model.config_minimax import LAYER_TYPES, MINIMAX
from model.errors import ModelError

FILES = {"minimax": MINIMAX, "bailing_linear": BAILING}
"""Family -> its config.json."""


@dataclass(frozen=True)
class HybridConfig:
    """A hybrid model. The defaults are the tiny policy that trains on a laptop, 0.28M parameters.

    Attributes:
        family: whose mathematics: minimax (MiniMax-M1) or bailing_linear (Ring-linear-2.0, Ling-linear-2.0).
        vocab_size: number of token ids.
        hidden_size: width of the residual stream.
        num_hidden_layers: layers of both kinds together.
        num_attention_heads: heads of every attention layer.
        num_key_value_heads: key and value heads of softmax layers; lightning layers have one per head.
        head_dim: width of a head; heads * head_dim need not be hidden_size.
        rotary_dim: how many leading dimensions of a head are rotated by position, in minimax in softmax layers; even.
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
        group_norm_size: bailing_linear: parts of the linear layers' output that are normed by themselves.
        dense_intermediate_size: bailing_linear: width of the dense layers.
        first_k_dense_replace: bailing_linear: how many layers at the beginning are dense instead of having experts.
        num_shared_experts: bailing_linear: experts that every token visits besides its own.
        n_group: bailing_linear: groups into which the experts are divided.
        topk_group: bailing_linear: groups among which a token's experts are chosen.
        routed_scaling_factor: bailing_linear: what the weights of a token's experts add up to.
    """

    family: str = "minimax"
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
    group_norm_size: int = 1
    dense_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    num_shared_experts: int = 0
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        faults = faults_of(self)
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
        return self.residual_scales(LAYER_TYPES[self.attn_type_list[layer]])

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> HybridConfig:
        """Read a config.json of MiniMax-M1, MiniMax-Text-01, transformers' `minimax`, Ring-linear or Ling-linear.

        Keys that do not concern the model's mathematics are ignored. Raises ModelError for missing keys and for
        features that this code does not have (sliding windows, scaled rotary, latent attention).
        """
        layout = values.get("model_type")
        file = next((file for file in FILES.values() if layout in file.layouts), MINIMAX)
        return cls(**file.read(values))

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts of `to_hf`, the family's own first."""
        return FILES[self.family].layouts

    def to_hf(self, layout: str) -> dict[str, Any]:
        """The config.json: "minimax_m1" (original, vLLM), "minimax" (transformers); or "bailing_moe_linear"."""
        if layout not in self.layouts:
            raise ModelError(f"A checkpoint layout is one of {', '.join(self.layouts)}, not {layout!r}.")
        return FILES[self.family].write(self, layout)


def _torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
