"""A step in numbers, each worked by hand from a small harvest."""

import dataclasses
import math

import numpy as np
import pytest

from cispo.advantage import assign_credit
from cispo.describe import describe, length_metrics, num_trained, reward_metrics
from cispo.metrics import Max, Mean, Sum
from cispo.packing import pack
from cispo.types import Harvest, Score, StopReason, UpdateResult, Verdict

NAN = float("nan")


def update(loss=1.0, grad_norm=2.0, lr=1e-3, kl=0.01, skipped="", **metrics):
    return UpdateResult(loss, grad_norm, lr, kl, skipped, metrics)


def harvest_of(make_group):
    """Five groups drawn: two kept, one flat, one stale that came in, one failed that never did."""
    kept = (
        make_group(0, (1.0, 0.0), num_actions=(2, 4), version=3),
        make_group(2, (1.0, 0.0), num_actions=6, version=2),
    )
    flat, stale = make_group(1, (1.0, 1.0), num_actions=8, version=3), make_group(3, (0.0, NAN), num_actions=10)
    return Harvest(kept, {"flat": 1, "stale": 1, "failed": 1}, 5, (kept[0], flat, kept[1], stale))


def test_rewards_and_verdicts_are_over_all_that_was_sampled(make_group):
    metrics = reward_metrics(harvest_of(make_group).seen)
    # rewards seen: 1 0 1 1 1 0 0, and one that could not be scored
    assert metrics == pytest.approx(
        {
            "reward/mean": 4 / 7,
            "reward/correct/mean": 4 / 7,
            "reward/chain/mean": 4 / 7,
            "reward/answer/mean": 4 / 7,
            "verdict/correct_fraction": 4 / 8,
            "verdict/wrong_fraction": 3 / 8,
            "verdict/system_error_fraction": 1 / 8,
        }
    )


def test_tasks_and_parts_have_their_own_means(make_group):
    one = make_group(0, (1.0, 0.0), task="chain")
    scores = tuple(Score(v, True, {"answer": 1.0, "length": v - 1.0}, Verdict.CORRECT) for v in (0.5, 0.7))
    other = dataclasses.replace(make_group(1, (0.0, 0.0), task="program"), scores=scores)
    metrics = reward_metrics([one, other])
    assert metrics["reward/chain/mean"] == pytest.approx(0.5) and metrics["reward/program/mean"] == pytest.approx(0.6)
    assert metrics["reward/answer/mean"] == pytest.approx(0.75)
    assert metrics["reward/length/mean"] == pytest.approx(-0.4)
    assert metrics["reward/correct/mean"] == pytest.approx(0.75) and metrics["reward/mean"] == pytest.approx(0.55)


def test_lengths_count_actions_and_truncation(make_group):
    group = make_group(0, (1.0, 0.0, 0.0, 0.0), num_actions=(1, 2, 3, 10))
    cut = dataclasses.replace(group.trajectories[3], stop_reason=StopReason.LENGTH)
    metrics = length_metrics([dataclasses.replace(group, trajectories=(*group.trajectories[:3], cut))])
    assert metrics == pytest.approx(
        {
            "response_length/mean": 4.0,
            "response_length/p50": 2.5,
            "response_length/p90": 3 + 0.7 * 7,
            "response_length/p99": 3 + 0.97 * 7,
            "response_length/max": 10.0,
            "response_length/truncated_fraction": 0.25,
        }
    )


def test_intake_and_updates_of_a_step(make_group):
    harvest = harvest_of(make_group)
    batches = pack(assign_credit(harvest.groups), num_batches=2, max_row_tokens=64, version=3)
    first = {
        "ratio/mean": Mean(3.0, 2.0),
        "ratio/max": Max(2.0),
        "ratio/nonfinite": Sum(1.0),
        "drift/kl": Mean(1.0, 1.0),
    }
    second = {"ratio/mean": Mean(2.0, 2.0), "ratio/max": Max(5.0), "ratio/nonfinite": Sum(0.0)}
    metrics = describe(harvest, batches, [update(**first), update(loss=3.0, lr=3e-3, kl=0.03, **second)])
    assert (
        metrics
        | {
            "groups/flat_fraction": 0.2,
            "groups/stale_fraction": 0.2,
            "groups/failed_fraction": 0.2,
            "groups/drawn": 5.0,
            "groups/trained": 2.0,
            "tokens/generated": 54.0,
            "tokens/trained": 18.0,
            "actor/loss": 2.0,
            "actor/grad_norm": 2.0,
            "actor/lr": pytest.approx(2e-3),
            "drift/kl_mean": pytest.approx(0.02),
            "drift/kl_p95": pytest.approx(0.029),
            "drift/skipped_updates": 0.0,
            "ratio/mean": 1.25,
            "ratio/max": 5.0,
            "ratio/nonfinite": 1.0,
            "staleness/mean": pytest.approx(12 / 18),
            "staleness/max": 1.0,
        }
        == metrics
    )
    assert "drift/kl" not in metrics


def test_what_kl_stop_left_out_is_counted_as_skipped_and_not_as_trained(make_group):
    groups = tuple(make_group(i, (1.0, 0.0)) for i in range(4))
    harvest = Harvest(groups, {}, 4, groups)
    batches = pack(assign_credit(groups), num_batches=4, max_row_tokens=64)
    updates = [update(lr=1e-3), update(lr=9.0, kl=0.5, skipped="kl_stop")]
    metrics = describe(harvest, batches, updates)
    assert metrics["drift/skipped_updates"] == 3
    assert metrics["actor/lr"] == 1e-3
    assert metrics["tokens/trained"] == num_trained(batches, updates) == batches[0].num_learnt == 6
    assert metrics["drift/kl_mean"] == pytest.approx(0.255)


def test_tokens_that_credit_dropped_are_counted(make_group):
    group = make_group(0, (1.0, 0.0, NAN))
    broken = [
        dataclasses.replace(t, behaviour_logp_T=np.where(np.arange(5) == 3, -np.inf, t.behaviour_logp_T))
        for t in group.trajectories
    ]
    group = dataclasses.replace(group, trajectories=tuple(broken))
    batches = pack(assign_credit([group]), num_batches=1)
    metrics = describe(Harvest((group,), {}, 1, (group,)), batches, [update(**{"ratio/nonfinite": Sum(0.0)})])
    assert metrics["ratio/nonfinite"] == 2  # one in each scored trajectory; the third was never learnt from
    assert metrics["tokens/trained"] == 4


def test_a_step_without_groups_makes_nothing_up():
    metrics = describe(Harvest((), {"flat": 3}, 3, ()), [], [])
    assert metrics == {
        "groups/flat_fraction": 1.0,
        "groups/stale_fraction": 0.0,
        "groups/failed_fraction": 0.0,
        "groups/drawn": 3.0,
        "groups/trained": 0.0,
        "tokens/generated": 0.0,
        "tokens/trained": 0.0,
        "drift/skipped_updates": 0.0,
        "ratio/nonfinite": 0.0,
    }
    assert not any(math.isnan(value) for value in metrics.values())
