"""The Triton programs behind `model.kernels.lightning_triton`, where the equations are.

Every program has one head of one chunk, or of one sequence, and a tile of the columns of its result. Tokens behind the
end of a short chunk are read as zeros and never written.

Score blocks that enter a product from the left are computed in the orientation that it needs, k q^T beside q k^T:
turning the accumulator of a product is what Triton from 3.4.0 to before 3.7.1 miscompiles on Hopper
(flash-linear-attention, issue 640).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _decay(slope: tl.tensor, steps: tl.tensor) -> tl.tensor:
    """exp(-slope * steps), and 0 where steps < 0: the causal mask, or the end of a short chunk."""
    return tl.where(steps >= 0, tl.exp(-slope * tl.maximum(steps, 0)), 0.0)


@triton.jit
def _load_rows(x: tl.tensor, tokens: tl.tensor, real: tl.tensor, stride: tl.tensor, dims: tl.tensor) -> tl.tensor:
    """float32 [tokens, dims] of one head; 0 for tokens that are not real."""
    return tl.load(x + tokens[:, None] * stride + dims[None, :], mask=real[:, None], other=0.0).to(tl.float32)


@triton.jit
def walk_kernel(
    left: tl.tensor,
    right: tl.tensor,
    slopes: tl.tensor,
    cu_seqlens: tl.tensor,
    firsts: tl.tensor,
    start_state: tl.tensor,
    states: tl.tensor,
    last_state: tl.tensor,
    left_token: tl.tensor,
    left_head: tl.tensor,
    right_token: tl.tensor,
    right_head: tl.tensor,
    num_heads: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_STATE: tl.constexpr,
    BACKWARDS: tl.constexpr,
) -> None:
    """One tile of one head's state along one sequence. Forwards (k, v) make S, backwards (q, do) make dS."""
    n, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.arange(0, CHUNK)
    rows = tl.program_id(2) // (WIDTH // TILE) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(2) % (WIDTH // TILE) * TILE + tl.arange(0, TILE)
    cells = rows[:, None] * WIDTH + columns[None, :]
    slope = tl.load(slopes + h)
    start, stop = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    first, behind = tl.load(firsts + n), tl.load(firsts + n + 1)
    own = (n * num_heads + h) * WIDTH * WIDTH
    state = tl.zeros([TILE, TILE], tl.float32)
    if HAS_STATE:
        state += tl.load(start_state + own + cells)
    for step in range(behind - first):
        if BACKWARDS:
            chunk = behind - 1 - step
        else:
            chunk = first + step
        tl.store(states + (chunk * num_heads + h) * WIDTH * WIDTH + cells, state)
        origin = start + (chunk - first) * CHUNK
        length = tl.minimum(stop - origin, CHUNK)
        real = place < length
        x = _load_rows(left + h * left_head, origin + place, real, left_token, rows)
        y = _load_rows(right + h * right_head, origin + place, real, right_token, columns)
        if BACKWARDS:
            x *= _decay(slope, place + 1)[:, None]
        else:
            x *= _decay(slope, length - 1 - place)[:, None]
        state = tl.dot(tl.trans(x), y, state * tl.exp(-slope * length), input_precision=PRECISION)
    tl.store(last_state + own + cells, state)


