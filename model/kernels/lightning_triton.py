"""Lightning attention of packed rows in Triton, forward and backward, with states in and out.

Chunk by chunk of m tokens, i = 0..m-1, with w = decay = exp(-slope), state S entering and S' leaving, and dS' the
gradient of the leaving state:

    o_i  = w^(i+1) q_i S + sum_{j<=i} w^(i-j) (q_i k_j) v_j             S' = w^m S + sum_j w^(m-1-j) k_j^T v_j
    dq_i = w^(i+1) do_i S^T + sum_{j<=i} w^(i-j) (do_i v_j) k_j
    dk_j = sum_{i>=j} w^(i-j) (do_i v_j) q_i + w^(m-1-j) v_j dS'^T
    dv_j = sum_{i>=j} w^(i-j) (q_i k_j) do_i + w^(m-1-j) k_j dS'        dS = w^m dS' + sum_i w^(i+1) q_i^T do_i

The two recursions on the right are one kernel that walks a sequence's chunks forwards or backwards and writes down
the state at each; the rest is parallel over chunks. Entering states are computed again for the backward pass, for
they would be the largest thing to keep. Each w^n is exp(-slope n) with n >= 0, never a quotient, which overflows.

States and sums are float32. float32 inputs are multiplied in full precision, bfloat16 and float16 ones as TF32, which
holds them exactly and keeps more digits of the states than their own dtype would.

Score blocks that enter a product from the left are computed in the orientation that it needs, k q^T beside q k^T:
turning the accumulator of a product is what Triton 3.4 to 3.7.0 miscompiles on Hopper (flash-linear-attention, issue
640). There is no autotuning, so that the interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU, for the tests.

Shapes: T tokens, N sequences, C chunks, H heads, d head width. Source: MiniMax-01, arXiv 2501.08313, section 2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.errors import ModelError
from model.kernels.chunks import Chunks, cut_chunks

CHUNK = 64
"""Tokens in a chunk: its scores and a tile of the state are then squares of one size, which registers hold."""

MAX_TILE = 64
"""Width of the tiles that heads are cut into: a head of 128 has four independent tiles of state."""



IS_INTERPRETED: bool = triton.knobs.runtime.interpret
"""The kernels below run in Triton's interpreter, on CPUs too; decided when this file is imported."""


def supports(dtype: torch.dtype, head_dim: int) -> bool:
    """The kernels have this dtype and width: a power of two, and at least 16, the least that a product takes."""
    wide = dtype in (torch.float32, torch.bfloat16, torch.float16)
    return wide and 16 <= head_dim <= 256 and head_dim & (head_dim - 1) == 0


