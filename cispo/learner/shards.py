"""The rows of an update, dealt out to the ranks that learn from different ones, and their results put together again.

Every token already carries its weight in the whole update (cispo/packing.py), so a rank needs its rows and nothing
else. All ranks get equally many, because sharded weights are gathered by everybody at once: a rank that has fewer
runs blank rows, which weigh nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cispo.types import Floats, Ints, PackedBatch, PackedRow

BLANK_TOKENS = 64
"""Tokens of a blank row: enough to be cut over context and tensor ranks, too few to cost anything."""


def deal(batch: PackedBatch, num_shards: int) -> list[PackedBatch]:
    """Shard s has the rows s, s + num_shards, ... of `batch`, filled up with blank ones."""
    num_blank = -len(batch.rows) % num_shards
    rows = (*batch.rows, *[blank_row()] * num_blank)
    return [PackedBatch(rows[shard::num_shards]) for shard in range(num_shards)]


def gather_logp(batch: PackedBatch, shards: Sequence[Sequence[tuple[Floats, ...]]]) -> tuple[Floats, ...]:
    """The log-probabilities of `batch`'s rows from those of its shards.

    Args:
        batch: what was dealt out.
        shards: for each shard, the `logp_rows` of all ranks that learnt from it. Each token is known to some of them,
            NaN at the others; a rank that knows none may give ().
    """
    whole: list[Floats] = []
    for index in range(len(batch.rows)):
        place, turn = index % len(shards), index // len(shards)
        known = [rows[turn] for rows in shards[place] if rows]
        merged = known[0]
        for other in known[1:]:
            merged = np.where(np.isnan(merged), other, merged)
        whole.append(merged)
    return tuple(whole)


def blank_row() -> PackedRow:
    """A row to run when others have one more: nothing is learnt from it and it has no share of the update."""
    return dataclasses.replace(
        text_row(np.zeros(BLANK_TOKENS, dtype=np.int64)), mask_T=np.zeros(BLANK_TOKENS, dtype=np.bool_)
    )


def text_row(token_ids: Ints) -> PackedRow:
    """A text as a row whose tokens all have log-probabilities but the first, and which has no share of any update."""
    length = len(token_ids)
    zeros = np.zeros(length, dtype=np.float32)
    return PackedRow(
        tokens_T=token_ids,
        positions_T=np.arange(length, dtype=np.int64),
        cu_seqlens=np.array([0, length], dtype=np.int64),
        mask_T=np.arange(length) > 0,
        behaviour_logp_T=zeros,
        advantage_T=zeros,
        weight_T=zeros,
        age_T=np.full(length, -1, dtype=np.int64),
        members=((-1, -1),),
        share=0.0,
    )
