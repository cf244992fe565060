"""Slots: forking, resetting, snapshots, and what does not fit."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from model import HybridCache, HybridConfig, HybridLM, ModelError

torch.set_num_threads(1)
TINY = HybridConfig(vocab_size=11, hidden_size=16, head_dim=4, rotary_dim=2, intermediate_size=8, num_local_experts=4)


@pytest.fixture
def lm():
    torch.manual_seed(0)
    return HybridLM(TINY)


def prefilled(lm, slot, tokens, slots=6, length=20):
    cache = HybridCache(TINY, slots, length)
    lm.prefill(torch.tensor(tokens), torch.tensor([0, len(tokens)]), torch.tensor([slot]), cache)
    return cache


def test_a_reset_slot_is_like_a_new_one(lm):
    cache = prefilled(lm, 1, [9, 9, 9, 2])
    cache.reset([1])
    again = lm.prefill(torch.tensor([4, 5]), torch.tensor([0, 2]), torch.tensor([1]), cache)
    fresh = HybridCache(TINY, 6, 20)
    wanted = lm.prefill(torch.tensor([4, 5]), torch.tensor([0, 2]), torch.tensor([1]), fresh)
    assert torch.equal(again, wanted)


def test_a_reset_slot_keeps_nothing_that_could_reach_its_next_user(lm):
    cache = prefilled(lm, 1, [9, 9, 9, 2])
    pools = [*cache.states.values(), *cache.keys.values(), *cache.values.values()]
    for pool in pools:
        pool[1] = float("nan")
    cache.length_S[1] = 20
    cache.reset([])
    assert cache.length_S[1] == 20
    cache.reset([1, 4])
    assert all(int(pool.count_nonzero()) == 0 for pool in pools)
    assert cache.length_S.tolist() == [0] * 6


def test_decoding_touches_no_other_slot(lm):
    cache = prefilled(lm, 1, [1, 2, 3])
    before = cache.snapshot(1)
    cache.fork(1, [4])
    lm.decode(torch.tensor([5]), torch.tensor([4]), cache)
    after = cache.snapshot(1)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_snapshot_goes_back_in_time_and_into_another_cache(lm):
    cache = prefilled(lm, 1, [1, 2, 3])
    snapshot = cache.snapshot(1)
    wanted = lm.decode(torch.tensor([5]), torch.tensor([1]), cache)
    lm.decode(torch.tensor([6]), torch.tensor([1]), cache)
    other = HybridCache(TINY, 2, 9)
    for target, slot in ((cache, 1), (other, 0)):
        target.restore(slot, snapshot)
        assert torch.equal(lm.decode(torch.tensor([5]), torch.tensor([slot]), target), wanted)


def test_a_snapshot_that_does_not_fit_is_refused_and_changes_nothing(lm):
    snapshot = prefilled(lm, 0, [1, 2, 3]).snapshot(0)
    cache = prefilled(lm, 0, [7, 7])
    before = cache.snapshot(0)
    faults = {
        "length": {name: array for name, array in snapshot.items() if name != "length"},
        "at most 2 tokens": snapshot,
        "layers.0.state": snapshot | {"layers.0.state": torch.zeros(4, 4, 5)},
        "layers.3.keys": {name: array for name, array in snapshot.items() if name != "layers.3.keys"},
        "layers.9.state": snapshot | {"layers.9.state": torch.zeros(1)},
    }
    for message, arrays in faults.items():
        target = HybridCache(TINY, 1, 2) if "2 tokens" in message else cache
        with pytest.raises(ModelError, match=message):
            target.restore(0, arrays)
    assert all(torch.equal(array, before[name]) for name, array in cache.snapshot(0).items())


def test_a_full_slot_is_refused_before_anything_is_written(lm):
    cache = prefilled(lm, 0, [1, 2, 3], slots=1, length=3)
    before = cache.snapshot(0)
    with pytest.raises(ModelError, match="at most 3 tokens.*grow to 4"):
        lm.decode(torch.tensor([1]), torch.tensor([0]), cache)
    with pytest.raises(ModelError, match="grow to 5"):
        lm.prefill(torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([0]), cache)
    assert all(torch.equal(array, before[name]) for name, array in cache.snapshot(0).items())


def test_prefill_wants_a_slot_and_a_token_for_each_sequence(lm):
    cache = HybridCache(TINY, 2, 5)
    with pytest.raises(ModelError, match="one slot"):
        lm.prefill(torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([0, 1]), cache)
    with pytest.raises(ModelError, match="at least one token"):
        lm.prefill(torch.tensor([1, 2]), torch.tensor([0, 0, 2]), torch.tensor([0, 1]), cache)


def test_bytes_by_hand():
    # 3 lightning layers of 4 heads x 4 x 4 and one softmax layer of keys and values, 2 heads x 10 places x 4
    assert HybridCache(TINY, 5, 10).bytes() == 5 * 4 * (3 * 4 * 16 + 2 * 2 * 10 * 4)
    halves = HybridCache(TINY, 5, 10, dtype=torch.bfloat16)
    assert halves.bytes() == 5 * (4 * 3 * 4 * 16 + 2 * 2 * 2 * 10 * 4)


def test_an_empty_cache_is_refused():
    with pytest.raises(ModelError, match="at least one slot"):
        HybridCache(TINY, 0, 10)


def test_places_that_nobody_uses_take_no_memory():
    """800 MB of keys and values of which a few rows are written: what the process holds must not grow by a tenth."""

    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident_bytes()
    cache = HybridCache(TINY, 100, 125_000)  # 100 slots x 2 heads x 4 wide x 4 bytes x keys and values
    assert cache.bytes() > 800_000_000
    for pool in (*cache.keys.values(), *cache.values.values()):
        assert pool[:, :, :300].count_nonzero() == 0
        pool[::10, :, :300] = 1
        assert pool[:, :, :400].sum() == 10 * 2 * 300 * 4
    assert resident_bytes() - before < 80_000_000