def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_H: Tensor,
    cu_seqlens: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`model.lightning.lightning_attention`, same arguments and results, for what `supports` allows.

    Args:
        q, k, v: [T, H, d], of one dtype. Strided views, such as the thirds of one projection, are read in place.
        slope_H: [H], positive decay exponents; they get no gradient.
        cu_seqlens: integer [N + 1] borders of the sequences; None is one sequence.
        state: [N, H, d, d] (key by value), what each sequence carries in; None is zero.

    Returns:
        out [T, H, d] in q's dtype, and the final state of each sequence, float32 [N, H, d, d].
        Gradients flow once (not twice) through both, into q, k, v and `state`.

    Raises ModelError for a dtype or a width that the kernels do not have.
    """
    if not supports(q.dtype, q.shape[-1]) or not q.dtype == k.dtype == v.dtype:
        raise ModelError(
            "The Triton kernels of lightning attention need q, k and v in one dtype of at most 32 bits and a head "
            f"width that is a power of two from 16 to 256, but got {q.dtype}, {k.dtype}, {v.dtype} of width "
            f"{q.shape[-1]}; use the torch code instead."
        )
    if cu_seqlens is None:
        cu_seqlens = torch.tensor([0, len(q)], device=q.device)
    out, final = _LightningAttention.apply(q, k, v, slope_H, state, cut_chunks(cu_seqlens, len(q), CHUNK))
    return out, final


class _LightningAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, state: Tensor | None, chunks: Chunks
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _with_equal_strides(q, k, v)
        slope_H = slope_H.float().contiguous()
        ctx.save_for_backward(q, k, v, slope_H, state)
        ctx.chunks = chunks
        ctx.set_materialize_grads(False)
        entering_C, final_N = _walk(k, v, slope_H, chunks, state)
        return _outputs(q, k, v, slope_H, chunks, entering_C), final_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_final_N: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, slope_H, state = ctx.saved_tensors
        grad_out = torch.zeros_like(q) if grad_out is None else grad_out.contiguous()
        entering_C, _ = _walk(k, v, slope_H, ctx.chunks, state)
        leaving_C, grad_state_N = _walk(q, grad_out, slope_H, ctx.chunks, grad_final_N, backwards=True)
        grads = _gradients(q, k, v, grad_out, slope_H, ctx.chunks, entering_C, leaving_C)
        return *grads, None, None if state is None else grad_state_N.to(state.dtype), None


def _with_equal_strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if q.stride() == k.stride() == v.stride() and q.stride(-1) == 1:
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _settings(x: Tensor) -> dict[str, Any]:
    """What all kernels of one call have in common, from q, k or v [T, H, d]."""
    _, num_heads, width = x.shape
    return {
        "num_heads": num_heads,
        "WIDTH": width,
        "TILE": min(width, MAX_TILE),
        "CHUNK": CHUNK,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": 8,  # at 4, float32 products spill registers (664 bytes of the output kernel against 88)
        "num_stages": 2,
    }


def _walk(
    left: Tensor, right: Tensor, slope_H: Tensor, chunks: Chunks, state: Tensor | None, backwards: bool = False
) -> tuple[Tensor, Tensor]:
    """The state before each chunk in walking order, float32 [C, H, d, d], and after the last, [N, H, d, d]."""
    _, num_heads, width = left.shape
    states_C = left.new_empty(chunks.num_chunks, num_heads, width, width, dtype=torch.float32)
    last_N = left.new_empty(chunks.num_sequences, num_heads, width, width, dtype=torch.float32)
    settings = _settings(left)
    with torch.cuda.device_of(left):
        _walk_kernel[chunks.num_sequences, num_heads, (width // settings["TILE"]) ** 2](
            *(left, right, slope_H, chunks.cu_seqlens, chunks.first_N),
            *(None if state is None else state.float().contiguous(), states_C, last_N),
            *(*left.stride()[:2], *right.stride()[:2]),
            HAS_STATE=state is not None,
            BACKWARDS=backwards,
            **settings,
        )
    return states_C, last_N


def _outputs(q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, chunks: Chunks, entering_C: Tensor) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    settings = _settings(q)
    with torch.cuda.device_of(q):
        _output_kernel[chunks.num_chunks, settings["num_heads"], settings["WIDTH"] // settings["TILE"]](
            *(q, k, v, slope_H, chunks.origin_C, chunks.length_C, entering_C, out), *q.stride()[:2], **settings
        )
    return out


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    slope_H: Tensor,
    chunks: Chunks,
    entering_C: Tensor,
    leaving_C: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; leaving_C [C, H, d, d] is the gradient of the state after each chunk."""
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    settings = _settings(q)
    grid = (chunks.num_chunks, settings["num_heads"], settings["WIDTH"] // settings["TILE"])
    inputs = (q, k, v, grad_out, slope_H, chunks.origin_C, chunks.length_C)
    with torch.cuda.device_of(q):
        _grad_qk_kernel[grid](*inputs, entering_C, leaving_C, dq, dk, *q.stride()[:2], **settings)
        _grad_v_kernel[grid](*inputs, leaving_C, dv, *q.stride()[:2], **settings)
    return dq, dk, dv


@triton.jit
def _decay(slope: tl.tensor, steps: tl.tensor) -> tl.tensor:
    """exp(-slope * steps), and 0 where steps < 0: the causal mask, or the end of a short chunk."""
    return tl.where(steps >= 0, tl.exp(-slope * tl.maximum(steps, 0)), 0.0)


@triton.jit
def _load_rows(x: tl.tensor, tokens: tl.tensor, real: tl.tensor, stride: tl.tensor, dims: tl.tensor) -> tl.tensor:
    """float32 [tokens, dims] of one head; 0 for tokens that are not real."""
    return tl.load(x + tokens[:, None] * stride + dims[None, :], mask=real[:, None], other=0.0).to(tl.float32)


@triton.jit
def _walk_kernel(
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
def _output_kernel(
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
def _grad_qk_kernel(
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
def _grad_v_kernel(
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
