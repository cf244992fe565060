"""How one packed row is cut up so that no Python loop runs over its sequences.

A row holds N sequences end to end. Lightning layers cut the row itself into blocks of equal size, whatever the
sequences' borders, and mask by sequence. Softmax layers sort the sequences into a few buckets of nearly equal
length and pad inside them. Both plans depend on the borders only: they are made once and serve every layer.

Shapes: T tokens, N sequences, C blocks of B tokens, P padded tokens of all buckets together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from model.context_parallel import Share
from model.errors import ModelError


@dataclass(frozen=True)
class Blocks:
    """The row as C blocks of `size` tokens; the last one is padded.

    Attributes:
        size: tokens in a block.
        num_tokens: T, without padding.
        cu_seqlens: int64 [N + 1].
        visible_CBB: bool [C, 1, B, B], token j is in token i's sequence and not after it.
        carried_CB: bool [C, B], the token's sequence was already running when the block before ended.
        running_CB: bool [C, B], the token's sequence is still running when this block ends.
        through_C: bool [C], one sequence fills the block and ran before it, so the carried state survives.
    """

    size: int
    num_tokens: int
    cu_seqlens: Tensor
    visible_CBB: Tensor
    carried_CB: Tensor
    running_CB: Tensor
    through_C: Tensor

    @property
    def num_blocks(self) -> int:
        """C."""
        return len(self.through_C)


def cut_blocks(cu_seqlens: Tensor, num_tokens: int, size: int) -> Blocks:
    """Plan the blocks of a row with borders `cu_seqlens` (int64 [N + 1]). Nothing is copied to the host."""
    num_blocks = -(-num_tokens // size)
    position = torch.arange(num_blocks * size, device=cu_seqlens.device)
    sequence_CB = torch.bucketize(position, cu_seqlens[1:], right=True).view(num_blocks, size)
    last_C = sequence_CB[:, -1]
    before_C = torch.cat([last_C.new_full((1,), -1), last_C[:-1]])  # no sequence runs before the first block
    same_CBB = sequence_CB[:, :, None] == sequence_CB[:, None, :]
    carried_CB = sequence_CB == before_C[:, None]
    return Blocks(
        size=size,
        num_tokens=num_tokens,
        cu_seqlens=cu_seqlens,
        visible_CBB=same_CBB.tril_().unsqueeze(1),
        carried_CB=carried_CB,
        running_CB=sequence_CB == last_C[:, None],
        through_C=carried_CB[:, -1],
    )


@dataclass(frozen=True)
class Bucket:
    """Sequences of nearly equal length, padded to `length` tokens.

    Attributes:
        sequences_n: int64 [n], which sequences of the row.
        lengths_n: int64 [n], their true lengths.
        length: padded length.
    """

    sequences_n: Tensor
    lengths_n: Tensor
    length: int


@dataclass(frozen=True)
class Buckets:
    """All sequences of a row, sorted into buckets.

    Attributes:
        buckets: from short to long.
        gather_P: int64 [P], the token that stands at each padded place; padding repeats the sequence's last token.
        scatter_T: int64 [T], the padded place of each token.
    """

    buckets: tuple[Bucket, ...]
    gather_P: Tensor
    scatter_T: Tensor


def sort_into_buckets(cu_seqlens: Tensor) -> Buckets:
    """Plan the buckets of a row with borders `cu_seqlens` (int64 [N + 1]). The lengths are read on the host."""
    start_N = cu_seqlens[:-1].cpu()
    length_N = cu_seqlens[1:].cpu() - start_N
    padded_N = torch.tensor([_padded(length) for length in length_N.tolist()], dtype=torch.int64)
    scatter_T = torch.empty(int(length_N.sum()), dtype=torch.int64)
    buckets, gathers, offset = [], [], 0
    for padded in sorted(set(padded_N.tolist()) - {0}):
        sequences_n = (padded_N == padded).nonzero().squeeze(1)
        lengths_n = length_N[sequences_n]
        place_L = torch.arange(padded)
        token_nL = start_N[sequences_n, None] + place_L.minimum(lengths_n[:, None] - 1)
        real_nL = place_L < lengths_n[:, None]
        scatter_T[token_nL[real_nL]] = offset + real_nL.flatten().nonzero().squeeze(1)
        buckets.append(Bucket(sequences_n.to(cu_seqlens.device), lengths_n.to(cu_seqlens.device), padded))
        gathers.append(token_nL.flatten())
        offset += token_nL.numel()
    gather_P = torch.cat([scatter_T.new_empty(0), *gathers]).to(cu_seqlens.device)
    return Buckets(tuple(buckets), gather_P, scatter_T.to(cu_seqlens.device))


def _padded(length: int) -> int:
    """Round up to at most four sizes per octave (13 % padding on average), and to multiples of 8."""
    if length == 0:
        return 0
    step = max(8, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


@dataclass(frozen=True)
class Row:
    """A packed row as the layers see it.

    Attributes:
        cu_seqlens: int64 [N + 1].
        cos_TR, sin_TR: float32 [T, rotary_dim / 2], the rotation of each token's position.
        blocks: for lightning layers.
        buckets: for softmax layers.
        is_fresh: every sequence starts here, so no state is carried in.
        share: the row is this process's share of a longer one; `buckets` then leaves out a sequence that goes on here.
    """

    cu_seqlens: Tensor
    cos_TR: Tensor
    sin_TR: Tensor
    blocks: Blocks
    buckets: Buckets
    is_fresh: bool
    share: Share | None = None


def check_borders(num_tokens: int, cu_seqlens: Tensor) -> None:
    """Refuse borders that do not describe a row of `num_tokens` tokens."""
    borders = cu_seqlens.flatten().tolist()
    rising = all(first <= last for first, last in pairwise(borders))
    if len(borders) < 2 or num_tokens == 0 or not rising or (borders[0], borders[-1]) != (0, num_tokens):
        raise ModelError(
            f"cu_seqlens must rise from 0 to the row's {num_tokens} tokens (at least one), but it is "
            f"{borders[:3]} ... {borders[-3:]}."
        )
