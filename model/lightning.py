"""Lightning attention: linear attention with one fixed decay per head.

    S_t = decay * S_{t-1} + k_t^T v_t        o_t = q_t S_t        decay_h = exp(-slope_h)

No softmax, no scale, no denominator. Three forms of one function: `lightning_recurrence` (token by token, the
definition and the test oracle), `lightning_attention` (blocks of a packed row, for training and prefill) and
`lightning_step` (one token per sequence, for decoding). Source: MiniMax-01 report, arXiv 2501.08313, section 2.2.

Shapes: T tokens of a packed row, N sequences, C blocks of B tokens, H heads, d head width. Decays and states are
float32 at least: in bfloat16 the slow decays of late layers round to exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HybridConfig
from model.kernels.backend import kernels_for
from model.kernels.packed import Linear
from model.layer import Kept
from model.norm import RMSNorm
from model.row import Blocks, Row, cut_blocks

if TYPE_CHECKING:
    from model.cache import HybridCache, Turn

SPAN = 64
"""Blocks whose states are solved by one small triangular product, so that the scan has few Python steps."""


NARROW = 32
"""Width below which the CPU multiplies and sums a vector by a matrix faster than it starts a product for each head
(128 sequences, 4 heads: width 16, 49 us against 140; width 64, 400 against 100)."""


def block_size(head_dim: int) -> int:
    """Tokens in a block; it changes rounding only.

    A token costs `size` numbers for its block's scores and head_dim^2 / size for its share of the block's state,
    so the width of a head is the best size; below 32 the single products become too small to be worth starting.
    """
    return max(32, head_dim)


def slopes(num_heads: int, layer: int, num_layers: int) -> Tensor:
    """Decay exponents, float32 [num_heads], of layer `layer` counted over *all* layers, softmax ones included.

    s_h = 2^(-8 (h + 1) / H), scaled by 1 - layer / (num_layers - 1) + 1e-5. Where H is no power of two, the slopes
    of the largest power below it come first and every second slope of twice that power follows.
    """
    factor = 1 - layer / max(num_layers - 1, 1) + 1e-5
    return torch.tensor([s * factor for s in _head_slopes(num_heads)], dtype=torch.float32)


def _head_slopes(num_heads: int) -> list[float]:
    power = 1 << (num_heads.bit_length() - 1)
    if power == num_heads:
        return [2.0 ** (-8.0 * (h + 1) / num_heads) for h in range(num_heads)]
    return _head_slopes(power) + _head_slopes(2 * power)[0::2][: num_heads - power]


def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_H: Tensor,
    cu_seqlens: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend within each sequence of a packed row, in blocks.

    Args:
        q, k, v: [T, H, d], any float dtype; the work is done in float32 at least.
        slope_H: [H], positive decay exponents, see `slopes`.
        cu_seqlens: int64 [N + 1] borders of the sequences; None is one sequence.
        state: [N, H, d, d] (key by value), what each sequence carries in; None is zero.

    Returns:
        out [T, H, d] in q's dtype, and the final state of each sequence [N, H, d, d], float32 at least.
        Gradients flow through both, and into `state`.

    Source: MiniMax-01 (arXiv 2501.08313), section 2.2.
    """
    if cu_seqlens is None:
        cu_seqlens = torch.tensor([0, len(q)], device=q.device)
    blocks = cut_blocks(cu_seqlens, len(q), block_size(q.shape[-1]))
    out, entering = attend_blocks(q, k, v, slope_H, blocks, state)
    return out, _final_states(k, v, slope_H, blocks, entering, state)


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, blocks: Blocks, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`lightning_attention` over a plan made before, without the final states.

    Returns out [T, H, d] in q's dtype, and the state that enters each block [C, H, d, d].
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    s = slope_H.to(dtype)
    q_b, k_b, v_b = (_to_blocks(x.to(dtype), blocks) for x in (q, k, v))
    place_B = torch.arange(blocks.size, device=q.device, dtype=dtype)
    to_end_CHB = _decay(s, blocks.size - 1 - place_B) * blocks.running_CB[:, None, :]
    update_C = (k_b * to_end_CHB[..., None]).mT @ v_b
    if state is not None:
        update_C = update_C + _start_updates(state.to(dtype), s, blocks)
    entering_C = _scan(update_C, torch.exp(-s * blocks.size), blocks.through_C)

    distance_BB = (place_B[:, None] - place_B[None, :]).clamp_(min=0)
    weight_CHBB = _decay(s, distance_BB) * blocks.visible_CBB
    from_start_CHB = _decay(s, place_B + 1) * blocks.carried_CB[:, None, :]
    out_b = (q_b @ k_b.mT * weight_CHBB) @ v_b + (q_b * from_start_CHB[..., None]) @ entering_C
    out = out_b.transpose(1, 2).reshape(-1, *q.shape[1:])[: blocks.num_tokens]
    if state is not None:
        out = _add_start_reads(out, q.to(dtype), state.to(dtype), s, blocks)
    return out.to(q.dtype), entering_C


