"""DeepSpeed's stages over several processes against the local learner in one: updates, skipped ones, states."""

import dataclasses
import functools
import importlib.util
import pickle

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from cispo.errors import CheckpointError, ConfigError
from cispo.learner.backends import check_installed
from cispo.learner.config import DeepSpeedConfig
from cispo.learner.deepspeed import DeepSpeedLearner
from cispo.learner.local import LocalLearner
from cispo.learner.shards import deal
from tests.cispo.parity import (
    SETTINGS,
    assert_agree,
    assert_corrected_agree,
    is_bfloat16,
    learn,
    learn_corrected,
    learner_config,
    make_batches,
    make_lm,
    on_ranks,
    together,
)

torch.set_num_threads(1)

CASES = {
    "0": {},
    "1": {},
    "2": {},
    "3": {},
    "3-recomputed": {"recompute": True},
    "1-bfloat16": {"dtype": "bfloat16"},
    "2-bfloat16": {"dtype": "bfloat16"},
    "3-bfloat16": {"dtype": "bfloat16"},
    "2-offloaded": {"offload_optimizer": True},
    "3-offloaded": {"offload_optimizer": True, "offload_weights": True},
}
CORRECTED = ["2", "3-recomputed"]
SKIPPING = ["0", "1", "2", "3", "1-bfloat16", "2-offloaded", "3-offloaded"]


def configure(name, num_ranks):
    changes = dict(CASES[name])
    zero = {part: changes.pop(part, False) for part in ("offload_optimizer", "offload_weights")}
    zero = DeepSpeedConfig(stage=int(name[0]), **zero)
    return learner_config(kind="deepspeed", num_ranks=num_ranks, deepspeed=zero, **changes)


def start(name, ranks, seed=0):
    return DeepSpeedLearner(make_lm(seed), configure(name, ranks.num_ranks), ranks)


def learn_shard(learner, batches):
    return learn(learner, batches, shard=learner.ranks.rank, num_shards=learner.ranks.num_ranks)


def spoilt(batch):
    """Its loss and its gradients are not finite."""
    rows = [dataclasses.replace(row, advantage_T=np.where(row.mask_T, np.inf, 0).astype("f")) for row in batch.rows]
    return dataclasses.replace(batch, rows=tuple(rows))


def learn_with_skips(learner, batches):
    """The first and the last of three batches; between them, updates that must leave no trace."""
    rank, num_ranks = learner.ranks.rank, learner.ranks.num_ranks
    learn_shard(learner, batches[:1])
    reasons = []
    for batch, settings in (
        (batches[1], dataclasses.replace(SETTINGS, kl_stop=1e-6)),
        (spoilt(batches[1]), SETTINGS),
        (batches[2], dataclasses.replace(SETTINGS, kl_stop=1e-6)),
    ):
        reasons.append(learner.update(deal(batch, num_ranks)[rank], settings).skipped)
    assert reasons == ["kl_stop", "nonfinite", "kl_stop"]
    return learn_shard(learner, batches[2:])


def work(ranks, folder, names, is_first):
    """All cases in one start of the processes."""
    found, batches = {}, make_batches()
    for name in names:
        learner = start(name, ranks)
        found[name] = learn_shard(learner, batches)
        if is_first and name in ("2", "3", "2-bfloat16"):
            learner.save(folder / f"of-stage-{name}")
        if is_first and name in CORRECTED:
            found[f"{name} corrected"] = learn_corrected(start(name, ranks), SETTINGS, ranks.rank, ranks.num_ranks)
        if is_first and name in SKIPPING:
            found[f"{name} with skips"] = learn_with_skips(start(name, ranks), batches)
    if is_first:
        resumed = start("3", ranks, seed=7)
        resumed.load(folder.parent / "of-one")
        found["resumed"] = learn_shard(resumed, batches[1:])
        resumed.export(folder / "export", eos_token_id=0)
        with pytest.raises(CheckpointError, match="nothing-here"):
            resumed.load(folder / "nothing-here")
    else:
        moved = start("3", ranks, seed=8)
        moved.load(folder.parent / "two" / "of-stage-2")
        found["moved"] = learn_shard(moved, batches)
    return found


def alone(_, folder, names):
    """One process that is in no group, with a state of two."""
    for name in names:
        learner = DeepSpeedLearner(make_lm(seed=9), configure(name, 1))
        learner.load(folder / "two" / "of-stage-3")
        (folder / f"alone-{name}").write_bytes(pickle.dumps(learn(learner, make_batches())))


@pytest.fixture(scope="module")
def of_all(batches):
    """What the local learner makes of all batches, and then of all once more."""
    learner = LocalLearner(make_lm(), learner_config())
    return [learn(learner, batches), learn(learner, batches)]


@functools.cache
def alone_in_bfloat16():
    """What one process makes of all batches in bfloat16, and its masters afterwards."""
    learner = LocalLearner(make_lm(), learner_config(dtype="bfloat16"))
    return learn(learner, make_batches()), dict(learner.masters.named())


