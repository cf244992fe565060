"""The whole model by hand, and rows that it refuses; oracles, invariants and dtypes are in files of their own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model import HybridCache, HybridConfig, HybridLM, ModelError, Routing
from model.checkpoint import load_weights

torch.set_num_threads(1)
TINY = HybridConfig(
    vocab_size=23,
    hidden_size=16,
    num_attention_heads=4,
    head_dim=8,
    rotary_dim=4,
    intermediate_size=8,
    num_local_experts=4,
    initializer_range=0.3,
)


def make_lm(config=TINY, seed=0):
    torch.manual_seed(seed)
    lm = HybridLM(config).double()
    with torch.no_grad():  # norms away from 1, so that a missing weight shows
        for name, parameter in lm.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return lm


def row(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TINY.vocab_size, (sum(lengths),), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return tokens, positions, torch.tensor([0, *lengths]).cumsum(0)


def test_without_postnorm_the_residual_is_taken_before_the_norm():
    lm = make_lm(dataclasses.replace(TINY, postnorm=False, num_hidden_layers=1, attn_type_list=(1,)))
    layer = lm.model.layers[0]
    tokens, positions, borders = row([5])
    packed = lm._row(positions, borders)
    x = lm.model.embed_tokens(tokens)
    alpha = 2**0.25
    y = alpha * x + layer.self_attn(layer.input_layernorm(x), packed)
    wanted = alpha * y + layer.block_sparse_moe(layer.post_attention_layernorm(y))
    torch.testing.assert_close(layer(x, packed, None), wanted)


def test_float32_decoding_stays_close_to_float32_training():
    lm = make_lm().float()
    tokens, positions, borders = row([60])
    wanted = lm.logp(lm(tokens, positions, borders), tokens).detach()
    cache = HybridCache(TINY, num_slots=1, max_length=60)
    slot = torch.tensor([0])
    hidden = torch.cat([lm.decode(token[None], slot, cache) for token in tokens])
    torch.testing.assert_close(lm.logp(hidden, tokens), wanted, rtol=0, atol=1e-5)


def test_routing_counts_and_imbalance():
    routing = Routing()
    routing.add(torch.full((4, 2), 0.5), torch.tensor([6, 2]))
    routing.add(torch.full((4, 2), 0.5), torch.tensor([4, 4]))
    assert routing.load_imbalance() == pytest.approx((6 / 4 + 1) / 2)
    # shares (10, 6) / 8 rows, probabilities 1/2: 2 * (10/8 + 6/8) / 2
    assert float(routing.aux_loss()) == pytest.approx(2.0)


@pytest.mark.parametrize("borders", [[0, 3], [1, 5], [5], [0, 5, 4], [0, 7, 5]])
def test_borders_that_do_not_fit_the_row_are_refused(borders):
    tokens, positions, _ = row([5])
    with pytest.raises(ModelError, match="cu_seqlens"):
        make_lm()(tokens, positions, torch.tensor(borders))


def test_weights_of_another_seed_change_the_result():
    lm, other = make_lm(seed=0), make_lm(seed=1)
    tokens, positions, borders = row([12])
    assert not torch.allclose(lm(tokens, positions, borders), other(tokens, positions, borders))
    load_weights(other, iter([(name, p.detach()) for name, p in lm.named_parameters()]))
    assert torch.equal(lm(tokens, positions, borders), other(tokens, positions, borders))
