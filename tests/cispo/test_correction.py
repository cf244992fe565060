"""Which policy the ratio is against: weights and masks by hand, the gradient in closed form, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from cispo.advantage import assign_credit
from cispo.correction import CorrectionConfig, correct, correct_row
from cispo.errors import ConfigError
from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.learner.row import objective
from cispo.packing import pack
from cispo.types import PackedRow, UpdateSettings

INF = math.inf
NAN = math.nan
LEARNT = np.array([0, 1, 1, 1, 0, 1, 1, 0], bool)
RATIOS = np.array([1.0, 0.25, 1.0, 8.0, 1.0, 4.0, 4.0, 1.0])  # of two sequences and one without anything to learn
BEHAVIOUR = np.where(LEARNT, [0, -1.0, -2.0, -4.0, 0, -3.0, -2.5, 0], 0).astype(np.float32)
PROXIMAL = np.where(LEARNT, BEHAVIOUR + np.log(RATIOS), NAN).astype(np.float32)
WEIGHT = np.where(LEARNT, 0.2, 0).astype(np.float32)


def make_row(**changes):
    fields = {
        "tokens_T": np.arange(8),
        "positions_T": np.array([0, 1, 2, 3, 0, 1, 2, 0]),
        "cu_seqlens": np.array([0, 4, 7, 8]),
        "mask_T": LEARNT,
        "behaviour_logp_T": BEHAVIOUR,
        "advantage_T": np.where(LEARNT, [0, 1.0, -1.0, 2.0, 0, -1.0, 0.5, 0], 0).astype(np.float32),
        "weight_T": WEIGHT,
        "age_T": np.where(LEARNT, 1, -1),
        "members": ((0, 0), (0, 1), (1, 0)),
        "share": 1.0,
    }
    return PackedRow(**fields | changes)


def corrected(**config):
    row, metrics = correct_row(make_row(), PROXIMAL, CorrectionConfig(**config))
    return row, {name: float(metric) for name, metric in metrics.items()}


def test_with_the_proximal_ratio_each_token_has_one_truncated_weight():
    row, metrics = corrected(ratio_against="proximal")
    np.testing.assert_allclose(row.weight_T, WEIGHT * [1, 0.25, 1, 2, 1, 2, 2, 1], rtol=1e-6)
    np.testing.assert_array_equal(row.proximal_logp_T, PROXIMAL)
    kl = np.mean((RATIOS - 1 - np.log(RATIOS))[LEARNT])
    wanted = {"correction/weight_mean": 7.25 / 5, "correction/capped_fraction": 3 / 5, "drift/proximal_kl": kl}
    assert metrics == pytest.approx(wanted, rel=1e-5)
    wider, _ = corrected(ratio_against="proximal", tis_cap=6.0)
    np.testing.assert_allclose(wider.weight_T, WEIGHT * [1, 0.25, 1, 6, 1, 4, 4, 1], rtol=1e-6)


@pytest.mark.parametrize("against", ["behaviour", "proximal"])
def test_tokens_outside_the_band_are_rejected_and_the_others_weigh_no_more(against):
    row, metrics = corrected(ratio_against=against, token_mask_below=0.5, token_mask_above=5.0)
    kept = np.array([1, 0, 1, 0, 1, 1, 1, 1])
    factor = kept if against == "behaviour" else kept * np.minimum(RATIOS, 2)
    np.testing.assert_allclose(row.weight_T, WEIGHT * factor, rtol=1e-6)
    assert metrics["correction/masked_token_fraction"] == pytest.approx(2 / 5)
    assert "correction/masked_sequence_fraction" not in metrics
    assert ("correction/weight_mean" in metrics) == (row.proximal_logp_T is not None) == (against == "proximal")


@pytest.mark.parametrize("below, above, kept", [(0.5, 3.0, [1, 0]), (0.0, 1.2, [0, 0]), (0.9, 5.0, [1, 1])])
def test_sequences_are_rejected_by_the_geometric_mean_of_their_tokens(below, above, kept):
    """cuberoot(1/4 * 1 * 8) = 1.26 and sqrt(4 * 4) = 4; a sequence with nothing to learn counts for nothing."""
    row, metrics = corrected(sequence_mask_below=below, sequence_mask_above=above)
    np.testing.assert_allclose(row.weight_T, WEIGHT * np.repeat([*kept, 1], [4, 3, 1]), rtol=1e-6)
    assert metrics["correction/masked_sequence_fraction"] == pytest.approx(1 - sum(kept) / 2)


def test_both_masks_reject_what_either_does():
    row, _ = corrected(token_mask_above=5.0, sequence_mask_above=3.0)
    np.testing.assert_allclose(row.weight_T, WEIGHT * [1, 1, 1, 0, 0, 0, 0, 1], rtol=1e-6)


def test_the_gradient_is_clipped_current_over_proximal_times_the_truncated_weight():
    """By hand: -weight * min(proximal/behaviour, 2) * clip(current/proximal, 0, 1.5) * advantage."""
    row, _ = corrected(ratio_against="proximal")
    current = np.where(LEARNT, PROXIMAL + np.log([1, 1, 3.0, 0.5, 1, 1, 1.25, 1]), 0)
    learnt_A = np.flatnonzero(LEARNT)
    hidden = torch.from_numpy(current[learnt_A]).requires_grad_()

    def weighted_logp(hidden_A, targets_A, coefficients, temperature):
        logp = hidden_A.detach()
        return (coefficients(logp, slice(None)) * hidden_A).sum(), logp, torch.zeros_like(logp)

    settings = UpdateSettings(lr=0.0, ratio_cap=1.5)
    output = objective(weighted_logp, hidden, row, learnt_A, settings, fresh_weights=False)
    output.loss.backward()
    clipped, truncated = np.array([1, 1.5, 0.5, 1, 1.25]), np.array([0.25, 1, 2, 2, 2])
    np.testing.assert_allclose(
        hidden.grad, -0.2 * truncated * clipped * row.advantage_T[learnt_A], rtol=1e-5
    )  # float32 weights
    metrics = {name: float(metric) for name, metric in output.metrics.items()}
    assert metrics["ratio/capped_fraction"] == pytest.approx(1 / 5)
    ratio = np.exp(current[learnt_A] - BEHAVIOUR[learnt_A])
    assert metrics["drift/kl"] == pytest.approx(np.mean(ratio - 1 - np.log(ratio)), rel=1e-5)


def make_batches(make_group):
    groups = [make_group(i, (1.0, 0.0), num_actions=(4, 7)) for i in range(4)]
    return pack(assign_credit(groups), num_batches=2, version=0)


def test_the_proximal_policy_is_the_learners_before_the_first_update(make_lm, make_group):
    learner, batches = LocalLearner(make_lm(), LearnerConfig()), make_batches(make_group)
    fixed, metrics = correct(learner, batches, CorrectionConfig(ratio_against="proximal"), temperature=0.7)
    settings = UpdateSettings(lr=1e-2, ratio_cap=3.0, temperature=0.7)
    first, second = (learner.update(batch, settings) for batch in fixed)
    for row, logp_T in zip(fixed[0].rows, first.logp_rows, strict=True):
        np.testing.assert_allclose(row.proximal_logp_T, logp_T, atol=1e-6)
    assert float(first.metrics["ratio/max"]) == pytest.approx(1, abs=1e-5)
    assert float(second.metrics["ratio/max"]) > 1.01, "the second update is made by other weights"
    assert first.kl == pytest.approx(metrics["drift/proximal_kl"], rel=0.5) and first.kl > 1e-3


def test_when_nobody_is_off_policy_nothing_is_corrected(make_lm, make_group):
    """Behaviour log-probabilities that are the learner's own: weights stay to the last bit of their ratio."""
    learner, batches = LocalLearner(make_lm(), LearnerConfig()), make_batches(make_group)
    honest = [
        dataclasses.replace(
            batch,
            rows=tuple(
                dataclasses.replace(row, behaviour_logp_T=np.where(row.mask_T, logp_T, 0).astype(np.float32))
                for row, logp_T in zip(batch.rows, learner.logp(batch, 1.0), strict=True)
            ),
        )
        for batch in batches
    ]
    config = CorrectionConfig("proximal", None, 0.5, 5.0, 0.9, 1.1)
    fixed, metrics = correct(learner, honest, config, 1.0)
    for batch, wanted in zip(fixed, honest, strict=True):
        for row, plain in zip(batch.rows, wanted.rows, strict=True):
            np.testing.assert_array_equal(row.weight_T, plain.weight_T)
    assert metrics == {
        "drift/proximal_kl": 0.0,
        "correction/weight_mean": 1.0,
        "correction/capped_fraction": 0.0,
        "correction/masked_token_fraction": 0.0,
        "correction/masked_sequence_fraction": 0.0,
    }


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"tis_cap": 2.0}, "tis_cap=2 belongs to correction.ratio_against=proximal, because"),
        ({"ratio_against": "reference"}, "ratio_against must be one of behaviour, proximal; got 'reference'"),
        ({"ratio_against": "proximal", "tis_cap": 0.5}, "tis_cap must be at least 1"),
        ({"token_mask_below": 1.5}, "token_mask_below and token_mask_above must lie on either side of 1"),
        ({"sequence_mask_above": 0.6}, "sequence_mask_below and sequence_mask_above must lie on either side of 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(config, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        CorrectionConfig(**config)
    assert len(error.value.faults) == 1


@pytest.mark.parametrize(
    "config, needs",
    [
        ({}, False),
        ({"replay_experts": True}, False),
        ({"ratio_against": "proximal"}, True),
        ({"token_mask_below": 0.5}, True),
        ({"token_mask_above": 5.0}, True),
        ({"sequence_mask_below": 0.5}, True),
        ({"sequence_mask_above": 5.0}, True),
    ],
)
def test_the_proximal_pass_is_made_only_for_what_needs_it(config, needs):
    assert CorrectionConfig(**config).needs_proximal == needs
