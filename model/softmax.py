"""Softmax attention: grouped queries, causal, rotary positions on the first dimensions of each head.

Packed rows are attended bucket by bucket (model/row.py), so no mask is ever as wide as the row. Decoding reads the
cache up to the longest of the sequences that decode together and no further.

Shapes: T tokens, N sequences, n sequences of a bucket padded to L tokens, H heads, K key/value heads, M keys, d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cached_attention import attend_cached
from model.config import HybridConfig
from model.kernels.packed import Linear
from model.layer import Kept
from model.row import Bucket, Row

if TYPE_CHECKING:
    from model.cache import HybridCache, Turn


def rotary_tables(positions_T: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, rotary_dim / 2], of position * theta^(-2 i / rotary_dim)."""
    exponent = torch.arange(0, rotary_dim, 2, device=positions_T.device, dtype=torch.float32) / max(rotary_dim, 1)
    angle = positions_T[:, None].float() / theta**exponent
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate pairs (i, i + R) of the first 2R dimensions of x [T, H, d]; the others stay (NeoX halves)."""
    cos, sin = cos_TR[:, None].to(x.dtype), sin_TR[:, None].to(x.dtype)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _attend_last(q_nHd: Tensor, k_MKd: Tensor, v_MKd: Tensor) -> Tensor:
    """Causal attention of the last n tokens of a sequence of M: [n, H, d]."""
    from torch.nn.attention.bias import causal_lower_right  # it brings torch's compiler along: seconds, for this alone

    mask = causal_lower_right(len(q_nHd), len(k_MKd))  # no [n, M] tensor where a fused kernel takes it as it is
    q, k, v = (x.transpose(0, 1)[None] for x in (q_nHd, k_MKd, v_MKd))
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out[0].transpose(0, 1)


SHORT = 128
"""Padded length up to which plain products beat the CPU's fused kernel (length 24: 7 ms against 13, both ways)."""


