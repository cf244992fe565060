"""Packing: weights by hand, and for any samples every one in one row, whole groups together, nothing over the limit."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.errors import ConfigError
from cispo.packing import AGGREGATIONS, aggregation_weights, pack
from cispo.types import Sample

QUICK = settings(max_examples=40, deadline=None)


def make_sample(group, member, num_prompt, num_learnt, version=3):
    mask_T = np.arange(num_prompt + num_learnt) >= num_prompt
    return Sample(
        group=group,
        member=member,
        tokens_T=np.arange(len(mask_T)) + 100 * group + 10 * member,
        mask_T=mask_T,
        behaviour_logp_T=np.where(mask_T, -1.0 - member, 0).astype(np.float32),
        advantage_T=np.where(mask_T, 1.0 + group, 0).astype(np.float32),
        version_T=np.where(mask_T, version, -1),
    )


# Two prompts: one with answers of 1 and 3 tokens, one with an answer of 2 and one that is not learnt from.
UNEVEN = [make_sample(0, 0, 2, 1), make_sample(0, 1, 2, 3), make_sample(1, 0, 2, 2), make_sample(1, 1, 2, 0)]

SAMPLES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 12)), min_size=1, max_size=20).map(
    lambda shapes: [make_sample(group, member, *shape) for member, (group, *shape) in enumerate(shapes)]
)


@pytest.mark.parametrize(
    "aggregation, wanted",
    [
        ("prompt", [1 / 8, 1 / 8, 1 / 4, 0]),
        ("token", [1 / 6, 1 / 6, 1 / 6, 0]),
        ("sample", [1 / 3, 1 / 9, 1 / 6, 0]),
        ("sample_and_token", [1 / 4, 5 / 36, 1 / 6, 0]),
    ],
)
def test_weights_by_hand(aggregation, wanted):
    assert aggregation_weights(UNEVEN, aggregation) == pytest.approx(wanted, rel=1e-12)


def test_a_prompt_with_nothing_to_learn_takes_no_share():
    samples = [make_sample(0, 0, 2, 4), make_sample(1, 0, 2, 0)]
    assert aggregation_weights(samples, "prompt") == [0.25, 0.0]
    assert aggregation_weights([make_sample(0, 0, 2, 0)], "prompt") == [0.0]


def test_an_unknown_aggregation_is_refused_by_name():
    with pytest.raises(ConfigError, match="prompt, token, sample, sample_and_token; got 'mean'"):
        aggregation_weights(UNEVEN, "mean")


@QUICK
@given(SAMPLES, st.sampled_from(AGGREGATIONS), st.integers(1, 4), st.integers(1, 40), st.integers(1, 4))
def test_the_weights_of_every_batch_add_up_to_one(samples, aggregation, num_batches, max_row_tokens, num_ranks):
    batches = pack(
        samples, num_batches=num_batches, aggregation=aggregation, max_row_tokens=max_row_tokens, num_ranks=num_ranks
    )
    for batch in batches:
        total = sum(row.weight_T.astype(np.float64).sum() for row in batch.rows)
        assert total == pytest.approx(1.0 if batch.num_learnt else 0.0, abs=1e-6)
        for row in batch.rows:
            assert not row.weight_T[~row.mask_T].any() and (row.weight_T[row.mask_T] > 0).all()


@QUICK
@given(SAMPLES, st.integers(1, 4), st.integers(1, 40), st.integers(1, 4))
def test_every_sample_lies_in_one_row_unchanged(samples, num_batches, max_row_tokens, num_ranks):
    batches = pack(samples, num_batches=num_batches, max_row_tokens=max_row_tokens, num_ranks=num_ranks, version=4)
    by_member = {(sample.group, sample.member): sample for sample in samples}
    seen = Counter()
    for row in (row for batch in batches for row in batch.rows):
        assert row.cu_seqlens[0] == 0 and row.cu_seqlens[-1] == row.num_tokens
        for n, member in enumerate(row.members):
            seen[member] += 1
            sample, span = by_member[member], slice(row.cu_seqlens[n], row.cu_seqlens[n + 1])
            np.testing.assert_array_equal(row.tokens_T[span], sample.tokens_T)
            np.testing.assert_array_equal(row.positions_T[span], np.arange(len(sample.tokens_T)))
            np.testing.assert_array_equal(row.mask_T[span], sample.mask_T)
            np.testing.assert_array_equal(row.behaviour_logp_T[span], sample.behaviour_logp_T)
            np.testing.assert_array_equal(row.advantage_T[span], sample.advantage_T)
            np.testing.assert_array_equal(row.age_T[span], np.where(sample.mask_T, 1, -1))
    assert seen == dict.fromkeys(by_member, 1)


@QUICK
@given(SAMPLES, st.integers(1, 4), st.integers(1, 40), st.integers(1, 4))
def test_rows_keep_the_limit_and_suit_the_ranks(samples, num_batches, max_row_tokens, num_ranks):
    for batch in pack(samples, num_batches=num_batches, max_row_tokens=max_row_tokens, num_ranks=num_ranks):
        for row in batch.rows:
            assert row.num_tokens <= max_row_tokens or len(row.members) == 1
        num_samples = sum(len(row.members) for row in batch.rows)
        assert len(batch.rows) % num_ranks == 0 or len(batch.rows) == num_samples


@pytest.mark.parametrize("lengths", [(20, 5, 5, 5), (9, 6, 6, 3)])
def test_a_long_sample_has_a_row_of_its_own_and_does_not_widen_the_others(lengths):
    samples = [make_sample(0, member, 1, length - 1) for member, length in enumerate(lengths)]
    (batch,) = pack(samples, num_batches=1, max_row_tokens=8)
    assert sorted(row.num_tokens for row in batch.rows) == sorted(lengths)


@QUICK
@given(SAMPLES, st.integers(1, 8))
def test_groups_stay_whole_and_are_dealt_evenly(samples, num_batches):
    batches = pack(samples, num_batches=num_batches, max_row_tokens=16)
    groups = [{group for row in batch.rows for group, _ in row.members} for batch in batches]
    assert len(batches) == min(num_batches, len({sample.group for sample in samples}))
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@QUICK
@given(SAMPLES, st.randoms())
def test_packing_is_deterministic_and_blind_to_the_order_of_groups(samples, random):
    def layout(samples):
        batches = pack(samples, num_batches=3, max_row_tokens=16, num_ranks=2)
        return [[row.members for row in batch.rows] for batch in batches]

    groups = sorted({sample.group for sample in samples})
    random.shuffle(groups)
    reordered = [sample for group in groups for sample in samples if sample.group == group]
    assert layout(samples) == layout(samples) == layout(reordered)


@QUICK
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 6))
def test_rows_are_balanced_over_ranks(lengths, num_ranks):
    samples = [make_sample(0, member, 1, length) for member, length in enumerate(lengths)]
    (batch,) = pack(samples, num_batches=1, max_row_tokens=64, num_ranks=num_ranks)
    loads = [row.num_tokens for row in batch.rows]
    # Longest-first: no row is ahead of another by more than the sample that was put there last.
    assert max(loads) - min(loads) <= max(lengths) + 1


def test_no_samples_make_no_batches():
    assert pack([], num_batches=4) == []


def test_recorded_experts_lie_beside_their_tokens_and_missing_records_are_empty():
    samples = [make_sample(0, member, 1, length) for member, length in enumerate((3, 2, 4))]
    records = [np.full((len(s.tokens_T), 2, 2), number, np.uint8) for number, s in enumerate(samples)]
    first, last = (dataclasses.replace(samples[i], experts_TLk=records[i]) for i in (0, 2))
    (batch,) = pack([first, samples[1], last], num_batches=1)
    lengths = [len(s.tokens_T) for s in samples]
    assert batch.rows[0].experts_TLk[:, 1, 0].tolist() == np.repeat([0, 255, 2], lengths).tolist()
    assert batch.rows[0].experts_TLk.dtype == np.uint8
    assert pack(samples, num_batches=1)[0].rows[0].experts_TLk is None
