"""The objective: its gradient in closed form, its kin as parameter values, and metrics worked by hand."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.errors import ConfigError
from cispo.loss import cispo_loss, mismatch_metrics

torch.set_num_threads(1)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def everywhere(tensor):
    return torch.ones(len(tensor), dtype=torch.bool)


def loss_and_gradient(logp, behaviour, advantage, weight, mask, **parameters):
    logp = logp.clone().requires_grad_()
    output = cispo_loss(logp, behaviour, advantage, weight, mask, **parameters)
    output.loss.backward()
    return output, logp.grad


def random_row(seed, num_tokens=200):
    """A row with ratios from about 0.1 to 10, both signs of advantage, and a mask with gaps."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(num_tokens, dtype=torch.float64, generator=generator)

    logp = -normal().abs()
    mask = torch.rand(num_tokens, generator=generator) < 0.7
    return logp, logp - normal(), normal(), normal().abs() + 0.01, mask


# The gradient


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), cap=st.floats(1.0, 8.0), floor=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_gradient_equals_the_closed_form(seed, cap, floor):
    logp, behaviour, advantage, weight, mask = random_row(seed)
    output, gradient = loss_and_gradient(logp, behaviour, advantage, weight, mask, ratio_cap=cap, ratio_floor=floor)
    # numpy, and not the function's own steps: -clip(r) A w on action tokens and 0 elsewhere
    ratio = np.clip(np.exp(logp.numpy() - behaviour.numpy()), floor, cap)
    wanted = np.where(mask.numpy(), -ratio * advantage.numpy() * weight.numpy(), 0.0)
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-12, atol=0.0)
    np.testing.assert_allclose(float(output.loss.detach()), (wanted * logp.numpy()).sum(), rtol=1e-10)


def test_no_gradient_flows_through_the_ratio():
    # d/dlogp [r logp] would be r (1 + logp): at logp = -1 nothing at all, where the right answer is -r.
    _, gradient = loss_and_gradient(
        float64(-1.0), float64(-1.5), float64(1.0), float64(1.0), everywhere([0]), ratio_cap=9
    )
    assert gradient.tolist() == pytest.approx([-math.exp(0.5)], rel=1e-12)


def test_streams_other_than_logp_get_no_gradient():
    logp, *others = (float64(value).requires_grad_() for value in (-0.5, -1.0, 2.0, 1.0))
    cispo_loss(logp, *others, everywhere([0]), ratio_cap=9).loss.backward()
    assert logp.grad is not None and all(other.grad is None for other in others)


def test_logp_given_as_its_own_behaviour_is_the_policy_gradient():
    logp = float64(-1.0).requires_grad_()
    cispo_loss(logp, logp, float64(2.0), float64(1.0), everywhere([0]), ratio_cap=9).loss.backward()
    assert logp.grad.tolist() == [-2.0]


def test_gradient_reaches_the_parameters_behind_logp():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    logp = torch.log_softmax(logits, -1)[:, 1]
    cispo_loss(
        logp, logp.detach() - math.log(2), float64(3.0), float64(0.5), everywhere([0]), ratio_cap=5
    ).loss.backward()
    # -r A w (onehot - softmax) with r = 2
    np.testing.assert_allclose(logits.grad.numpy(), [[1.0, -2.0, 1.0]], rtol=1e-12)


