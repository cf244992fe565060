"""Our model against transformers' `minimax` (5.23.0) with the same weights: logits, gradients, router loss, states.

float32, one thread, logits of root mean square 5 (up to 20). transformers runs with the two repairs of
tests/model/conftest.py: it has no partial rotary, and its cache counts no tokens when layer 0 is linear.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model import HybridCache, HybridConfig, Routing

SMALL = HybridConfig(vocab_size=50, initializer_range=0.07)
SHAPES = {
    "seven lightning, one softmax": {"num_hidden_layers": 8, "attn_type_list": (0,) * 7 + (1,)},
    "whole head rotated": {"rotary_dim": 16},
    "eight heads, wider than the model": {
        "hidden_size": 48,
        "num_attention_heads": 8,
        "attn_type_list": (0, 1, 0, 1),
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
    },
    "softmax first, all heads with keys of their own": {
        "hidden_size": 40,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "rotary_dim": 4,
        "attn_type_list": (1, 0, 0, 1),
    },
    "scales of its own": {
        "layernorm_linear_attention_alpha": 1.5,
        "layernorm_linear_attention_beta": 0.7,
        "layernorm_full_attention_alpha": 0.9,
        "layernorm_full_attention_beta": 1.3,
        "layernorm_mlp_alpha": 1.1,
        "layernorm_mlp_beta": 2.0,
    },
}
LENGTH = 300
"""Over the border of transformers' block of 256 tokens and many of ours."""
CLOSE = 2e-5
"""Largest difference of two logits; the largest that was seen is 1.5e-5, at logits up to 20."""


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def pair(request, oracle):
    lm = oracle.make_lm(dataclasses.replace(SMALL, **request.param))
    return lm, oracle.make_native(lm), oracle.random_tokens(lm.config, LENGTH, seed=1)


def whole(lm, tokens, routing=None):
    return lm.logits(lm(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]), routing))


def relative(ours, wanted):
    """Largest difference, in units of the largest value."""
    return float((ours - wanted).abs().max() / wanted.abs().max())


def test_logits_router_loss_and_every_gradient(pair, oracle):
    lm, native, tokens = pair
    routing = Routing()
    logits = whole(lm, tokens, routing)
    wanted = native.model(tokens[None], output_router_logits=True)
    assert float(logits.detach().square().mean().sqrt()) == pytest.approx(oracle.logit_scale, rel=0.1)
    torch.testing.assert_close(logits, wanted.logits[0], rtol=0, atol=CLOSE)
    torch.testing.assert_close(routing.aux_loss(), wanted.aux_loss, rtol=1e-6, atol=0)

    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    ((logits * direction).sum() + routing.aux_loss()).backward()
    ((wanted.logits[0] * direction).sum() + wanted.aux_loss).backward()
    native_grads = {name: parameter.grad for name, parameter in native.model.named_parameters()}
    assert len(native_grads) == sum(1 for _ in lm.parameters())
    far = {
        name: error
        for name, parameter in lm.named_parameters()
        if (error := relative(native.rows(name, parameter.grad), native_grads[native.name(name)])) > CLOSE
    }
    assert not far


def check_states(lm, native, cache, native_cache, slot):
    """Linear states and keys and values of `slot`, layer by layer."""
    length = int(cache.length_S[slot])
    for layer, pool in cache.states.items():
        assert relative(pool[slot], native_cache.linear_cache[layer][0]) < CLOSE, f"state of layer {layer}"
    for layer, pool in cache.keys.items():
        keys, values = native_cache.layers[layer].keys[0], native_cache.layers[layer].values[0]
        assert keys.shape == (lm.config.num_key_value_heads, length, lm.config.head_dim)
        assert relative(pool[slot, :, :length, native.order], keys) < CLOSE, f"keys of layer {layer}"
        assert relative(cache.values[layer][slot, :, :length], values) < CLOSE, f"values of layer {layer}"


def test_cached_decoding_and_the_states_of_every_layer(pair, oracle):
    lm, native, tokens = pair
    cache, native_cache, slot = HybridCache(lm.config, 3, LENGTH), oracle.fixed_cache(lm.config), torch.tensor([1])
    prompt, piece, rest = tokens[:256], tokens[256:290], tokens[290:]
    with torch.no_grad():
        for part in (prompt, piece):
            hidden = lm.prefill(part, torch.tensor([0, len(part)]), slot, cache)
            wanted = native.model(part[None], past_key_values=native_cache, use_cache=True).logits[0, -1]
            torch.testing.assert_close(lm.logits(hidden)[0], wanted, rtol=0, atol=CLOSE)
            check_states(lm, native, cache, native_cache, slot=1)
        for token in rest:
            hidden = lm.decode(token[None], slot, cache)
            wanted = native.model(token[None, None], past_key_values=native_cache, use_cache=True).logits[0, -1]
            torch.testing.assert_close(lm.logits(hidden)[0], wanted, rtol=0, atol=CLOSE)
        check_states(lm, native, cache, native_cache, slot=1)
        full = whole(lm, tokens)
    torch.testing.assert_close(lm.logits(hidden)[0], full[-1], rtol=0, atol=CLOSE)
