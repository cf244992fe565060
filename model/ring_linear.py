"""The mixers of Ring-linear-2.0 and Ling-linear-2.0 (inclusionAI, model_type `bailing_moe_linear`).

Linear layers are lightning attention with a norm on queries and keys, rotary positions, a scale and a gated group norm:

    q, k = rotate(RMSNorm_q(W_q u)), rotate(RMSNorm_k(W_k u))        v = W_v u
    S_t = exp(-s) S_{t-1} + k_t^T v_t        o_t = d^(-1/2) q_t S_t        out = W_o( sigmoid(W_g u) * GroupRMSNorm(o) )

Softmax layers are grouped-query attention with the same norms and the same rotation, without a gate. Rotation takes the
leading `partial_rotary_factor` of a head in halves, as in model/softmax.py. One matrix makes queries, keys and values,
in this order, each of them all heads one behind the other (MiniMax interleaves them per head).

Sources: github.com/inclusionAI/Ring-V2.5, models/modeling_bailing_moe_v2_5.py (commit ae5a5d9), the successor's code,
for the linear layer, the router and the pattern of layers; its MLX port, bailing_moe_linear.py; for the names
of weights github.com/inclusionAI/AReno, areno/models/bailing; for config.json the file of Ring-mini-linear-2.0.

Where public code disagrees:
- The slope of layer l is that of `model.lightning.slopes` at l - 1: its factor is 1 - (l - 1) / (L - 1) + 1e-5, above 1
  in layer 0. So say inclusionAI's code and the MLX port. vLLM (bailing_linear_attn.py, commit 055e47c) and sglang
  (lightning backend) use l, so their states decay otherwise.
- The scale d^(-1/2) is not written in inclusionAI's code: it is the default of flash-linear-attention's
  `chunk_simple_gla`, which that code calls. The MLX port writes it out. Behind the group norm only eps feels it.

Not verified: logits of a published checkpoint, because no weights were at hand; and the 2.0 file of the linear model,
modeling_bailing_moe_linear_v2.py, which was not to be had: its linear layer is known from 2.5 and from quotations, its
softmax layer from Ling 2.0 as NVIDIA NeMo AutoModel documents it, because 2.5 replaced it by latent attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import HybridConfig
from model.kernels.packed import Linear
from model.lightning import DecayAttention, slopes
from model.norm import GroupRMSNorm, RMSNorm
from model.softmax import CausalAttention, rotate


class RingLinearAttention(DecayAttention):
    """The linear layer: as many key and value heads as query heads."""

    def __init__(self, config: HybridConfig, layer: int) -> None:
        heads, width, dtype = config.num_attention_heads, config.head_dim, config.dtype
        super().__init__(layer, slopes(heads, layer - 1, config.num_hidden_layers))
        inner = heads * width
        self.num_heads = heads
        self.scale = width**-0.5
        self.query_key_value = Linear(config.hidden_size, 3 * inner, dtype=dtype)
        self.query_layernorm = RMSNorm(width, config.rms_norm_eps, dtype)
        self.key_layernorm = RMSNorm(width, config.rms_norm_eps, dtype)
        self.g_proj = Linear(config.hidden_size, inner, dtype=dtype)
        self.g_norm = GroupRMSNorm(inner, config.group_norm_size, config.rms_norm_eps, dtype)
        self.dense = Linear(inner, config.hidden_size, dtype=dtype)

    def _qkv(self, u: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query_key_value(u).view(len(u), 3, self.num_heads, -1).unbind(1)
        q, k = rotate(self.query_layernorm(q), cos, sin), rotate(self.key_layernorm(k), cos, sin)
        return q * self.scale, k, v

    def _project(self, out_THd: Tensor, u: Tensor) -> Tensor:
        projected: Tensor = self.dense(torch.sigmoid(self.g_proj(u)) * self.g_norm(out_THd.flatten(1)))
        return projected


class RingSoftmaxAttention(CausalAttention):
    """The softmax layer."""

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__(config, layer)
        width, dtype = config.head_dim, config.dtype
        self.query_key_value = Linear(config.hidden_size, (self.num_heads + 2 * self.num_kv_heads) * width, dtype=dtype)
        self.query_layernorm = RMSNorm(width, config.rms_norm_eps, dtype)
        self.key_layernorm = RMSNorm(width, config.rms_norm_eps, dtype)
        self.dense = Linear(self.num_heads * width, config.hidden_size, dtype=dtype)

    def _qkv(self, u: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        q, k, v = self.query_key_value(u).view(len(u), -1, self.head_dim).split(heads, dim=1)
        return rotate(self.query_layernorm(q), cos, sin), rotate(self.key_layernorm(k), cos, sin), v

    def _project(self, out_THd: Tensor) -> Tensor:
        projected: Tensor = self.dense(out_THd.flatten(1))
        return projected