# What lies under the mask


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stream", ["logp", "behaviour", "advantage", "weight"])
def test_nothing_under_the_mask_does_harm(stream, poison):
    streams = {
        "logp": float64(-1.0, -2.0),
        "behaviour": float64(-1.5, -2.0),
        "advantage": float64(1.0, 1.0),
        "weight": float64(0.5, 0.5),
    }
    mask = torch.tensor([True, False])
    clean, clean_gradient = loss_and_gradient(*streams.values(), mask, ratio_cap=3)
    streams[stream][1] = poison
    output, gradient = loss_and_gradient(*streams.values(), mask, ratio_cap=3)
    assert output.loss == clean.loss
    assert gradient.tolist() == clean_gradient.tolist() and gradient[1] == 0
    assert {n: float(m) for n, m in output.metrics.items()} == {n: float(m) for n, m in clean.metrics.items()}


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nonfinite_behaviour_inside_the_mask_is_dropped_and_counted(poison):
    behaviour = float64(-1.0, poison, -1.0)
    output, gradient = loss_and_gradient(
        float64(-1.0, -1.0, -1.0),
        behaviour,
        float64(1, 1, 1),
        float64(0.25, 0.25, 0.5),
        everywhere(behaviour),
        ratio_cap=3,
    )
    assert gradient.tolist() == [-0.25, 0.0, -0.5]
    assert float(output.loss.detach()) == 0.75
    assert float(output.metrics["ratio/nonfinite"]) == 1
    assert float(output.metrics["ratio/mean"]) == 1.0


def test_a_row_without_action_tokens_gives_zero_and_metrics_of_nothing():
    nothing = torch.zeros(2, dtype=torch.bool)
    output, gradient = loss_and_gradient(
        float64(-1, -1), float64(0, 0), float64(1, 1), float64(0, 0), nothing, ratio_cap=3
    )
    assert output.loss == 0 and gradient.tolist() == [0, 0]
    assert math.isnan(float(output.metrics["ratio/mean"])) and math.isnan(float(output.metrics["ratio/max"]))
    empty = float64()
    assert cispo_loss(empty, empty, empty, empty, empty.bool(), ratio_cap=3).loss == 0


def test_an_enormous_ratio_stays_finite_without_a_cap():
    _, gradient = loss_and_gradient(
        torch.tensor([0.0]), torch.tensor([-500.0]), torch.ones(1), torch.ones(1), everywhere([0]), ratio_cap=math.inf
    )
    assert gradient.isfinite().all() and gradient[0] < -1e8


# Numbers worked by hand. Ratios 4, 1, 0.25; the behaviour probability is 0.2.

RATIOS = (4.0, 1.0, 0.25)


def gradient_at_ratios(advantage, **parameters):
    behaviour = float64(*[math.log(0.2)] * 3)
    logp = behaviour + float64(*RATIOS).log()
    _, gradient = loss_and_gradient(
        logp, behaviour, float64(*[advantage] * 3), float64(1, 1, 1), everywhere(logp), **parameters
    )
    return gradient.tolist()


@pytest.mark.parametrize(
    "advantage, parameters, wanted",
    [
        (1, {"ratio_cap": 3}, [-3, -1, -0.25]),
        (-2, {"ratio_cap": 3}, [6, 2, 0.5]),
        (1, {"ratio_cap": 1}, [-1, -1, -0.25]),
        (1, {"ratio_cap": 3, "ratio_floor": 0.5}, [-3, -1, -0.5]),
        (1, {"ratio_cap": math.inf}, [-4, -1, -0.25]),
        (1, {"ratio_cap": 3, "mask_above": 1.28, "mask_below": 0.8}, [0, -1, -0.25]),
        (-1, {"ratio_cap": 3, "mask_above": 1.28, "mask_below": 0.8}, [3, 1, 0]),
        (0, {"ratio_cap": 3, "mask_above": 1.28, "mask_below": 0.8}, [0, 0, 0]),
    ],
    ids=["cap", "cap, bad token", "cap 1", "floor", "no cap", "mask, A > 0", "mask, A < 0", "no advantage"],
)
def test_gradients_by_hand(advantage, parameters, wanted):
    assert gradient_at_ratios(advantage, **parameters) == pytest.approx(wanted, rel=1e-12)


def test_a_ratio_on_the_border_is_neither_capped_nor_masked():
    behaviour = float64(-1.0)
    output, gradient = loss_and_gradient(
        behaviour, behaviour, float64(1.0), float64(1.0), everywhere([0]), ratio_cap=1, mask_above=1, mask_below=1
    )
    assert gradient.tolist() == [-1.0]
    assert float(output.metrics["ratio/capped_fraction"]) == float(output.metrics["ratio/masked_fraction"]) == 0


