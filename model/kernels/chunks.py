"""Which tokens each chunk of a packed row holds, for kernels that treat chunks independently.

`model.row.Blocks` cuts the row itself and masks by sequence. Here every sequence is cut on its own, so that no chunk
holds tokens of two and no kernel masks by sequence. The index is built on the device: the number of chunks depends on
the borders, so kernels start as many programs as there could be, and those of empty chunks return at once.

Shapes: T tokens, N sequences, C chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """The sequences of a row in chunks of at most `size` tokens; a sequence's last one may be shorter.

    Attributes:
        size: tokens in a full chunk.
        cu_seqlens: int64 [N + 1].
        first_N: int64 [N + 1], the first chunk of each sequence; behind them the number of chunks in use.
        origin_C: int64 [C], the first token of each chunk.
        length_C: int64 [C], tokens in each chunk; 0 for those that are not in use.
    """

    size: int
    cu_seqlens: Tensor
    first_N: Tensor
    origin_C: Tensor
    length_C: Tensor

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.cu_seqlens) - 1

    @property
    def num_chunks(self) -> int:
        """C, those that are not in use included."""
        return len(self.origin_C)


def cut_chunks(cu_seqlens: Tensor, num_tokens: int, size: int) -> Chunks:
    """Plan the chunks of a row with borders `cu_seqlens` (integer [N + 1], N > 0). Nothing is copied to the host."""
    borders = cu_seqlens.to(torch.int64)
    first_N = torch.zeros_like(borders)
    torch.cumsum((borders.diff() + size - 1) // size, 0, out=first_N[1:])
    most = num_tokens // size + len(borders) - 1  # no sequence has more than one chunk that is not full
    chunk_C = torch.arange(most, device=borders.device)
    sequence_C = torch.bucketize(chunk_C, first_N[1:], right=True).clamp_(max=len(borders) - 2)
    origin_C = borders[sequence_C] + (chunk_C - first_N[sequence_C]) * size
    length_C = (borders[sequence_C + 1] - origin_C).clamp_(0, size)
    return Chunks(size, borders, first_N, origin_C, length_C)
