"""Weights arrive whole or not at all: a torn, stale or foreign package leaves the engine as it was."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from cispo.errors import WeightSyncError
from model import HybridConfig, HybridLM
from model.checkpoint import stream_weights
from rollout.engine import EngineConfig, HybridEngine
from rollout.sampling import Sampling
from rollout.weight_package import make_package
from rollout.worker import RolloutWorker

SHAPE = HybridConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    rotary_dim=4,
    intermediate_size=8,
    num_local_experts=2,
    num_experts_per_tok=1,
    attn_type_list=(0, 1),
)


def lm(seed):
    torch.manual_seed(seed)
    return HybridLM(SHAPE)


def arrays_of(policy):
    return {name: tensor.numpy().copy() for name, tensor in stream_weights(policy)}


def package_of(policy, version=3):
    return make_package(stream_weights(policy), version)


def flipped_byte(package):
    name = sorted(package.arrays)[0]
    package.arrays[name].view(np.uint8).reshape(-1)[0] ^= 1
    return package


def wrong_version(package):
    return dataclasses.replace(package, manifest=dataclasses.replace(package.manifest, version=2))


def missing_tensor(package):
    package.arrays.popitem()
    return package


def foreign_tensor(package):
    package.arrays["stranger"] = np.zeros(2, dtype=np.float32)
    return package


def of_another_shape(package):
    tensors = dict(package.tensors())
    name = sorted(tensors)[0]
    return make_package((tensors | {name: torch.cat([tensors[name], tensors[name]])}).items(), 3)


def of_fewer_layers(package):
    tensors = dict(package.tensors())
    del tensors[sorted(tensors)[0]]
    return make_package(tensors.items(), 3)


def with_a_stranger_announced(package):
    return make_package((dict(package.tensors()) | {"stranger": torch.zeros(2)}).items(), 3)


class NoScorer:
    """A scorer for a worker that only loads weights."""

    def close(self):
        pass


def worker_with(engine):
    return RolloutWorker(engine, NoScorer(), str, Sampling())


def test_a_whole_package_replaces_weights_and_version():
    old, new = lm(0), lm(1)
    engine = HybridEngine(old, EngineConfig(num_slots=1, max_length=8), version=1)
    worker_with(engine).load_weights(pickle.loads(pickle.dumps(package_of(new))), 3)
    expected = arrays_of(new)
    assert all(np.array_equal(array, expected[name]) for name, array in arrays_of(old).items())
    completion = engine.generate([(1, 2)], Sampling(max_new_tokens=1))[0][0]
    assert completion.version.tolist() == [3]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flipped_byte, "checksum"),
        (wrong_version, "expected the weights of version 3 but version 2"),
        (missing_tensor, "missing"),
        (foreign_tensor, "not announced: stranger"),
        (of_another_shape, "has shape"),
        (of_fewer_layers, "is missing"),
        (with_a_stranger_announced, "stranger is unknown"),
    ],
)
def test_a_damaged_or_foreign_package_changes_nothing(damage, says):
    policy = lm(0)
    engine = HybridEngine(policy, EngineConfig(num_slots=1, max_length=8), version=1)
    before = arrays_of(policy)
    with pytest.raises(WeightSyncError, match=says):
        worker_with(engine).load_weights(damage(package_of(lm(1))), 3)
    assert all(np.array_equal(array, before[name]) for name, array in arrays_of(policy).items())
    assert engine.generate([(1, 2)], Sampling(max_new_tokens=1))[0][0].version.tolist() == [1]


def test_a_package_is_a_copy_that_later_updates_do_not_reach():
    weight = torch.ones(3)
    package = make_package([("w", weight)], 1)
    weight[:] = 2
    assert dict(package.tensors())["w"].tolist() == [1, 1, 1]
