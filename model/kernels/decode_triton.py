"""One decoding step over a pool of lightning states, in place and by slot, in Triton.

    S = exp(-slope) S + k^T v        o = q S

Gathering the slots' states, stepping and scattering them back would move each state three times each way; here it is
read once and written once, which is all that a step of this kind costs (587 MB per token of MiniMax-M1).

Shapes: N slots that get a token, S slots of the pool, H heads, d head width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.errors import ModelError

COLUMNS = 32
"""Columns of a state that one program updates: they are independent, and many small programs hide the memory."""


def lightning_decode_(q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, pool: Tensor, slots_N: Tensor) -> Tensor:
    """Decay, add and read the states of `slots_N`, as `model.lightning.lightning_step_` does; other slots stay.

    Args:
        q, k, v: [N, H, d], any float dtype of at most 32 bits.
        slope_H: [H], positive decay exponents.
        pool: float32 [S, H, d, d] (key by value), overwritten at `slots_N`; a slot's state must be contiguous.
        slots_N: integer [N], all different, or two programs would write one state.

    Returns:
        out, float32 [N, H, d].

    Raises ModelError for a pool of another dtype or layout, or a width that is no power of two.
    """
    num, num_heads, width = q.shape
    if pool.dtype != torch.float32 or pool.stride()[1:] != (width * width, width, 1) or width & (width - 1):
        raise ModelError(
            "Decoding in Triton needs a float32 pool of contiguous states whose width is a power of two, but got "
            f"{pool.dtype} with strides {pool.stride()} and width {width}; use the torch code instead."
        )
    out = q.new_empty(q.shape, dtype=torch.float32)
    columns = min(width, COLUMNS)
    if num == 0:
        return out
    with torch.cuda.device_of(q):
        _step_kernel[num, num_heads, width // columns](
            *(q, k, v, slope_H, pool, slots_N, out),
            *(*q.stride(), *k.stride(), *v.stride()),
            *(pool.stride(0), num_heads),
            WIDTH=width,
            COLUMNS=columns,
            num_warps=4,
        )
    return out


@triton.jit
def _step_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    slopes: tl.tensor,
    pool: tl.tensor,
    slots: tl.tensor,
    out: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    q_dim: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    k_dim: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    v_dim: tl.tensor,
    slot_stride: tl.tensor,
    num_heads: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Some columns of one slot's state of one head."""
    n, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = tl.arange(0, WIDTH)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    slot = tl.load(slots + n).to(tl.int64)
    decay = tl.exp(-tl.load(slopes + h).to(tl.float32))
    q_row = tl.load(q + n * q_token + h * q_head + rows * q_dim).to(tl.float32)
    k_row = tl.load(k + n * k_token + h * k_head + rows * k_dim).to(tl.float32)
    v_row = tl.load(v + n * v_token + h * v_head + columns * v_dim).to(tl.float32)
    place = pool + slot * slot_stride + h * WIDTH * WIDTH + rows[:, None] * WIDTH + columns[None, :]
    state = tl.load(place) * decay + k_row[:, None] * v_row[None, :]
    tl.store(place, state)
    tl.store(out + (n * num_heads + h) * WIDTH + columns, tl.sum(q_row[:, None] * state, axis=0))
