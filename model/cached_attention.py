"""Attention of new tokens over all that a cache holds, in memory that does not grow with the cache.

A piece of 8,192 prompt tokens after 100,000 others would need 3.5 GB of scores per head in float32. Beyond a few
million scores they are therefore made a block at a time, with the running maximum and sum of online softmax. On a
CPU in float32 torch's kernel does the same faster (model/kernels/fused_attention.py), and the parts are joined here.
Forward only. Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

Shapes: n sequences, K key/value heads, g query heads for each, L new tokens, M keys, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import fused_attention

MAX_WHOLE = 1 << 22
"""Scores that are made at once, whatever the device; what decodes and short prompts need is far below."""

BLOCK = {"cpu": 1 << 19}
"""Scores in a block: on a CPU what its second-level cache holds, elsewhere MAX_BLOCK."""

MAX_BLOCK = 1 << 26


def attend_cached(q: Tensor, k: Tensor, v: Tensor, before_n: Tensor) -> Tensor:
    """Causal attention of tokens at places before_n, before_n + 1, ... over keys that include their own.

    Args:
        q: [n, K, g, L, d], not scaled yet.
        k, v: [n, K, M, d] in q's dtype; what lies beyond a sequence's own end must be finite.
        before_n: int64 [n], tokens before the new ones.

    Returns:
        [n, K, g, L, d] in q's dtype.
    """
    q = q * q.shape[-1] ** -0.5
    if fused_attention.pays(q, k):
        return attend_fused(q, k, v, before_n)
    place_nL = before_n[:, None] + torch.arange(q.shape[3], device=q.device)
    if q[..., 0].numel() * k.shape[2] <= MAX_WHOLE:
        return attend_whole(q, k, v, place_nL)
    rows = q[:, :, :, 0, 0].numel()
    return attend_in_blocks(q, k, v, place_nL, *block_shape(rows, BLOCK.get(q.device.type, MAX_BLOCK)))


def block_shape(rows: int, block: int) -> tuple[int, int]:
    """New tokens and keys of a block of about `block` scores, for `rows` heads of all sequences together.

    Not fewer than 16 by 128, or starting the products would cost more than doing them.
    """
    queries = min(256, max(16, block // (512 * rows)))
    return queries, max(128, block // (rows * queries))


def attend_fused(q: Tensor, k: Tensor, v: Tensor, before_n: Tensor) -> Tensor:
    """A sequence at a time by torch's kernel, which makes the scores in small blocks of its own; q is scaled."""
    outs = [_attend_fused(q[n], k[n], v[n], before) for n, before in enumerate(before_n.tolist())]
    return torch.stack(outs)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, before: int) -> Tensor:
    """One sequence [K, g, L, d]: what all its queries see is attended without a mask, the rest causally.

    Queries of padding may stand behind the last key; to the kernel they see all that there is.
    """
    stop = before + q.shape[2]
    if q.shape[2] == 1:
        return fused_attention.attend(q, k[:, :stop], v[:, :stop])[0]
    own, own_sum = fused_attention.attend(q, k[:, before:stop], v[:, before:stop], causal=True)
    if before == 0:
        return own
    past, past_sum = fused_attention.attend(q, k[:, :before], v[:, :before])
    return torch.lerp(past, own, torch.sigmoid(own_sum - past_sum)[..., None])


def attend_whole(q: Tensor, k: Tensor, v: Tensor, place_nL: Tensor) -> Tensor:
    """All scores at once; q is scaled, and query i of sequence n sees the keys 0 .. place_nL[n, i]."""
    groups, length = q.shape[2:4]
    scores = (q.flatten(2, 3) @ k.mT).unflatten(2, (groups, length))
    scores.masked_fill_(_hidden(place_nL, 0, k.shape[2]), float("-inf"))
    weight = torch.softmax(scores, dim=-1, dtype=_exact(q.dtype)).to(q.dtype)
    return (weight.flatten(2, 3) @ v).unflatten(2, (groups, length))


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, place_nL: Tensor, queries: int, keys: int) -> Tensor:
    """`attend_whole` with the scores of `queries` new tokens and `keys` keys at a time."""
    outs = [
        _attend_rows(q_block, k, v, place, keys)
        for q_block, place in zip(q.split(queries, dim=3), place_nL.split(queries, dim=1), strict=True)
    ]
    return torch.cat(outs, dim=3)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, place_nL: Tensor, keys: int) -> Tensor:
    """One block of queries over all keys that any of them sees, `keys` at a time."""
    groups, length = q.shape[2:4]
    q_rows = q.flatten(2, 3)
    exact = _exact(q.dtype)
    top = q_rows.new_full((*q_rows.shape[:3], 1), float("-inf"), dtype=exact)
    total, out = torch.zeros_like(top), torch.zeros_like(q_rows, dtype=exact)
    nearest, farthest = (int(place) for place in place_nL.aminmax())
    for first in range(0, min(farthest + 1, k.shape[2]), keys):
        k_block, v_block = (x[:, :, first : min(first + keys, farthest + 1)] for x in (k, v))
        scores = (q_rows @ k_block.mT).to(exact)
        last = first + k_block.shape[2] - 1
        if last > nearest:
            hidden = _hidden(place_nL, first, last + 1)
            scores.unflatten(2, (groups, length)).masked_fill_(hidden, float("-inf"))
        # Every query sees key 0, so after the first block its maximum is a number.
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        weight = scores.sub_(new_top).exp_()
        shrink = (top - new_top).exp_()
        total = total * shrink + weight.sum(-1, keepdim=True)
        out = out * shrink + weight.to(q.dtype) @ v_block
        top = new_top
    return (out / total).to(q.dtype).unflatten(2, (groups, length))


def _hidden(place_nL: Tensor, first: int, stop: int) -> Tensor:
    """bool [n, 1, 1, L, stop - first]: the keys that lie after each query."""
    hidden = torch.arange(first, stop, device=place_nL.device) > place_nL[:, :, None]
    return hidden[:, None, None]


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
