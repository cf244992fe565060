"""What the routers of all stages decided, on its way to the last stage, where the objective is.

The balancing loss multiplies what *all* layers' tokens did with all layers' probabilities, so no stage can have it by
itself. Totals are small: of each layer the sum of probabilities and the number of visits of each expert. They travel
through the pipeline behind the hidden states, bit for bit in float32, and their gradient travels back the same way.

Shapes: t tokens of this rank, D model width, L layers, E experts, R rows of what stages send.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.moe import Routing


def no_totals(num_layers: int, num_experts: int, like: Tensor) -> Tensor:
    """[L, 2, E] zeros, float32 at least, on the device of `like`: sums of probabilities, and numbers of visits."""
    return like.new_zeros(num_layers, 2, num_experts, dtype=_wide(like.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def pack(hidden_tD: Tensor, totals_L2E: Tensor) -> Tensor:
    """One tensor [R, 1, D] of both, as megatron's pipelines send them."""
    packed: Tensor = _Pack.apply(hidden_tD, totals_L2E)
    return packed


def unpack(packed_R1D: Tensor, num_layers: int, num_experts: int) -> tuple[Tensor, Tensor]:
    """What `pack` was given."""
    hidden_tD, totals_L2E = _Unpack.apply(packed_R1D, num_layers, num_experts)
    return hidden_tD, totals_L2E


def _join(hidden_tD: Tensor, totals_L2E: Tensor) -> Tensor:
    bits = totals_L2E.flatten().view(hidden_tD.dtype)
    width = hidden_tD.shape[1]
    padded = torch.cat([bits, bits.new_zeros(-len(bits) % width)])
    return torch.cat([hidden_tD[:, None], padded.view(-1, 1, width)])


def _part(packed_R1D: Tensor, num_layers: int, num_experts: int) -> tuple[Tensor, Tensor]:
    width, wide = packed_R1D.shape[2], _wide(packed_R1D.dtype)
    num_bits = num_layers * 2 * num_experts * (wide.itemsize // packed_R1D.dtype.itemsize)
    num_rows = -(-num_bits // width)
    bits = packed_R1D[-num_rows:].flatten()[:num_bits].clone()
    return packed_R1D[:-num_rows, 0].clone(), bits.view(wide).view(num_layers, 2, num_experts)


class _Pack(torch.autograd.Function):
    """By hand both ways: autograd would add zeros to bits that are no numbers of their dtype."""

    @staticmethod
    def forward(ctx: Any, hidden_tD: Tensor, totals_L2E: Tensor) -> Tensor:
        ctx.sizes = totals_L2E.shape[0], totals_L2E.shape[2]
        return _join(hidden_tD, totals_L2E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return _part(grads[0], *ctx.sizes)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed_R1D: Tensor, num_layers: int, num_experts: int) -> tuple[Tensor, Tensor]:
        return _part(packed_R1D, num_layers, num_experts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _join(grads[0], grads[1]), None, None


class RowRouting(Routing):
    """model.moe.Routing of one row, of which the ranks have routed a part each.

    Args:
        totals_L2E: of this rank's part.
        num_tokens: of the row.
        tensor, context: the ranks that have the others; all of them must call.
    """

    def __init__(
        self, totals_L2E: Tensor, num_tokens: int, tensor: dist.ProcessGroup, context: dist.ProcessGroup
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        total_L2E = totals_L2E.detach().clone()
        dist.all_reduce(total_L2E, group=tensor)
        # The value of all tensor ranks, and the gradient of one's own part: each of them has this same loss.
        own_E = totals_L2E[:, 0].sum(0)
        self.prob_E = own_E + (total_L2E[:, 0].sum(0) - own_E.detach())
        dist.all_reduce(total_L2E, group=context)
        self.counts = list(total_L2E[:, 1])
        self.close()

    def aux_loss(self) -> Tensor:
        """This context rank's part of the row's balancing loss: the parts add up to it."""
        rows = self.num_tokens * len(self.counts)
        share_E = torch.stack(self.counts).sum(0) / rows
        return (share_E * self.prob_E).sum() / rows * len(share_E)