def lightning_step(q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token for each of N sequences: q, k, v [N, H, d], state [N, H, d, d] -> out [N, H, d], new state."""
    state = state.clone()
    return lightning_step_(q, k, v, slope_H, state), state


def lightning_step_(q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, state: Tensor) -> Tensor:
    """`lightning_step` that overwrites `state`, which may be a part of the cache's pool."""
    q, k, v = (x.to(state.dtype) for x in (q, k, v))
    state.mul_(torch.exp(-slope_H.to(state.dtype))[:, None, None])
    state.addcmul_(k.unsqueeze(-1), v.unsqueeze(-2))
    if q.device.type == "cpu" and q.shape[-1] < NARROW:
        return (q.unsqueeze(-1) * state).sum(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2)


def lightning_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_H: Tensor,
    cu_seqlens: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, token by token; arguments and results as in `lightning_attention`. Slow: for tests."""
    borders = [0, len(q)] if cu_seqlens is None else cu_seqlens.tolist()
    dtype = torch.promote_types(q.dtype, torch.float32)
    if state is None:
        state = torch.zeros(len(borders) - 1, *q.shape[1:], q.shape[-1], dtype=dtype, device=q.device)
    outs, finals = [], []
    for n in range(len(borders) - 1):
        carried = state[n : n + 1]
        for t in range(borders[n], borders[n + 1]):
            out, carried = lightning_step(q[t : t + 1], k[t : t + 1], v[t : t + 1], slope_H, carried)
            outs.append(out)
        finals.append(carried)
    return torch.cat(outs), torch.cat(finals)


def _decay(slope_H: Tensor, steps: Tensor) -> Tensor:
    """exp(-slope * steps): steps of shape [...] -> [H, ...]. Never a quotient of two powers, which overflows."""
    return torch.exp(-slope_H.view(-1, *([1] * steps.dim())) * steps)


def _to_blocks(x_THd: Tensor, blocks: Blocks) -> Tensor:
    """[T, H, d] -> [C, H, B, d], zeros behind the end; copied once, or every product would copy it again."""
    padding = blocks.num_blocks * blocks.size - len(x_THd)
    padded = F.pad(x_THd, (0, 0, 0, 0, 0, padding)) if padding else x_THd
    return padded.unflatten(0, (blocks.num_blocks, blocks.size)).transpose(1, 2).contiguous()


def _scan(update_C: Tensor, decay_H: Tensor, through_C: Tensor) -> Tensor:
    """States entering each block: S_0 = 0, S_{c+1} = through_c * decay * S_c + update_c.

    update_C [C, H, d, d], decay_H [H] of a whole block, through_C bool [C] -> [C, H, d, d].
    A span of blocks is one triangular product: S_i = sum over j < i in the same run of decay^(i-1-j) update_j.
    The state that enters the span takes part as an update of the block before it.
    """
    num_blocks, num_heads, width, _ = update_C.shape
    update_HC = update_C.transpose(0, 1).flatten(2)
    run_C = torch.cumsum(~through_C, 0)
    run_before = run_C.new_full((1,), -1)
    entering = update_HC.new_zeros(num_heads, 1, width * width)
    spans = []
    for first in range(0, num_blocks, SPAN):
        run_m = torch.cat([run_before, run_C[first : first + SPAN]])
        step_m = torch.arange(len(run_m), device=run_m.device)
        reach_mm = (run_m[:, None] == run_m[None, :]).tril_()
        weight_Hmm = decay_H[:, None, None] ** (step_m[:, None] - step_m[None, :]).clamp_(min=0) * reach_mm
        states = weight_Hmm @ torch.cat([entering, update_HC[:, first : first + SPAN]], 1)
        spans.append(states[:, :-1])
        entering, run_before = states[:, -1:], run_m[-1:]
    return torch.cat(spans, 1).unflatten(2, (width, width)).transpose(0, 1)


def _start_updates(state_N: Tensor, slope_H: Tensor, blocks: Blocks) -> Tensor:
    """What carried-in states add to the state at the end of the block in which their sequence starts."""
    start_N, stop_N = blocks.cu_seqlens[:-1], blocks.cu_seqlens[1:]
    block_N = start_N.clamp(max=blocks.num_tokens - 1) // blocks.size
    end_N = (block_N + 1) * blocks.size
    reaches_N = stop_N >= end_N
    decay_NH = torch.exp(-(end_N - start_N)[:, None] * slope_H) * reaches_N[:, None]
    zeros = state_N.new_zeros(blocks.num_blocks, *state_N.shape[1:])
    return zeros.index_add(0, block_N, state_N * decay_NH[:, :, None, None])


def _add_start_reads(out_T: Tensor, q_T: Tensor, state_N: Tensor, slope_H: Tensor, blocks: Blocks) -> Tensor:
    """Add what the tokens of each sequence's first block read from the state that was carried in."""
    start_N, stop_N = blocks.cu_seqlens[:-1], blocks.cu_seqlens[1:]
    stop_N = stop_N.minimum((start_N // blocks.size + 1) * blocks.size)
    token_NB, real_NB = _padded_tokens(start_N, stop_N, blocks)
    decay_NHB = _decay(slope_H, token_NB - start_N[:, None] + 1).transpose(0, 1) * real_NB[:, None, :]
    read = (q_T[token_NB].transpose(1, 2) * decay_NHB[..., None]) @ state_N
    return out_T.index_add(0, token_NB.flatten(), read.transpose(1, 2).flatten(0, 1))


def _final_states(
    k: Tensor, v: Tensor, slope_H: Tensor, blocks: Blocks, entering_C: Tensor, state: Tensor | None
) -> Tensor:
    """The state of each sequence after its last token [N, H, d, d]; an empty sequence keeps what it carried in."""
    dtype = entering_C.dtype
    s = slope_H.to(dtype)
    start_N, stop_N = blocks.cu_seqlens[:-1], blocks.cu_seqlens[1:]
    block_N = (stop_N - 1).clamp(min=0) // blocks.size
    origin_N = block_N * blocks.size
    token_NB, real_NB = _padded_tokens(start_N.maximum(origin_N), stop_N, blocks)
    age_NB = (stop_N[:, None] - 1 - token_NB).clamp_(min=0)
    decay_NHB = _decay(s, age_NB).transpose(0, 1) * real_NB[:, None, :]
    k_N = k[token_NB].transpose(1, 2).to(dtype) * decay_NHB[..., None]
    final = k_N.mT @ v[token_NB].transpose(1, 2).to(dtype)
    carried_NH = torch.exp(-(stop_N - origin_N)[:, None] * s) * (start_N < origin_N)[:, None]
    final = final + entering_C[block_N] * carried_NH[:, :, None, None]
    if state is None:
        return final
    # only a sequence that starts in its last block still has its carried-in state outside `entering_C`
    own_NH = torch.exp(-(stop_N - start_N)[:, None] * s) * (start_N >= origin_N)[:, None]
    return final + state.to(dtype) * own_NH[:, :, None, None]


def _padded_tokens(first_N: Tensor, stop_N: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Tokens first..stop of each sequence as [N, B] indices (padding points into the row), and which are real."""
    token_NB = first_N[:, None] + torch.arange(blocks.size, device=first_N.device)
    return token_NB.clamp(max=blocks.num_tokens - 1), token_NB < stop_N[:, None]


def attend_row(
    q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, row: Row, state: Tensor | None
) -> tuple[Tensor, Callable[[], Tensor]]:
    """`lightning_attention` over a row planned before, by the fastest code there is for such tensors.

    The final states come as a function, because the torch code makes them apart and training seldom wants them.
    """
    if fast := kernels_for(q):
        out, final = fast.attend(q, k, v, slope_H, row.cu_seqlens, state)
        return out, lambda: final
    out, entering = attend_blocks(q, k, v, slope_H, row.blocks, state)
    return out, lambda: _final_states(k, v, slope_H, row.blocks, entering, state)


class DecayAttention(nn.Module):
    """Every mixer with one fixed decay per head: what is common to them is the state and the three ways to run.

    A kind says what its queries, keys and values are (`_qkv`) and what becomes of the heads' outputs (`_project`).
    """

    def __init__(self, layer: int, slope_H: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.slope_values = slope_H

    @staticmethod
    def kept(config: HybridConfig) -> Kept:
        """One matrix per head, key by value."""
        return Kept(states={"state": (config.num_attention_heads, config.head_dim, config.head_dim)})

    def forward(self, u_TD: Tensor, row: Row) -> Tensor:
        """Train: every sequence starts from nothing."""
        q, k, v = self._qkv(u_TD, row.cos_TR, row.sin_TR)
        slope_H = self._slope(u_TD)
        out, final_states = attend_row(q, k, v, slope_H, row, None)
        if row.share is not None:
            out = row.share.add_carried(out, q, final_states()[-1], slope_H)
        return self._project(out, u_TD)

    def prefill(self, u_TD: Tensor, row: Row, slots_N: Tensor, cache: HybridCache) -> Tensor:
        """Read and write the states of `slots_N`, one slot per sequence of the row."""
        q, k, v = self._qkv(u_TD, row.cos_TR, row.sin_TR)
        pool = cache.states[self.layer]
        state = None if row.is_fresh else pool[slots_N]
        out, final_states = attend_row(q, k, v, self._slope(u_TD), row, state)
        pool[slots_N] = final_states().to(pool.dtype)
        return self._project(out, u_TD)

    def decode(self, u_ND: Tensor, turn: Turn, cache: HybridCache) -> Tensor:
        """One token for each slot of the turn."""
        q, k, v = self._qkv(u_ND, turn.cos_NR, turn.sin_NR)
        pool = cache.states[self.layer]
        if fast := kernels_for(q):
            return self._project(fast.step_(q, k, v, self._slope(u_ND), pool, turn.slots_N), u_ND)
        state = pool[turn.run]
        out = lightning_step_(q, k, v, self._slope(u_ND), state)
        if not isinstance(turn.run, slice):
            pool[turn.run] = state
        return self._project(out, u_ND)

    def _slope(self, u: Tensor) -> Tensor:
        if self.slope_values.device != u.device:
            self.slope_values = self.slope_values.to(u.device)
        return self.slope_values

    def _qkv(self, u: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [T, H, d] of u [T, D]; cos and sin [T, R] are those of the tokens' positions."""
        raise NotImplementedError

    def _project(self, out_THd: Tensor, u: Tensor) -> Tensor:
        """The mixer's result [T, D] from the heads' outputs."""
        raise NotImplementedError


def activated_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU(qkv) [T, H * 3 d], interleaved per head -> queries, keys and values [T, H, d], float32 at least."""
    qkv = F.silu(qkv.to(torch.promote_types(qkv.dtype, torch.float32)))
    q, k, v = qkv.view(len(qkv), num_heads, -1).chunk(3, dim=-1)
    return q, k, v


class LightningAttention(DecayAttention):
    """The lightning layer of MiniMax-M1: gated, normed, without positions.

    out = W_o( sigmoid(W_g u) * RMSNorm(heads) ), with q, k, v = SiLU(W_qkv u), interleaved per head.
    """

    def __init__(self, config: HybridConfig, layer: int) -> None:
        heads, width = config.num_attention_heads, config.head_dim
        super().__init__(layer, slopes(heads, layer, config.num_hidden_layers))
        inner, dtype = heads * width, config.dtype
        self.num_heads = heads
        self.qkv_proj = Linear(config.hidden_size, 3 * inner, dtype=dtype)
        self.output_gate = Linear(config.hidden_size, inner, dtype=dtype)
        self.out_proj = Linear(inner, config.hidden_size, dtype=dtype)
        self.norm = RMSNorm(inner, config.lightning_norm_eps, dtype)

    def _qkv(self, u: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return activated_heads(self.qkv_proj(u), self.num_heads)

    def _project(self, out_THd: Tensor, u: Tensor) -> Tensor:
        gate, heads = self.output_gate(u), out_THd.flatten(1)
        if fast := kernels_for(out_THd):
            gated = fast.gated_norm(heads, self.norm.weight, gate, self.norm.eps)
        else:
            gated = torch.sigmoid(gate) * self.norm(heads)
        projected: Tensor = self.out_proj(gated)
        return projected
