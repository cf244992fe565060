"""Mismatch by kind of layer: rounding where nothing is wrong, and the kind at fault, alone, where something is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model import HybridCache, HybridConfig, ModelError
from model.mismatch import KINDS, mismatch_by_kind

TINY = HybridConfig(vocab_size=23, hidden_size=32, initializer_range=0.1)
LENGTH, PROMPT = 90, 50


@pytest.fixture
def lm(oracle):
    return oracle.make_lm(TINY)


@pytest.fixture
def tokens(oracle):
    return oracle.random_tokens(TINY, LENGTH, seed=4)


@pytest.mark.parametrize("prompt", [1, PROMPT, LENGTH - 1, LENGTH])
def test_both_sides_agree_up_to_rounding(lm, tokens, prompt):
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 0.02)):
        found = mismatch_by_kind(lm.to(dtype), tokens, prompt)
        assert tuple(found) == KINDS
        assert all(value < bound for value in found.values()), (dtype, found)


def faulty_lightning(lm, monkeypatch):
    """The decay of one layer, one token ahead of its state: the error of a much-used server."""
    mixer = lm.model.layers[1].self_attn
    decode = mixer.decode
    monkeypatch.setattr(
        mixer, "decode", lambda u, turn, cache: cache.states[1].mul_(0.9) is not None and decode(u, turn, cache)
    )


def faulty_softmax(lm, monkeypatch):
    """Positions that are one too high."""
    mixer = lm.model.layers[3].self_attn
    decode = mixer.decode

    def late(u, turn, cache):
        from model.softmax import rotary_tables

        cos, sin = rotary_tables(turn.length_N + 1, TINY.rotary_dim, TINY.rope_theta)
        return decode(u, dataclasses.replace(turn, cos_NR=cos, sin_NR=sin), cache)

    monkeypatch.setattr(mixer, "decode", late)


def faulty_moe(lm, monkeypatch):
    """Sampling's weights of the experts are not renormalised."""
    experts = lm.model.layers[2].block_sparse_moe.experts
    infer = experts.infer
    monkeypatch.setattr(experts, "infer", lambda x, weight, expert: infer(x, 0.9 * weight, expert))


def faulty_head(lm, monkeypatch):
    """Logits rounded to bfloat16 where they are sampled from."""
    logits = lm.logits
    monkeypatch.setattr(lm, "logits", lambda hidden: logits(hidden).bfloat16().float())


FAULTS = {"lightning": faulty_lightning, "softmax": faulty_softmax, "moe": faulty_moe, "head": faulty_head}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_shows_in_its_own_kind_and_in_no_other(lm, tokens, kind, monkeypatch):
    FAULTS[kind](lm, monkeypatch)
    found = mismatch_by_kind(lm, tokens, PROMPT)
    assert found.pop(kind) > 1e-3
    assert all(value < 2e-6 for value in found.values()), found


def test_a_difference_by_hand(lm, tokens, monkeypatch):
    """Experts 1.5 times too large on every sampled token."""
    for layer in lm.model.layers:
        infer = layer.block_sparse_moe.experts.infer
        monkeypatch.setattr(layer.block_sparse_moe.experts, "infer", lambda *args, infer=infer: 1.5 * infer(*args))
    assert mismatch_by_kind(lm, tokens, PROMPT)["moe"] == pytest.approx(0.5, abs=1e-5)


def test_a_cache_of_its_own_is_used_and_its_dtype_shows(lm, tokens):
    halves = HybridCache(TINY, 1, LENGTH, dtype=torch.bfloat16)
    found = mismatch_by_kind(lm, tokens, PROMPT, halves)
    assert found["softmax"] > 1e-4, "keys and values were rounded"
    assert found["lightning"] < 2e-6, "states were not"
    assert mismatch_by_kind(lm, tokens, PROMPT, halves) == found, "the slot begins anew"


def test_nothing_of_the_model_changes(lm, tokens):
    before = {name: parameter.clone() for name, parameter in lm.named_parameters()}
    chance = torch.get_rng_state()
    mismatch_by_kind(lm, tokens, PROMPT)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(parameter, before[name]) for name, parameter in lm.named_parameters())
    assert all(parameter.grad is None for parameter in lm.parameters())
    assert not any(module._forward_hooks for module in lm.modules())


def test_a_kind_that_the_model_lacks_is_left_out(oracle, tokens):
    lm = oracle.make_lm(dataclasses.replace(TINY, num_hidden_layers=1, attn_type_list=(0,)))
    assert tuple(mismatch_by_kind(lm, tokens, PROMPT)) == ("lightning", "moe", "head")


@pytest.mark.parametrize(("length", "prompt"), [(1, 1), (0, 0), (5, 0), (5, 6)])
def test_sequences_that_cannot_be_compared_are_refused(lm, tokens, length, prompt):
    with pytest.raises(ModelError, match="at least 2 tokens"):
        mismatch_by_kind(lm, tokens[:length], prompt)


def test_a_cache_without_room_is_refused(lm, tokens):
    with pytest.raises(ModelError, match="at most 89 tokens"):
        mismatch_by_kind(lm, tokens, PROMPT, HybridCache(TINY, 1, LENGTH - 1))
