"""The index of (sequence, chunk) against a plain loop."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.kernels.chunks import cut_chunks


def chunks_by_hand(lengths, size):
    chunks, firsts, start = [], [0], 0
    for length in lengths:
        for first in range(0, length, size):
            chunks.append((start + first, min(size, length - first)))
        firsts.append(len(chunks))
        start += length
    return chunks, firsts


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.sampled_from([1, 4, 16]))
def test_every_sequence_is_cut_on_its_own(lengths, size):
    plan = cut_chunks(torch.tensor([0, *lengths]).cumsum(0), sum(lengths), size)
    wanted, firsts = chunks_by_hand(lengths, size)
    found = list(zip(plan.origin_C.tolist(), plan.length_C.tolist(), strict=True))
    assert plan.first_N.tolist() == firsts
    assert found[: len(wanted)] == wanted
    assert all(length == 0 for _, length in found[len(wanted) :])


def test_borders_of_32_bits_are_widened():
    plan = cut_chunks(torch.tensor([0, 5], dtype=torch.int32), 5, 4)
    assert {x.dtype for x in (plan.cu_seqlens, plan.first_N, plan.origin_C, plan.length_C)} == {torch.int64}