# The kin: rows of the table in cispo/loss.py against objectives written as their papers do


def clipped_surrogate_gradient(logp, behaviour, advantage, weight, mask, low, high):
    """PPO (arXiv 1707.06347, equation 7): maximise min(r A, clip(r, low, high) A), differentiated through r."""
    logp = logp.clone().requires_grad_()
    ratio = torch.exp(logp - behaviour)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    (-(surrogate * weight)[mask].sum()).backward()
    return logp.grad


@pytest.mark.parametrize("low, high", [(0.8, 1.2), (0.8, 1.28)], ids=["PPO and GRPO", "DAPO"])
@pytest.mark.parametrize("seed", range(5))
def test_clipped_objectives_are_parameter_values(low, high, seed):
    row = random_row(seed)
    wanted = clipped_surrogate_gradient(*row, low, high)
    _, gradient = loss_and_gradient(*row, ratio_cap=math.inf, mask_below=low, mask_above=high)
    np.testing.assert_allclose(gradient.numpy(), wanted.numpy(), rtol=1e-12, atol=1e-15)
    dropped = (wanted == 0) & row[4]
    assert 10 < int(dropped.sum()) < int(row[4].sum()) - 10  # the comparison is of both branches


def test_reinforce_is_the_band_from_one_to_one():
    logp, behaviour, advantage, weight, mask = random_row(1)
    _, gradient = loss_and_gradient(logp, behaviour, advantage, weight, mask, ratio_cap=1, ratio_floor=1)
    free = logp.clone().requires_grad_()
    (-(weight * advantage * free)[mask].sum()).backward()
    np.testing.assert_allclose(gradient.numpy(), free.grad.numpy(), rtol=1e-12)


def test_on_policy_every_objective_has_the_policy_gradient():
    logp, _, advantage, weight, mask = random_row(2)
    rows = [
        {"ratio_cap": 3},
        {"ratio_cap": math.inf, "mask_below": 0.8, "mask_above": 1.2},
        {"ratio_cap": 1, "ratio_floor": 1},
    ]
    gradients = [loss_and_gradient(logp, logp, advantage, weight, mask, **row)[1] for row in rows]
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


# Settings that cannot be meant


@pytest.mark.parametrize("cap", [0.2, 0.999, 0.0, -1.0, math.nan])
def test_a_cap_below_one_is_refused(cap):
    with pytest.raises(ConfigError, match="ratio_cap must be at least 1"):
        cispo_loss(float64(0), float64(0), float64(0), float64(0), everywhere([0]), ratio_cap=cap)


def test_the_refusal_of_an_epsilon_says_what_to_write():
    with pytest.raises(ConfigError, match=r"not an epsilon; got 0\.2\. .* write ratio_cap=1\.2\."):
        cispo_loss(float64(0), float64(0), float64(0), float64(0), everywhere([0]), ratio_cap=0.2)


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        ({"ratio_floor": 1.1}, "ratio_floor must lie in"),
        ({"ratio_floor": -0.1}, "ratio_floor must lie in"),
        ({"mask_above": 0.28}, r"mask_above must be at least 1.* write mask_above=1\.28"),
        ({"mask_below": 1.2}, "mask_below must lie in"),
        ({"mask_below": math.nan}, "mask_below must lie in"),
    ],
)
def test_other_epsilons_and_impossible_bands_are_refused(parameters, sentence):
    with pytest.raises(ConfigError, match=sentence):
        cispo_loss(float64(0), float64(0), float64(0), float64(0), everywhere([0]), ratio_cap=3, **parameters)


# Metrics


def metrics_at_ratios(advantage=1.0, **parameters):
    behaviour = float64(*[math.log(0.2)] * 4)
    logp = behaviour + float64(*RATIOS, 100.0).log()
    mask = torch.tensor([True, True, True, False])
    output = cispo_loss(logp, behaviour, float64(*[advantage] * 4), float64(1, 1, 1, 1), mask, **parameters)
    return {name: float(metric) for name, metric in output.metrics.items()}