class CausalAttention(nn.Module):
    """Every mixer that attends to kept keys and values: what is common to them is the cache and the three ways to run.

    A kind says what its queries, keys and values are (`_qkv`) and what becomes of the heads' outputs (`_project`).
    """

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim

    @staticmethod
    def kept(config: HybridConfig) -> Kept:
        """A key and a value of every token."""
        size = (config.num_key_value_heads, config.head_dim)
        return Kept(tokens={"keys": size, "values": size})

    def forward(self, u_TD: Tensor, row: Row) -> Tensor:
        """Train: every sequence starts from nothing."""
        q, k, v = self._qkv(u_TD, row.cos_TR, row.sin_TR)
        attend = self._attend_buckets if row.share is None else self._attend_over_ranks
        return self._project(attend(q, k, v, row))

    def prefill(self, u_TD: Tensor, row: Row, slots_N: Tensor, cache: HybridCache) -> Tensor:
        """Append to the keys and values of `slots_N`, one slot per sequence, and attend over all of them."""
        q, k, v = self._qkv(u_TD, row.cos_TR, row.sin_TR)
        before_N = cache.length_S[slots_N]
        length_N = row.cu_seqlens.diff()
        sequence_T = torch.repeat_interleave(length_N, output_size=len(u_TD))
        place_T = torch.arange(len(u_TD), device=u_TD.device) - row.cu_seqlens[sequence_T] + before_N[sequence_T]
        keys, values = cache.keys[self.layer], cache.values[self.layer]
        keys[slots_N[sequence_T], :, place_T] = k.to(keys.dtype)
        values[slots_N[sequence_T], :, place_T] = v.to(values.dtype)
        q_P = q.index_select(0, row.buckets.gather_P)
        outs, first = [], 0
        for bucket in row.buckets.buckets:
            stop = first + len(bucket.sequences_n) * bucket.length
            slots_n, before_n = slots_N[bucket.sequences_n], before_N[bucket.sequences_n]
            longest = int((before_n + bucket.lengths_n).max())
            # One slot, as with a long prompt, is a view: a copy would double what the layer holds.
            k_n, v_n = (pool[:, :, :longest][cache.run(slots_n)] for pool in (keys, values))
            outs.append(self._attend_cached(q_P[first:stop], k_n, v_n, before_n))
            first = stop
        return self._project(torch.cat(outs).index_select(0, row.buckets.scatter_T))

    def decode(self, u_ND: Tensor, turn: Turn, cache: HybridCache) -> Tensor:
        """One token for each slot of the turn."""
        q, k, v = self._qkv(u_ND, turn.cos_NR, turn.sin_NR)
        keys, values = cache.keys[self.layer], cache.values[self.layer]
        keys[turn.slots_N, :, turn.length_N] = k.to(keys.dtype)
        values[turn.slots_N, :, turn.length_N] = v.to(values.dtype)
        out = torch.empty_like(q)
        for part in turn.parts:
            k_n, v_n = (pool[:, :, : part.longest][part.run] for pool in (keys, values))
            out[part.lanes] = self._attend_cached(q[part.lanes], k_n, v_n, turn.length_N[part.lanes])
        return self._project(out)

    def _attend_buckets(self, q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
        """Causal attention [T, H, d] within each sequence of the row's buckets."""
        padded = [x.index_select(0, row.buckets.gather_P) for x in (q, k, v)]
        sizes = [len(bucket.sequences_n) * bucket.length for bucket in row.buckets.buckets]
        outs = [
            self._attend_bucket(bucket, *parts)
            for bucket, *parts in zip(row.buckets.buckets, *(x.split(sizes) for x in padded), strict=True)
        ]
        return torch.cat(outs).index_select(0, row.buckets.scatter_T)

    def _attend_over_ranks(self, q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
        """The same where the first sequence may have begun on an earlier rank, whose keys and values it needs."""
        share = row.share
        assert share is not None
        # One collective for both, used by every rank whether it needs the others or not: or somebody waits for ever.
        k, v = share.gather(torch.stack((k, v), dim=1)).unbind(1)
        border = share.tokens.start + share.num_continued
        outs = []
        if share.num_continued:
            begun = slice(share.first_start, border)
            outs.append(_attend_last(q[: share.num_continued], k[begun], v[begun]))
        if border < share.tokens.stop:
            own = slice(border, share.tokens.stop)
            outs.append(self._attend_buckets(q[share.num_continued :], k[own], v[own], row))
        return torch.cat(outs)

    def _attend_bucket(self, bucket: Bucket, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within padded sequences: padding stands behind, so causality alone hides it."""
        count, length = len(bucket.sequences_n), bucket.length
        q, k, v = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if q.device.type == "cpu" and length <= SHORT:
            later = torch.full((length, length), float("-inf"), dtype=q.dtype).triu_(1)
            q = q.reshape(count, self.num_kv_heads, -1, self.head_dim) * self.head_dim**-0.5
            scores = (q @ k.mT).view(count, self.num_heads, length, length) + later
            out = torch.softmax(scores, dim=-1).view(count, self.num_kv_heads, -1, length) @ v
            out = out.view(count, self.num_heads, length, self.head_dim)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(-1, self.num_heads, self.head_dim)

    def _attend_cached(self, q: Tensor, k_n: Tensor, v_n: Tensor, before_n: Tensor) -> Tensor:
        """Queries [n * L, H, d] at places before_n, before_n + 1, ... over cached keys [n, K, M, d]."""
        count, groups = len(k_n), self.num_heads // self.num_kv_heads
        q = q.view(count, -1, self.num_kv_heads, groups, self.head_dim).permute(0, 2, 3, 1, 4)
        out = attend_cached(q, k_n.to(q.dtype), v_n.to(q.dtype), before_n)
        return out.permute(0, 3, 1, 2, 4).reshape(-1, self.num_heads, self.head_dim)

    def _qkv(self, u: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, d], keys and values [T, K, d] of u [T, D], rotated."""
        raise NotImplementedError

    def _project(self, out_THd: Tensor) -> Tensor:
        """The mixer's result [T, D] from the heads' outputs."""
        raise NotImplementedError


class SoftmaxAttention(CausalAttention):
    """The full-attention layer of MiniMax-M1; no query or key norm, no bias."""

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__(config, layer)
        width, dtype = config.head_dim, config.dtype
        self.q_proj = Linear(config.hidden_size, self.num_heads * width, dtype=dtype)
        self.k_proj = Linear(config.hidden_size, self.num_kv_heads * width, dtype=dtype)
        self.v_proj = Linear(config.hidden_size, self.num_kv_heads * width, dtype=dtype)
        self.o_proj = Linear(self.num_heads * width, config.hidden_size, dtype=dtype)

    def _qkv(self, u: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q_proj(u).view(len(u), self.num_heads, self.head_dim)
        k = self.k_proj(u).view(len(u), self.num_kv_heads, self.head_dim)
        v = self.v_proj(u).view(len(u), self.num_kv_heads, self.head_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _project(self, out_THd: Tensor) -> Tensor:
        projected: Tensor = self.o_proj(out_THd.flatten(1))
        return projected
