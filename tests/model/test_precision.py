"""Decay, state, router and head are float32 in every mode, whatever way a model came to be in half precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from model import HybridCache, HybridConfig, HybridLM, Routing, load_pretrained, save_pretrained
from model.lightning import lightning_step, slopes

TINY = HybridConfig(vocab_size=40, hidden_size=32, num_hidden_layers=3, attn_type_list=(0, 1, 0), initializer_range=0.1)
LENGTHS = [30, 12]


def cast(lm, dtype, folder):
    return lm.to(dtype)


def loaded(lm, dtype, folder):
    save_pretrained(lm, folder)
    return load_pretrained(folder, dtype=dtype)


def loaded_from_half(lm, dtype, folder):
    return loaded(lm.to(dtype), dtype, folder)


def configured(lm, dtype, folder):
    half = HybridLM(dataclasses.replace(lm.config, param_dtype=str(dtype).removeprefix("torch.")))
    half.load_state_dict(lm.state_dict())
    return half


def cast_in_parts(lm, dtype, folder):
    for layer in lm.model.layers:
        layer.block_sparse_moe.to(dtype)
    return lm.to(dtype)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[cast, loaded, loaded_from_half, configured, cast_in_parts], ids=lambda way: way.__name__)
def pair(request, oracle, dtype, tmp_path):
    """The model in float32, and in half precision by each of the ways to get there."""
    return oracle.make_lm(TINY), request.param(oracle.make_lm(TINY), dtype, tmp_path)


def is_fine(tensor, dtype):
    """float32, with numbers that half precision does not have."""
    return tensor.dtype == torch.float32 and not torch.equal(tensor, tensor.to(dtype).float())


def test_weights_are_half_but_the_router_s(pair, dtype):
    exact, lm = pair
    kinds = {name.split(".")[-2] for name, parameter in lm.named_parameters() if parameter.dtype == torch.float32}
    assert kinds == {"gate"}
    assert {parameter.dtype for parameter in lm.parameters()} == {dtype, torch.float32}
    for ours, wanted in zip(lm.model.layers, exact.model.layers, strict=True):
        assert torch.equal(ours.block_sparse_moe.gate.weight, wanted.block_sparse_moe.gate.weight)


def test_the_router_decides_in_float32(pair, dtype):
    _, lm = pair
    x = torch.randn(50, TINY.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    gate = lm.model.layers[0].block_sparse_moe.gate
    prob, weight, _ = gate(x)
    wanted = torch.softmax(x.double() @ gate.weight.double().T, -1)
    torch.testing.assert_close(prob.double(), wanted, rtol=1e-6, atol=1e-7)
    assert is_fine(prob, dtype) and is_fine(weight, dtype)


def test_states_and_decays_are_float32_through_prefill_and_decoding(pair, oracle, dtype):
    exact, lm = pair
    tokens, borders = oracle.random_tokens(TINY, sum(LENGTHS)), torch.tensor([0, *LENGTHS]).cumsum(0)
    cache, slots = HybridCache(TINY, 2, 40, dtype=dtype), torch.tensor([1, 0])
    for step in ("prefill", "decode"):
        hidden = lm.prefill(tokens, borders, slots, cache) if step == "prefill" else lm.decode(tokens[:2], slots, cache)
        assert hidden.dtype == dtype
        assert {pool.dtype for pool in (*cache.keys.values(), *cache.values.values())} == {dtype}
        assert all(is_fine(state, dtype) for state in cache.states.values())
    for layer in (0, 2):
        assert torch.equal(lm.model.layers[layer].self_attn.slope_values, slopes(4, layer, 3))
        assert torch.equal(exact.model.layers[layer].self_attn.slope_values, slopes(4, layer, 3))


def test_logits_and_log_probabilities_are_float32_products(pair, oracle, dtype):
    _, lm = pair
    tokens, positions = oracle.random_tokens(TINY, 30), torch.arange(30)
    hidden = lm(tokens, positions, torch.tensor([0, 30]), Routing()).detach()
    assert hidden.dtype == dtype
    wanted = F.linear(hidden.double(), lm.lm_head.weight.detach().double())
    logits, logp = lm.logits(hidden).detach(), lm.logp(hidden, tokens).detach()
    assert is_fine(logits, dtype) and is_fine(logp, dtype)
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-5, atol=1e-5)
    wanted_logp = torch.log_softmax(wanted, -1)[torch.arange(30), tokens]
    torch.testing.assert_close(logp.double(), wanted_logp, rtol=1e-5, atol=1e-5)


def test_the_slowest_decay_of_a_deep_model_is_not_rounded_away():
    """The last head of layer 78 of 80: exp(-s) is 1 - 4.9e-5, and exactly 1 in bfloat16."""
    slope = slopes(64, 78, 80)[-1:]
    assert torch.exp(-slope).bfloat16() == 1
    nothing, state = torch.zeros(1, 1, 4, dtype=torch.bfloat16), torch.ones(1, 1, 4, 4)
    for _ in range(1000):
        _, state = lightning_step(nothing, nothing, nothing, slope, state)
    torch.testing.assert_close(state, torch.exp(-1000 * slope.double()).float().expand_as(state), rtol=1e-4, atol=0)
    assert float(state.max()) < 0.96
