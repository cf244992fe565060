"""Advantages of a group by hand and in general; what is flat; whose tokens get credit."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.advantage import assign_credit, group_advantages, has_signal, is_flat
from cispo.errors import ConfigError

QUICK = settings(max_examples=40, deadline=None)

NAN = float("nan")
REWARDS = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=1, max_size=12)


@pytest.mark.parametrize(
    "rewards, normalise, wanted",
    [
        ([1, 0], "std", [1, -1]),
        ([1, 0, 0, 0], "std", [np.sqrt(3), *[-1 / np.sqrt(3)] * 3]),  # mean 1/4, standard deviation sqrt(3)/4
        ([1, 0, 0, 0], "mean", [0.75, -0.25, -0.25, -0.25]),
        ([3, 1, NAN], "std", [1, -1, 0]),
        ([3, 1, NAN], "mean", [1, -1, 0]),
        ([1, 1, 1], "std", [0, 0, 0]),
        ([0.7], "std", [0]),
        ([], "std", []),
        ([NAN, NAN], "std", [0, 0]),
        ([NAN, 1.0], "mean", [0, 0]),
        ([0.1 + 0.2, 0.3], "std", [0, 0]),  # one rounding apart: the same reward
        ([1e6, 1e6 + 0.1], "std", [0, 0]),
    ],
)
def test_advantages_by_hand(rewards, normalise, wanted):
    advantages = group_advantages(rewards, normalise=normalise)
    assert advantages.dtype == np.float32
    np.testing.assert_allclose(advantages, wanted, rtol=1e-6)


@QUICK
@given(REWARDS)
def test_advantages_are_centred_scaled_and_ordered_as_rewards(rewards):
    advantages = group_advantages(rewards)
    assert abs(advantages.sum()) < 1e-4
    if is_flat(rewards):
        assert not advantages.any()
        return
    assert np.std(advantages) == pytest.approx(1, abs=1e-5)
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(advantages[order]) >= 0).all()


@QUICK
@given(REWARDS, st.floats(0.5, 20), st.floats(-5, 5))
def test_the_std_makes_advantages_blind_to_scale_and_shift(rewards, scale, shift):
    moved = [scale * reward + shift for reward in rewards]
    np.testing.assert_allclose(group_advantages(moved), group_advantages(rewards), atol=1e-4)


def test_unknown_normalisation_is_refused():
    with pytest.raises(ConfigError, match="'std' or 'mean', not by 'batch'"):
        group_advantages([1, 0], normalise="batch")


@pytest.mark.parametrize(
    "rewards, signal", [((1, 0), True), ((1, 1), False), ((1, NAN), False), ((1, NAN, 0), True), ((NAN, NAN), False)]
)
def test_signal_is_a_difference_between_usable_rewards(make_group, rewards, signal):
    assert has_signal(make_group(0, rewards)) is signal


def test_every_usable_trajectory_becomes_a_sample_with_its_own_advantage(make_group):
    group = make_group(7, (1.0, NAN, 0.0), num_actions=(2, 3, 4), version=5)
    samples = assign_credit([group])
    assert [(s.group, s.member) for s in samples] == [(7, 0), (7, 2)]
    assert samples[0].advantage_T.tolist() == [0, 0, 1, 1]
    assert samples[1].advantage_T.tolist() == [0, 0, -1, -1, -1, -1]
    for sample in samples:
        trajectory = group.trajectories[sample.member]
        np.testing.assert_array_equal(sample.tokens_T, trajectory.token_ids_T)
        np.testing.assert_array_equal(sample.mask_T, trajectory.action_mask_T)
        np.testing.assert_array_equal(sample.version_T, trajectory.version_T)


def test_tokens_of_unknown_probability_get_no_credit(make_group):
    group = make_group(0, (1.0, 0.0))
    logp_T = group.trajectories[0].behaviour_logp_T.copy()
    logp_T[2:4] = [np.nan, -np.inf]
    broken = dataclasses.replace(group.trajectories[0], behaviour_logp_T=logp_T)
    sample = assign_credit([dataclasses.replace(group, trajectories=(broken, group.trajectories[1]))])[0]
    assert sample.mask_T.tolist() == [False, False, False, False, True]
    assert sample.num_learnt == 1
    assert sample.advantage_T.tolist() == [0, 0, 0, 0, 1]
    assert np.isfinite(sample.behaviour_logp_T).all() and not sample.behaviour_logp_T[:4].any()


def test_batch_normalisation_divides_by_the_spread_of_the_whole_step(make_group):
    groups = [make_group(0, (1.0, 0.0)), make_group(1, (3.0, -1.0, NAN)), make_group(2, (1.0, 1.0))]
    # centred: +-0.5, +-2, and two zeros of the flat group; variance (2 * 0.25 + 2 * 4) / 6
    spread = np.sqrt(8.5 / 6)
    found = [sample.advantage_T[-1] for sample in assign_credit(groups, normalise="batch")]
    np.testing.assert_allclose(found, np.array([0.5, -0.5, 2, -2, 0, 0]) / spread, rtol=1e-6)


def test_nothing_to_credit_is_no_fault(make_group):
    assert assign_credit([]) == assign_credit([], normalise="batch") == []
    flat = assign_credit([make_group(0, (1.0, 1.0))], normalise="batch")
    assert [sample.advantage_T.any() for sample in flat] == [False, False]
