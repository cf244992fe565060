"""The norm over all heads and the sigmoid gate of a lightning layer as one kernel, forward and backward, in Triton.

    y = sigmoid(g) * (x / rms(x), cast to the weight's dtype, * weight)        rms(x) = sqrt(mean(x^2) + eps)

Unfused, the 8192 numbers of a MiniMax-M1 token are read and written five times on the way forward. A row is one
program, for the mean runs over all of it. With n = x / rms(x) and s = sigmoid(g):

    dx = (a - n mean(a n)) / rms(x), a = dy s weight        dweight = sum_T dy s n        dg = dy n weight s (1 - s)

Sums are float32; the weight's gradient is summed in a fixed order, so that equal runs give equal numbers.

Shapes: T rows, W their width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PARTIAL_SUMS = 256
"""Programs of the backward pass; each sums the weight's gradient over its rows. Fixed, or sums would depend on it."""


def gated_rms_norm(x: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """sigmoid(gate) * (x / rms(x) in the weight's dtype * weight).

    Args:
        x: [T, W], any float dtype of at most 32 bits, such as the heads of a token end to end.
        weight: [W]. Its dtype is the result's.
        gate: [T, W], before the sigmoid.
        eps: added to the mean square.

    Returns:
        [T, W] in the weight's dtype; gradients flow once (not twice) into x, weight and gate.
    """
    normed: Tensor = _GatedRMSNorm.apply(x.contiguous(), weight.contiguous(), gate.contiguous(), eps)
    return normed


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        num_rows, width = x.shape
        out = torch.empty_like(x, dtype=weight.dtype)
        scale_T = x.new_empty(num_rows, dtype=torch.float32)
        if num_rows:
            with torch.cuda.device_of(x):
                _forward_kernel[num_rows,](x, weight, gate, out, scale_T, width, eps, **_settings(width))
        ctx.save_for_backward(x, weight, gate, scale_T)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, gate, scale_T = ctx.saved_tensors
        num_rows, width = x.shape
        dx, dgate = torch.empty_like(x), torch.empty_like(gate)
        programs = min(num_rows, PARTIAL_SUMS)
        partial = x.new_empty(programs, width, dtype=torch.float32)
        if num_rows:
            with torch.cuda.device_of(x):
                _backward_kernel[programs,](
                    *(x, weight, gate, grad.contiguous(), scale_T, dx, dgate, partial, num_rows, width),
                    **_settings(width),
                )
        return dx, partial.sum(0).to(weight.dtype), dgate, None


def _settings(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(4, block // 512))}


@triton.jit
def _forward_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    gate: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One row; 1 / rms(x) is kept for the way back."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < width
    place = row * width + columns
    x_row = tl.load(x + place, mask=real, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(x_row * x_row, axis=0) / width + eps)
    normed = (x_row * scale).to(weight.dtype.element_ty).to(tl.float32)
    w = tl.load(weight + columns, mask=real, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=real, other=0.0).to(tl.float32)
    tl.store(out + place, (normed * w * tl.sigmoid(g)).to(out.dtype.element_ty), mask=real)
    tl.store(scales + row, scale)


@triton.jit
def _backward_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    gate: tl.tensor,
    grad: tl.tensor,
    scales: tl.tensor,
    dx: tl.tensor,
    dgate: tl.tensor,
    partial: tl.tensor,
    num_rows: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Every `num_programs`-th row, and their share of the weight's gradient."""
    first, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    real = columns < width
    w = tl.load(weight + columns, mask=real, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    for row in range(first, num_rows, programs):
        place = tl.cast(row, tl.int64) * width + columns
        scale = tl.load(scales + row)
        normed = tl.load(x + place, mask=real, other=0.0).to(tl.float32) * scale
        opened = tl.sigmoid(tl.load(gate + place, mask=real, other=0.0).to(tl.float32))
        dy = tl.load(grad + place, mask=real, other=0.0).to(tl.float32)
        dweight += dy * opened * normed
        dg = dy * normed * w * opened * (1 - opened)
        tl.store(dgate + place, dg.to(dgate.dtype.element_ty), mask=real)
        inner = dy * opened * w
        mean = tl.sum(inner * normed, axis=0) / width
        tl.store(dx + place, ((inner - normed * mean) * scale).to(dx.dtype.element_ty), mask=real)
    tl.store(partial + first * width + columns, dweight, mask=real)