@triton.jit
def output_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    slopes: tl.tensor,
    origins: tl.tensor,
    lengths: tl.tensor,
    entering: tl.tensor,
    out: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    num_heads: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """o of one chunk and head, a tile of its columns: what tokens read from the state and from each other."""
    c, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    origin, length = tl.load(origins + c), tl.load(lengths + c)
    if length == 0:
        return
    place, part = tl.arange(0, CHUNK), tl.arange(0, TILE)
    columns = tl.program_id(2) * TILE + part
    tokens, real = origin + place, place < length
    slope, shift = tl.load(slopes + h), h * head_stride
    entering += (c * num_heads + h) * WIDTH * WIDTH
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    read = tl.zeros([CHUNK, TILE], tl.float32)
    for first in range(0, WIDTH, TILE):
        rows = first + part
        q_part = _load_rows(q + shift, tokens, real, token_stride, rows)
        k_part = _load_rows(k + shift, tokens, real, token_stride, rows)
        state = tl.load(entering + rows[:, None] * WIDTH + columns[None, :])
        scores = tl.dot(q_part, tl.trans(k_part), scores, input_precision=PRECISION)
        read = tl.dot(q_part, state, read, input_precision=PRECISION)
    scores *= _decay(slope, place[:, None] - place[None, :])
    read *= _decay(slope, place + 1)[:, None]
    v_part = _load_rows(v + shift, tokens, real, token_stride, columns)
    read = tl.dot(scores, v_part, read, input_precision=PRECISION)
    to = out + tokens[:, None] * num_heads * WIDTH + h * WIDTH + columns[None, :]
    tl.store(to, read.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit
def grad_qk_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    grad_out: tl.tensor,
    slopes: tl.tensor,
    origins: tl.tensor,
    lengths: tl.tensor,
    entering: tl.tensor,
    leaving: tl.tensor,
    dq: tl.tensor,
    dk: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    num_heads: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """dq and dk of one chunk and head, a tile of their columns, which are the rows of the states."""
    c, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    origin, length = tl.load(origins + c), tl.load(lengths + c)
    if length == 0:
        return
    place, part = tl.arange(0, CHUNK), tl.arange(0, TILE)
    rows = tl.program_id(2) * TILE + part
    tokens, real = origin + place, place < length
    slope, shift = tl.load(slopes + h), h * head_stride
    own, own_token = (c * num_heads + h) * WIDTH * WIDTH, num_heads * WIDTH
    weight = tl.zeros([CHUNK, CHUNK], tl.float32)  # do_i v_j at [i, j]
    turned = tl.zeros([CHUNK, CHUNK], tl.float32)  # do_i v_j at [j, i]
    dq_part = tl.zeros([CHUNK, TILE], tl.float32)
    dk_part = tl.zeros([CHUNK, TILE], tl.float32)
    for first in range(0, WIDTH, TILE):
        columns = first + part
        do_part = _load_rows(grad_out + h * WIDTH, tokens, real, own_token, columns)
        v_part = _load_rows(v + shift, tokens, real, token_stride, columns)
        cells = own + rows[None, :] * WIDTH + columns[:, None]  # of a transposed state
        weight = tl.dot(do_part, tl.trans(v_part), weight, input_precision=PRECISION)
        turned = tl.dot(v_part, tl.trans(do_part), turned, input_precision=PRECISION)
        dq_part = tl.dot(do_part, tl.load(entering + cells), dq_part, input_precision=PRECISION)
        dk_part = tl.dot(v_part, tl.load(leaving + cells), dk_part, input_precision=PRECISION)
    q_part = _load_rows(q + shift, tokens, real, token_stride, rows)
    k_part = _load_rows(k + shift, tokens, real, token_stride, rows)
    weight *= _decay(slope, place[:, None] - place[None, :])
    turned *= _decay(slope, place[None, :] - place[:, None])
    dq_part *= _decay(slope, place + 1)[:, None]
    dk_part *= _decay(slope, length - 1 - place)[:, None]
    dq_part = tl.dot(weight, k_part, dq_part, input_precision=PRECISION)
    dk_part = tl.dot(turned, q_part, dk_part, input_precision=PRECISION)
    to = tokens[:, None] * own_token + h * WIDTH + rows[None, :]
    tl.store(dq + to, dq_part.to(dq.dtype.element_ty), mask=real[:, None])
    tl.store(dk + to, dk_part.to(dk.dtype.element_ty), mask=real[:, None])


@triton.jit
def grad_v_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    grad_out: tl.tensor,
    slopes: tl.tensor,
    origins: tl.tensor,
    lengths: tl.tensor,
    leaving: tl.tensor,
    dv: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    num_heads: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """dv of one chunk and head, a tile of its columns, which are those of the states."""
    c, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    origin, length = tl.load(origins + c), tl.load(lengths + c)
    if length == 0:
        return
    place, part = tl.arange(0, CHUNK), tl.arange(0, TILE)
    columns = tl.program_id(2) * TILE + part
    tokens, real = origin + place, place < length
    slope, shift = tl.load(slopes + h), h * head_stride
    leaving += (c * num_heads + h) * WIDTH * WIDTH
    turned = tl.zeros([CHUNK, CHUNK], tl.float32)  # q_i k_j at [j, i]
    dv_part = tl.zeros([CHUNK, TILE], tl.float32)
    for first in range(0, WIDTH, TILE):
        rows = first + part
        q_part = _load_rows(q + shift, tokens, real, token_stride, rows)
        k_part = _load_rows(k + shift, tokens, real, token_stride, rows)
        state = tl.load(leaving + rows[:, None] * WIDTH + columns[None, :])
        turned = tl.dot(k_part, tl.trans(q_part), turned, input_precision=PRECISION)
        dv_part = tl.dot(k_part, state, dv_part, input_precision=PRECISION)
    turned *= _decay(slope, place[None, :] - place[:, None])
    dv_part *= _decay(slope, length - 1 - place)[:, None]
    do_part = _load_rows(grad_out + h * WIDTH, tokens, real, num_heads * WIDTH, columns)
    dv_part = tl.dot(turned, do_part, dv_part, input_precision=PRECISION)
    to = dv + tokens[:, None] * num_heads * WIDTH + h * WIDTH + columns[None, :]
    tl.store(to, dv_part.to(dv.dtype.element_ty), mask=real[:, None])
