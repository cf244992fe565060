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

There is no autotuning, so that the interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU, for the tests.

Shapes: T tokens, N sequences, C chunks, H heads, d head width. Source: MiniMax-01, arXiv 2501.08313, section 2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.errors import ModelError
from model.kernels.chunks import Chunks, cut_chunks
from model.kernels.lightning_programs import grad_qk_kernel, grad_v_kernel, output_kernel, walk_kernel

CHUNK = 64
"""Tokens in a chunk: its scores and a tile of the state are then squares of one size, which registers hold."""

MAX_TILE = 64
"""Width of the tiles that heads are cut into: a head of 128 has four independent tiles of state."""

NUM_WARPS = 8
"""Per program. With 4, float32 products do not fit into registers (ptxas for sm_90 spills 664 bytes of the output
kernel, and 88 with 8) and take several times as long to compile."""

IS_INTERPRETED: bool = triton.knobs.runtime.interpret
"""The kernels run in Triton's interpreter, on CPUs too; decided when triton is imported."""


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
        "num_warps": NUM_WARPS,
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
        walk_kernel[chunks.num_sequences, num_heads, (width // settings["TILE"]) ** 2](
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
        output_kernel[chunks.num_chunks, settings["num_heads"], settings["WIDTH"] // settings["TILE"]](
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
        grad_qk_kernel[grid](*inputs, entering_C, leaving_C, dq, dk, *q.stride()[:2], **settings)
        grad_v_kernel[grid](*inputs, leaving_C, dv, *q.stride()[:2], **settings)
    return dq, dk, dv
