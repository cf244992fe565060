"""One packed row over several processes: each holds a consecutive share of its tokens.

All that a token does by itself (norms, projections, experts, head) needs nobody else. The mixers do:

    lightning   a rank needs one state, that of the sequence which was running when its share begins. With a scalar
                decay it is a weighted sum of what each earlier rank made of its own tokens, so one all-gather of
                [H, d, d] per layer is enough, whatever the length. Source: LASP-2, arXiv 2502.07563.
    softmax     keys and values of all ranks are gathered; there are few key/value heads and few softmax layers.

Both are exact, and so are their gradients: the backward pass sums over the ranks what each of them says about a share.
Shares are equal in tokens. The softmax layers of a causal row are then uneven in work (late tokens see more), which is
small beside the rest as long as one layer in eight is softmax.

Shapes: R ranks, T tokens of this rank's share, W tokens of the whole row, H heads, K key/value heads, d head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import ModelError


@dataclass(frozen=True)
class Share:
    """The share of a row that one rank holds.

    Attributes:
        cu_seqlens: int64 [N + 1] on the CPU, borders of the whole row.
        rank, num_ranks: whose share, of how many.
        group: the processes that hold the row together, by rank; None is the default group.
    """

    cu_seqlens: Tensor
    rank: int
    num_ranks: int
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_ranks:
            raise ModelError(f"A share's rank must lie in [0, {self.num_ranks}), not {self.rank}.")
        if self.num_tokens < self.num_ranks:
            raise ModelError(
                f"A row of {self.num_tokens} tokens cannot be shared by {self.num_ranks} ranks, because each must hold "
                f"a token; use fewer ranks or longer rows."
            )

    @classmethod
    def of_group(cls, cu_seqlens: Tensor, group: dist.ProcessGroup | None = None) -> Share:
        """This process's share of the row that `group` holds together."""
        return cls(cu_seqlens.cpu(), dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def num_tokens(self) -> int:
        """W."""
        return int(self.cu_seqlens[-1])

    @cached_property
    def borders(self) -> list[int]:
        """Where the ranks' shares begin, and W: they differ by one token at most."""
        return [self.num_tokens * rank // self.num_ranks for rank in range(self.num_ranks + 1)]

    @property
    def tokens(self) -> slice:
        """Which tokens of the row this rank holds."""
        return slice(self.borders[self.rank], self.borders[self.rank + 1])

    @cached_property
    def own_cu_seqlens(self) -> Tensor:
        """int64 [n + 1] on the CPU, borders of the (pieces of) sequences of this share, from 0 to T."""
        inner = self.cu_seqlens[(self.cu_seqlens > self.tokens.start) & (self.cu_seqlens < self.tokens.stop)]
        ends = self.cu_seqlens.new_tensor([self.tokens.start, self.tokens.stop])
        return torch.cat([ends[:1], inner.unique(), ends[1:]]) - self.tokens.start

    @cached_property
    def first_start(self) -> int:
        """Where in the row the sequence of this share's first token begins."""
        return _start_of_sequence(self.cu_seqlens, self.tokens.start)

    @property
    def num_continued(self) -> int:
        """Tokens of this share that go on with a sequence which an earlier rank began; they come first."""
        return int(self.own_cu_seqlens[1]) if self.first_start < self.tokens.start else 0

    def distances(self) -> list[float]:
        """For each rank, the tokens between its share and this one; infinite unless its last sequence goes on here."""
        return [
            self.tokens.start - end if self.first_start < end <= self.tokens.start else math.inf
            for end in self.borders[1:]
        ]

    @property
    def _sizes(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self.borders)]

    def gather(self, x_T: Tensor) -> Tensor:
        """[T, ...] of every rank, one after the other -> [W, ...], with the gradient of all ranks' uses."""
        padded = torch.cat([x_T, x_T.new_zeros(max(self._sizes) - len(x_T), *x_T.shape[1:])])
        gathered = _AllGather.apply(padded, self.group, self.rank, self.num_ranks)
        return torch.cat([part[:size] for part, size in zip(gathered, self._sizes, strict=True)])

    def add_carried(self, out_THd: Tensor, q_THd: Tensor, final_Hdd: Tensor, slope_H: Tensor) -> Tensor:
        """Lightning attention over the whole row from that over this share alone.

        Args:
            out_THd: outputs of this share, its first sequence begun from nothing.
            q_THd: queries.
            final_Hdd: the state that this share's tokens leave of its last sequence, begun from nothing.
            slope_H: [H], decay exponents.

        Returns:
            out [T, H, d] in out_THd's dtype. Every rank must call it: whoever needs no state still gives one.
        """
        states_RHdd = _AllGather.apply(final_Hdd, self.group, self.rank, self.num_ranks)
        slope_H = slope_H.to(final_Hdd.dtype)
        weight_RH = torch.exp(-slope_H * slope_H.new_tensor(self.distances())[:, None])
        entering_Hdd = torch.einsum("rh,rhij->hij", weight_RH, states_RHdd)
        place_n = torch.arange(1, self.num_continued + 1, device=q_THd.device, dtype=slope_H.dtype)
        decay_Hn = torch.exp(-slope_H[:, None] * place_n)
        q_Hnd = q_THd[: self.num_continued].to(final_Hdd.dtype).transpose(0, 1)
        read_Hnd = (q_Hnd * decay_Hn[..., None]) @ entering_Hdd
        continued = out_THd[: self.num_continued] + read_Hnd.transpose(0, 1).to(out_THd.dtype)
        return torch.cat([continued, out_THd[self.num_continued :]])


def check_share(share: Share, cu_seqlens: Tensor) -> None:
    """Raise ModelError unless `cu_seqlens` are the borders of `share`."""
    if not torch.equal(cu_seqlens.cpu(), share.own_cu_seqlens):
        raise ModelError(
            f"A share's row has the borders share.own_cu_seqlens, here {share.own_cu_seqlens.tolist()}, but got "
            f"{cu_seqlens.tolist()}."
        )


def _start_of_sequence(cu_seqlens: Tensor, token: int) -> int:
    """Where the sequence that holds `token` begins."""
    return int(cu_seqlens[torch.searchsorted(cu_seqlens, token, right=True) - 1])


class _AllGather(torch.autograd.Function):
    """[...] of each rank -> [R, ...] on all. A rank's gradient is the sum of what all ranks say about its part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None, rank: int, num_ranks: int) -> Tensor:
        ctx.group, ctx.rank = group, rank
        gathered = x.new_empty(num_ranks, *x.shape)
        dist.all_gather(list(gathered.unbind(0)), x.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # All-reduce and not reduce-scatter, which gloo lacks; what is summed is small (see the head of the file).
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.rank], None, None, None
