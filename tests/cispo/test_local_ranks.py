"""The local learner over several processes, whole copies and shards, against itself in one."""

import dataclasses

import numpy as np
import pytest
import torch

from cispo.learner.local import LocalLearner
from tests.cispo.parity import (
    SETTINGS,
    assert_agree,
    assert_corrected_agree,
    learn,
    learn_corrected,
    learner_config,
    make_batches,
    make_lm,
    on_ranks,
    reference,
    together,
)

torch.set_num_threads(1)

CASES = {
    "whole": {"copies": "whole"},
    "sharded": {"copies": "sharded"},
    "sharded-recomputed": {"copies": "sharded", "recompute": True},
    "sharded-bfloat16": {"copies": "sharded", "dtype": "bfloat16"},
    "whole-bfloat16": {"copies": "whole", "dtype": "bfloat16"},
}


def work(ranks, folder, num_ranks, cases):
    """All cases in one start of the processes: updates, and a state that goes from shards to copies and back."""
    found = {}
    for name in cases:
        config = learner_config(num_ranks=num_ranks, **CASES[name])
        learner = LocalLearner(make_lm(), config, ranks)
        found[name] = learn(learner, make_batches(), shard=ranks.rank, num_shards=num_ranks)
        if "bfloat16" not in name:
            other = LocalLearner(make_lm(), config, ranks)
            found[f"{name} corrected"] = learn_corrected(other, shard=ranks.rank, num_shards=num_ranks)
        if name == "sharded":
            learner.save(folder / "of-shards")
            resumed = LocalLearner(make_lm(seed=7), config, ranks)
            resumed.load(folder.parent / "of-one")
            found["resumed"] = learn(resumed, make_batches()[1:], shard=ranks.rank, num_shards=num_ranks)
            resumed.export(folder / "export", eos_token_id=0)
    return found


@pytest.fixture(scope="module")
def two(folder, of_one):
    return on_ranks(2, work, folder / "two", 2, list(CASES))


def of_case(found, name, num_ranks, batches):
    return together(learner_config(num_ranks=num_ranks), [rank[name] for rank in found], batches)


def test_the_updates_are_hard_ones(batches):
    assert [len(batch.rows) for batch in batches] == [5, 5, 4]
    found = reference(batches)
    assert min(found.norms) > SETTINGS.max_grad_norm
    for metrics in found.metrics:
        assert 0.05 < metrics["ratio/capped_fraction"] < 0.9 and metrics["ratio/masked_fraction"] > 0.05


@pytest.mark.parametrize("name", ["whole", "sharded", "sharded-recomputed"])
def test_two_ranks_make_the_updates_of_one(two, batches, name):
    assert_agree(of_case(two, name, 2, batches), reference(batches))


@pytest.mark.slow
def test_four_ranks_too_with_more_rows_on_some_than_on_others(folder, of_one, batches):
    four = on_ranks(4, work, folder / "four", 4, ["whole", "sharded"])
    wanted = reference(batches)
    for name in ("whole", "sharded"):
        assert_agree(of_case(four, name, 4, batches), wanted)


@pytest.mark.parametrize("name", ["whole", "sharded", "sharded-recomputed"])
def test_corrected_updates_with_replayed_experts_are_those_of_one(two, name):
    assert_corrected_agree(learner_config(num_ranks=2), [rank[f"{name} corrected"] for rank in two])


@pytest.mark.parametrize("name", ["whole-bfloat16", "sharded-bfloat16"])
def test_bfloat16_moves_float32_masters(two, batches, name):
    """Near the float32 run as long as weights are the same, and near one process in bfloat16 throughout."""
    found, alone = of_case(two, name, 2, batches), reference(batches, dtype="bfloat16")
    exact = reference(batches)

    def distance(one, other):
        return np.nanmean(np.abs(np.concatenate(one) - np.concatenate(other)))

    assert 1e-3 < distance(alone.logp[0], exact.logp[0]) < 0.03
    assert max(map(distance, found.logp, alone.logp)) < 0.03
    np.testing.assert_allclose(found.norms, alone.norms, rtol=0.05)


def test_steps_below_a_rounding_of_bfloat16_add_up(batches):
    learner = LocalLearner(make_lm(), learner_config(dtype="bfloat16"))
    before = {name: master.detach().clone() for name, master in learner.masters.named()}
    for _ in range(3):
        learn(learner, batches, dataclasses.replace(SETTINGS, lr=1e-6))
    moved = {name: (master.detach() - before[name]).abs().max() for name, master in learner.masters.named()}
    assert all(0 < float(step) < 2e-5 for step in moved.values())
    weights = dict(learner.lm.named_parameters())
    for name, master in learner.masters.named():
        assert master.dtype == torch.float32
        assert torch.equal(weights[name], master.to(weights[name].dtype))


def test_a_state_of_one_process_goes_on_in_two_and_back(two, folder, batches, of_one):
    assert_agree(together(learner_config(num_ranks=2), [rank["resumed"] for rank in two], batches[1:]), of_one)
    back = LocalLearner(make_lm(seed=9), learner_config())
    back.load(folder / "two" / "of-shards")
    forward = LocalLearner(make_lm(), learner_config())
    learn(forward, batches)
    assert_agree(learn(back, batches), learn(forward, batches))


def test_what_shards_export_is_the_policy(two, folder):
    from model import load_pretrained

    lm = load_pretrained(folder / "two" / "export")
    weights = two[0]["resumed"].weights
    for name, weight in LocalLearner(lm, learner_config()).weights():
        np.testing.assert_array_equal(weight, weights[name])
