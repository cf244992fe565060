"""A packed row as one rank sees it: its share of the tokens, and which of them are learnt from.

Rows are filled up at the end, by a sequence of its own, to a multiple of context times tensor ranks, so that every
share can be dealt out among the tensor ranks. Nothing is learnt from that sequence and no router counts it.

Shapes: T tokens of the row, t tokens of this rank's share, A tokens learnt from, a of them on this rank.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from model.context_parallel import Share
from model.hybrid import plan_row
from model.megatron.config import StageConfig
from model.replay import Replay
from model.row import Row


@dataclass(frozen=True)
class TokenRow:
    """One packed row, the same on all ranks that hold it together; a micro-batch.

    Attributes:
        tokens_T, positions_T: int64; positions restart at 0 with each sequence.
        cu_seqlens: int64 [N + 1], borders of the sequences, from 0 to T.
        learnt_A: int64, places in the row of the tokens that are learnt from, each behind the first of its sequence.
        is_blank: the row is there for the sake of collectives only.
        replay: the experts to visit; its counts become those of this rank's part.
    """

    tokens_T: Tensor
    positions_T: Tensor
    cu_seqlens: Tensor
    learnt_A: Tensor
    is_blank: bool = False
    replay: Replay | None = None

    @classmethod
    def blank(cls, device: torch.device) -> TokenRow:
        """A row that teaches nothing, for a rank that has fewer rows than others: all must take part in collectives."""
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        return cls(zero, zero, torch.arange(2, device=device), zero[:0], is_blank=True)


@dataclass(frozen=True)
class RankRow:
    """What one rank does of a row.

    Attributes:
        tokens_t: its share, int64.
        row: the same as layers see it.
        num_counted: tokens that this rank's routers count; any others fill up the row.
        learnt_a: places in the whole row of the tokens that it learns from: those whose predecessors it holds.
        before_a: places in its share of these predecessors.
        num_tokens: T, without filling.
        is_blank: as in TokenRow.
        replay: the experts that the tokens which this rank routes are to visit.
    """

    tokens_t: Tensor
    row: Row
    num_counted: int
    learnt_a: Tensor
    before_a: Tensor
    num_tokens: int
    is_blank: bool
    replay: Replay | None = None


def cut_row(row: TokenRow, config: StageConfig) -> RankRow:
    """This rank's part of `row`."""
    tensor, context = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_context_parallel_group()
    num_tokens, device = len(row.tokens_T), row.tokens_T.device
    filled = _filled(row, tensor.size() * context.size())
    share = None
    own, cu_seqlens = slice(0, len(filled.tokens_T)), filled.cu_seqlens
    if context.size() > 1:
        share = Share.of_group(filled.cu_seqlens, context)
        own, cu_seqlens = share.tokens, share.own_cu_seqlens.to(device)
    before_A = row.learnt_A - 1
    is_own_A = (before_A >= own.start) & (before_A < own.stop)
    return RankRow(
        tokens_t=filled.tokens_T[own],
        row=plan_row(config.hybrid, filled.positions_T[own], cu_seqlens, share=share),
        num_counted=_num_counted(num_tokens - own.start, own.stop - own.start, tensor),
        learnt_a=row.learnt_A[is_own_A],
        before_a=before_A[is_own_A] - own.start,
        num_tokens=num_tokens,
        is_blank=row.is_blank,
        replay=None if row.replay is None else row.replay.cut(*_routed(own, tensor)),
    )


def _filled(row: TokenRow, multiple: int) -> TokenRow:
    """`row` with up to `multiple` - 1 tokens more."""
    num_tokens = len(row.tokens_T)
    place_F = torch.arange(-num_tokens % multiple, device=row.tokens_T.device)
    if not len(place_F):
        return row
    end = row.cu_seqlens.new_tensor([num_tokens + len(place_F)])
    return dataclasses.replace(
        row,
        tokens_T=torch.cat([row.tokens_T, torch.zeros_like(place_F)]),
        positions_T=torch.cat([row.positions_T, place_F]),
        cu_seqlens=torch.cat([row.cu_seqlens, end]),
    )


def _routed(own: slice, tensor: dist.ProcessGroup) -> tuple[int, int]:
    """First and last border of the tokens of a share that this tensor rank routes."""
    size = (own.stop - own.start) // tensor.size()
    first = own.start + size * tensor.rank()
    return first, first + size


def _num_counted(num_real: int, num_tokens: int, tensor: dist.ProcessGroup) -> int:
    """Of a share of `num_tokens`, the first `num_real` of the row: how many of those does this tensor rank route?"""
    size = num_tokens // tensor.size()
    return min(max(num_real - size * tensor.rank(), 0), size)