@functools.cache
def without_the_second(dtype):
    """What one process makes of the third batch after the first."""
    learner, batches = LocalLearner(make_lm(), learner_config(dtype=dtype)), make_batches()
    learn(learner, batches[:1])
    return learn(learner, batches[2:])


@pytest.fixture(scope="module")
def two(folder, of_one):
    return on_ranks(2, work, folder / "two", list(CASES), True)


@pytest.fixture(scope="module")
def four(folder, two):
    return on_ranks(4, work, folder / "four", ["2", "3"], False)


def of_case(found, name, batches):
    return together(configure("2", len(found)), [rank[name] for rank in found], batches)


@pytest.mark.parametrize("name", [name for name in CASES if "bfloat16" not in name])
def test_two_ranks_make_the_updates_of_one(two, of_all, batches, name):
    assert_agree(of_case(two, name, batches), of_all[0])


@pytest.mark.parametrize("name", CORRECTED)
def test_corrected_updates_with_replayed_experts_are_those_of_one(two, name):
    assert_corrected_agree(configure(name, 2), [rank[f"{name} corrected"] for rank in two])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "3"])
def test_four_ranks_too_with_more_rows_on_some_than_on_others(four, of_all, batches, name):
    assert_agree(of_case(four, name, batches), of_all[0])


@pytest.mark.parametrize("name", [name for name in CASES if "bfloat16" in name])
def test_bfloat16_moves_float32_masters(two, batches, name):
    """Like one process in bfloat16; stage 3 adds up the gradients of a layer's inputs in another order."""
    found, alone = of_case(two, name, batches), alone_in_bfloat16()[0]
    if name[0] != "3":
        assert_agree(found, alone)
        return
    for rows, expected in zip(found.logp, alone.logp, strict=True):
        assert np.nanmean(np.abs(np.concatenate(rows) - np.concatenate(expected))) < 0.03
    np.testing.assert_allclose(found.losses[0], alone.losses[0], rtol=1e-5)
    np.testing.assert_allclose(found.norms, alone.norms, rtol=0.05)


def test_in_bfloat16_the_router_stays_float32(two):
    weights = two[0]["3-bfloat16"].weights
    assert {name for name, weight in weights.items() if not is_bfloat16(weight)} == {
        f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(4)
    }


@pytest.mark.parametrize("name", SKIPPING)
def test_a_skipped_update_leaves_no_trace(two, batches, name):
    wanted = without_the_second(CASES[name].get("dtype", "float32"))
    found = of_case(two, f"{name} with skips", batches[2:])
    assert_agree(found, wanted)


def test_a_local_state_goes_on_in_stage_3(two, of_one, batches):
    assert_agree(of_case(two, "resumed", batches[1:]), of_one)


@pytest.mark.parametrize("name", ["2", "3"])
def test_a_state_of_two_ranks_goes_on_in_the_local_learner(two, folder, of_all, batches, name):
    back = LocalLearner(make_lm(seed=9), learner_config())
    back.load(folder / "two" / f"of-stage-{name}")
    assert_agree(learn(back, batches), of_all[1])


@pytest.mark.slow
def test_a_state_of_two_ranks_in_stage_2_goes_on_in_four_in_stage_3(four, of_all, batches):
    assert_agree(of_case(four, "moved", batches), of_all[1])


def test_a_process_alone_needs_no_group(two, folder, of_all):
    mp.spawn(alone, (folder, ["1", "3"]), nprocs=1)
    for name in ("1", "3"):
        assert_agree(pickle.loads((folder / f"alone-{name}").read_bytes()), of_all[1])


def test_a_state_of_bfloat16_has_the_float32_masters(two, folder):
    masters = alone_in_bfloat16()[1]
    wide = LocalLearner(make_lm(seed=9), learner_config())
    wide.load(folder / "two" / "of-stage-2-bfloat16")
    for name, weight in wide.lm.named_parameters():
        torch.testing.assert_close(weight.detach(), masters[name].detach(), rtol=1e-5, atol=1e-6)


def test_what_stage_3_exports_is_the_policy(two, folder):
    from model import load_pretrained

    lm = load_pretrained(folder / "two" / "export")
    for name, weight in LocalLearner(lm, learner_config()).weights():
        np.testing.assert_array_equal(weight, two[0]["resumed"].weights[name])


def test_what_cannot_work_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="stage must be 1, 2 or 3 with learner.dtype=bfloat16"):
        learner_config(kind="deepspeed", dtype="bfloat16", deepspeed=DeepSpeedConfig(stage=0))
    with pytest.raises(ConfigError, match="offload_weights stage 3"):
        DeepSpeedConfig(stage=2, offload_weights=True)


@pytest.mark.parametrize("kind", ["deepspeed", "megatron"])
def test_a_missing_library_is_one_sentence(monkeypatch, kind):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'cispo\[{kind}\]'"):
        check_installed(learner_config(kind=kind))