def test_metrics_by_hand():
    metrics = metrics_at_ratios(ratio_cap=3, mask_above=1.28, mask_below=0.8)
    # k3 = r - 1 - log r: 4 - 1 - 1.386294, 0, 0.25 - 1 + 1.386294
    assert metrics == pytest.approx(
        {
            "ratio/mean": 1.75,
            "ratio/max": 4.0,
            "ratio/capped_fraction": 1 / 3,
            "ratio/masked_fraction": 1 / 3,
            "ratio/nonfinite": 0.0,
            "drift/kl": (3 - 0.75) / 3,
        },
        rel=1e-12,
    )


def test_each_metric_moves_with_what_it_measures():
    base = metrics_at_ratios(ratio_cap=3)
    assert metrics_at_ratios(ratio_cap=5)["ratio/capped_fraction"] == 0 < base["ratio/capped_fraction"]
    assert base["ratio/masked_fraction"] == 0 < metrics_at_ratios(ratio_cap=3, mask_above=2)["ratio/masked_fraction"]
    low = metrics_at_ratios(-1.0, ratio_cap=3, mask_below=0.5)["ratio/masked_fraction"]
    assert low == pytest.approx(1 / 3)
    assert metrics_at_ratios(-1.0, ratio_cap=3, mask_above=2)["ratio/masked_fraction"] == 0


@pytest.mark.parametrize("difference", [1e-3, 1e-5, -1e-6, 1e-7])
def test_small_divergences_are_not_rounding(difference):
    behaviour = torch.zeros(1)
    logp = behaviour + torch.tensor([difference])  # near 0 float32 holds such a difference; 1 + 1e-7 it does not
    wanted = float(logp.double() ** 2 / 2 + logp.double() ** 3 / 6)
    drift = cispo_loss(logp, behaviour, torch.ones(1), torch.ones(1), everywhere([0]), ratio_cap=3).metrics["drift/kl"]
    mismatch = mismatch_metrics(logp, behaviour, everywhere([0]))["mismatch/kl"]
    assert float(drift) == pytest.approx(wanted, rel=1e-6, abs=0)
    assert float(mismatch) == pytest.approx(wanted, rel=1e-6, abs=0)


def test_mismatch_by_hand_and_on_fresh_tokens_only():
    behaviour = torch.tensor([0.5, 0.25, 0.8, 0.1], dtype=torch.float64).log()
    logp = torch.tensor([0.5, 0.5, 0.4, 0.9], dtype=torch.float64).log()
    metrics = mismatch_metrics(logp, behaviour, torch.tensor([True, True, True, False]))
    log2 = math.log(2)
    assert float(metrics["mismatch/logp_abs_diff_mean"]) == pytest.approx(2 * log2 / 3)
    assert float(metrics["mismatch/logp_abs_diff_max"]) == pytest.approx(log2)
    assert float(metrics["mismatch/kl"]) == pytest.approx(((1 - log2) + (-0.5 + log2)) / 3)
    assert float(metrics["mismatch/prob_pearson"]) == pytest.approx(
        np.corrcoef([0.5, 0.5, 0.4], [0.5, 0.25, 0.8])[0, 1]
    )


def test_metrics_of_a_row_merge_to_those_of_the_whole():
    row = random_row(3)
    whole = cispo_loss(*row, ratio_cap=2, mask_above=1.5, mask_below=0.7).metrics
    for cut, name in product([1, 77, 199], whole):
        parts = [
            cispo_loss(*(stream[part] for stream in row), ratio_cap=2, mask_above=1.5, mask_below=0.7).metrics[name]
            for part in (slice(0, cut), slice(cut, None))
        ]
        assert float(parts[0].merge(parts[1])) == pytest.approx(float(whole[name]), rel=1e-9)
