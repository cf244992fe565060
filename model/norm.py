"""Root-mean-square norm with a float32 variance and an exact, frugal backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Ranks = dist.ProcessGroup | None
"""Who holds the rest of a width that is cut into equal parts; None is nobody."""


def _mean_product(x: Tensor, y: Tensor, ranks: Ranks) -> Tensor:
    """The mean of x * y over the last dimension, of all ranks' parts."""
    total = torch.linalg.vecdot(x, y)
    if ranks is None:
        return total.div_(x.shape[-1])
    dist.all_reduce(total, group=ranks)
    return total.div_(x.shape[-1] * ranks.size())


def _normed(x: Tensor, eps: float, dtype: torch.dtype, ranks: Ranks = None) -> tuple[Tensor, Tensor]:
    """x / rms(x) in `dtype`, and 1 / rms(x), float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = _mean_product(wide, wide, ranks).add_(eps).rsqrt_().unsqueeze(-1)
    return (wide * scale).to(dtype), scale


class _RMSNorm(torch.autograd.Function):
    """Autograd's own backward keeps and walks five temporaries of the input's size; this one keeps one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, ranks: Ranks) -> Tensor:
        normed, scale = _normed(x, eps, weight.dtype, ranks)
        ctx.save_for_backward(normed, scale, weight)
        ctx.input_dtype, ctx.ranks = x.dtype, ranks
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        normed, scale, weight = ctx.saved_tensors
        grad = grads[0]
        grad_weight = (grad * normed).sum_to_size(weight.shape)
        inner = (grad * weight).to(scale.dtype)
        normed = normed.to(scale.dtype)
        mean = _mean_product(inner, normed, ctx.ranks).unsqueeze(-1)
        return torch.addcmul(inner, normed, mean, value=-1).mul_(scale).to(ctx.input_dtype), grad_weight, None, None


class RMSNorm(nn.Module):
    """x / rms(x), cast to the weight's dtype, then times the weight (the order of MiniMax and transformers).

    With `ranks` the width is an equal part of a longer one, whose parts they hold in order; all of them must call.
    """

    def __init__(self, width: int, eps: float, dtype: torch.dtype, ranks: Ranks = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))
        self.eps, self.ranks = eps, ranks

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape, in the weight's dtype."""
        if not torch.is_grad_enabled():
            return _normed(x, self.eps, self.weight.dtype, self.ranks)[0].mul_(self.weight)
        normed: Tensor = _RMSNorm.apply(x, self.weight, self.eps, self.ranks)
        return normed


class GroupRMSNorm(RMSNorm):
    """`RMSNorm` over each of `groups` equal parts of the width by itself; the weight stays one vector [width]."""

    def __init__(self, width: int, groups: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__(width, eps, dtype)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape, in the weight's dtype."""
        parts, weight = x.unflatten(-1, (self.groups, -1)), self.weight.view(self.groups, -1)
        if not torch.is_grad_enabled():
            return _normed(parts, self.eps, weight.dtype)[0].mul_(weight).flatten(-2)
        normed: Tensor = _RMSNorm.apply(parts, weight, self.eps, None)
        return normed.flatten(-2)
