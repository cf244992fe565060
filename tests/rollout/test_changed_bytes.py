"""What changed is enough to make the new version of the old one; anything else is refused and leaves the old one."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.errors import NeedsWhole, WeightSyncError
from rollout.changed_bytes import apply_changes, find_changes
from rollout.receiver import Receiver
from rollout.weight_memory import TensorForm, WeightMemory
from rollout.weight_package import Manifest, WeightPackage, fill

BLOCKS = (1, 2, 4, 8, 64)


class Engine:
    """Keeps what it is given."""

    def __init__(self):
        self.weights, self.version = {}, None

    def load_weights(self, weights, version):
        self.weights = {name: tensor.clone() for name, tensor in weights}
        self.version = version


def weights_of(seed, sizes=((3, 5), (70,), (2, 2, 9))):
    rng = torch.Generator().manual_seed(seed)
    named = {f"w{i}": torch.randn(size, generator=rng) for i, size in enumerate(sizes)}
    return named | {"narrow": torch.randn(41, generator=rng).bfloat16()}


def published(weights, version):
    memory = WeightMemory({name: TensorForm.of(tensor) for name, tensor in weights.items()})
    return memory, fill(memory, weights.items(), version)


def base_of(memory, records):
    arrays = {name: array.copy() for name, array in memory.arrays.items()}
    return pickle.loads(pickle.dumps(WeightPackage(Manifest(memory.version, records), arrays, is_base=True)))


def stepped(weights, seed, share):
    """Some numbers of each tensor but the last moved."""
    rng = torch.Generator().manual_seed(seed)
    moved = {name: w + (torch.rand(w.shape, generator=rng) < share).to(w.dtype) for name, w in weights.items()}
    return moved | {"narrow": weights["narrow"]}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(BLOCKS), st.integers(0, 1000), st.sampled_from([0.0, 0.05, 1.0]))
def test_versions_follow_each_other_through_their_changes(block, seed, share):
    weights = weights_of(seed)
    memory, records = published(weights, 0)
    engine = Engine()
    receiver = Receiver(engine, "rollout-0")
    receiver.load(base_of(memory, records), 0)
    for version in (1, 2):
        weights = stepped(weights, seed + version, share)
        changes = find_changes(memory, records, weights.items(), version, block)
        records = changes.manifest.records
        assert "narrow" not in changes.tensors
        loaded = receiver.load(pickle.loads(pickle.dumps(changes)), version)
        assert (engine.version, loaded.num_bytes) == (version, changes.num_bytes)
        for name, weight in weights.items():
            assert engine.weights[name].dtype == weight.dtype and torch.equal(engine.weights[name], weight)


def test_only_blocks_that_changed_travel():
    weights = {"w": torch.zeros(1024)}
    memory, records = published(weights, 0)
    new = torch.zeros(1024)
    new[[5, 6, 700]] = 1.0
    for block, num_blocks in ((4, 3), (8, 3), (16, 2), (4096, 1)):
        changes = find_changes(*published(weights, 0), {"w": new}.items(), 1, block).tensors["w"]
        assert len(changes.blocks) == num_blocks
        assert changes.num_bytes == num_blocks * block + -(-4096 // block // 8)
    assert find_changes(memory, records, weights.items(), 1, 4).num_bytes == 0


def with_damage(changes):
    each = changes.tensors["w1"]
    blocks = each.blocks.copy()
    blocks[0] ^= 1
    return dataclasses.replace(changes, tensors=changes.tensors | {"w1": dataclasses.replace(each, blocks=blocks)})


def with_a_tensor_left_out(changes):
    return dataclasses.replace(changes, tensors={k: v for k, v in changes.tensors.items() if k != "w0"})


def with_blocks_of_another_place(changes):
    each = changes.tensors["w1"]
    bits = np.unpackbits(each.changed)
    moved = dataclasses.replace(each, changed=np.packbits(bits[::-1]) if bits.sum() else each.changed)
    return dataclasses.replace(changes, tensors=changes.tensors | {"w1": moved})


@pytest.mark.parametrize("damage", [with_damage, with_a_tensor_left_out, with_blocks_of_another_place])
def test_changes_that_do_not_make_the_version_are_taken_back(damage):
    old = weights_of(0, sizes=((3, 5), (64,)))
    memory, records = published(old, 0)
    engine = Engine()
    receiver = Receiver(engine, "rollout-0")
    receiver.load(base_of(memory, records), 0)
    new = stepped(old, 1, 0.3)
    changes = find_changes(memory, records, new.items(), 1, 4)
    with pytest.raises(WeightSyncError, match=r"version 1 did not arrive.*checksum, shape or dtype differ: w"):
        receiver.load(damage(changes), 1)
    assert engine.version == 0 and all(torch.equal(engine.weights[name], weight) for name, weight in old.items())
    receiver.load(changes, 1)  # the base is as it was, so the right changes still fit
    assert all(torch.equal(engine.weights[name], weight) for name, weight in new.items())


def test_whoever_missed_a_version_or_has_none_asks_for_the_whole():
    weights = weights_of(0)
    memory, records = published(weights, 0)
    receiver = Receiver(Engine(), "rollout-0")
    receiver.load(base_of(memory, records), 0)
    first = find_changes(memory, records, stepped(weights, 1, 0.5).items(), 1, 4)
    second = find_changes(memory, first.manifest.records, stepped(weights, 2, 0.5).items(), 2, 4)
    with pytest.raises(NeedsWhole, match="as changes to version 1, and this worker holds version 0"):
        receiver.load(second, 2)
    with pytest.raises(NeedsWhole, match="this worker holds none"):
        Receiver(Engine(), "rollout-1").load(second, 2)
    receiver.load(base_of(memory, second.manifest.records), 2)  # which skips version 1


def test_a_damaged_base_is_no_base():
    weights = weights_of(0)
    memory, records = published(weights, 0)
    engine = Engine()
    receiver = Receiver(engine, "rollout-0")
    damaged = base_of(memory, records)
    damaged.arrays["w0"].view(np.uint8).reshape(-1)[3] ^= 4
    with pytest.raises(WeightSyncError, match="differ: w0"):
        receiver.load(damaged, 0)
    assert engine.version is None
    with pytest.raises(NeedsWhole):
        receiver.load(find_changes(memory, records, stepped(weights, 1, 0.5).items(), 1, 4), 1)


def test_a_stream_that_breaks_off_leaves_nothing_to_change():
    def broken():
        yield "w0", weights["w0"] + 1
        raise RuntimeError("the rank died")

    weights = weights_of(0)
    memory, records = published(weights, 0)
    with pytest.raises(RuntimeError):
        find_changes(memory, records, broken(), 1, 4)
    with pytest.raises(WeightSyncError, match="no whole version came before it"):
        find_changes(memory, records, weights.items(), 2, 4)
    with pytest.raises(NeedsWhole):
        apply_changes(memory, find_changes(*published(weights, 0), stepped(weights, 1, 0.5).items(), 1, 4))
