"""The whole model: against transformers' `minimax`, against itself packed and unpacked, and through the cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def oracle(lm, rotary_dim):
    """transformers' model with the weights of `lm`; partial rotary by permuting rows and zeroing frequencies."""
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    values = lm.config.to_hf("minimax")
    native = MiniMaxForCausalLM(MiniMaxConfig(**values)).double()
    native.set_experts_implementation("eager")  # the default, a grouped product, has no float64
    own = dict(lm.named_parameters())
    half, width = rotary_dim // 2, lm.config.head_dim
    order = torch.tensor(
        [*range(half), *range(2 * half, half + width // 2), *range(half, 2 * half), *range(half + width // 2, width)]
    )
    with torch.no_grad():
        for name, parameter in native.named_parameters():
            weight = own[name.replace(".mlp.", ".block_sparse_moe.")]
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight = weight.view(-1, width, weight.shape[1])[:, order].flatten(0, 1)
            parameter.copy_(weight)
        frequency = torch.zeros(width // 2)
        frequency[:half] = lm.config.rope_theta ** (-2 * torch.arange(half) / rotary_dim)
        native.model.rotary_emb.inv_freq = frequency
    return native, order


@pytest.mark.parametrize("rotary_dim", [8, 4], ids=["whole head rotated", "half of the head rotated"])
def test_logits_gradients_and_aux_loss_equal_transformers(rotary_dim):
    lm = make_lm(dataclasses.replace(TINY, rotary_dim=rotary_dim))
    native, order = oracle(lm, rotary_dim)
    tokens, positions, borders = row([50])
    weight = torch.linspace(-1, 1, 50 * TINY.vocab_size, dtype=torch.float64).sin().view(50, -1)

    routing = Routing()
    logits = lm.logits(lm(tokens, positions, borders, routing))
    ((logits * weight).sum() + routing.aux_loss()).backward()
    wanted = native(tokens[None], output_router_logits=True)
    ((wanted.logits[0] * weight).sum() + wanted.aux_loss).backward()

    # transformers' norms and router weights are float32 even in a float64 model
    torch.testing.assert_close(logits, wanted.logits[0], rtol=1e-4, atol=3e-5)
    torch.testing.assert_close(routing.aux_loss(), wanted.aux_loss.double(), rtol=1e-6, atol=1e-6)
    native_grads = {name: parameter.grad for name, parameter in native.named_parameters()}
    for name, parameter in lm.named_parameters():
        grad = parameter.grad
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            grad = grad.view(-1, TINY.head_dim, grad.shape[1])[:, order].flatten(0, 1)
        wanted_grad = native_grads[name.replace(".block_sparse_moe.", ".mlp.")]
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=3e-5 * float(wanted_grad.abs().max()), msg=name)


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


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 45), min_size=1, max_size=7), st.integers(0, 99))
def test_a_packed_row_equals_its_sequences_one_by_one(lengths, seed):
    lm = make_lm()
    tokens, positions, borders = row(lengths, seed)
    packed = lm(tokens, positions, borders)
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        alone = lm(tokens[first:last], positions[first:last], torch.tensor([0, last - first]))
        torch.testing.assert_close(packed[first:last], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("piece", [1, 3, 40, 64])
def test_prefill_in_pieces_and_decoding_equal_one_forward_pass(piece):
    lm = make_lm()
    lengths = [70, 5, 33]
    tokens, positions, borders = row(lengths)
    wanted = lm(tokens, positions, borders).detach()
    sequences = tokens.split(lengths)
    cache = HybridCache(TINY, num_slots=5, max_length=80, dtype=torch.float64)
    slots = torch.tensor([4, 0, 2])
    done = [0, 0, 0]
    while any(done[n] + 2 < lengths[n] for n in range(3)):  # keep the last two tokens for decoding
        taken = [n for n in range(3) if done[n] + 2 < lengths[n]]
        parts = [sequences[n][done[n] : min(done[n] + piece, lengths[n] - 2)] for n in taken]
        edges = torch.tensor([0, *map(len, parts)]).cumsum(0)
        hidden = lm.prefill(torch.cat(parts), edges, slots[taken], cache)
        for n, part, h in zip(taken, parts, hidden, strict=True):
            done[n] += len(part)
            torch.testing.assert_close(h, wanted[borders[n] + done[n] - 1], rtol=1e-9, atol=1e-9)
    for back in (2, 1):
        hidden = lm.decode(torch.stack([s[-back] for s in sequences]), slots, cache)
        torch.testing.assert_close(hidden, wanted[borders[1:] - back], rtol=1e-9, atol=1e-9)
    assert cache.length_S.tolist() == [5, 0, 33, 0, 70]


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


def test_a_cast_to_bfloat16_leaves_router_state_and_logits_wide():
    lm = make_lm().float().to(torch.bfloat16)
    assert lm.model.layers[0].block_sparse_moe.gate.weight.dtype == torch.float32
    assert lm.model.layers[0].self_attn.qkv_proj.weight.dtype == torch.bfloat16
    tokens, positions, borders = row([9, 4])
    hidden = lm(tokens, positions, borders)
    assert hidden.dtype == torch.bfloat16
    assert lm.logits(hidden).dtype == torch.float32
    assert lm.logp(hidden, tokens).dtype == torch.float32
    cache = HybridCache(TINY, 2, 20, dtype=torch.bfloat16)
    last = lm.prefill(tokens, borders, torch.tensor([0, 1]), cache)
    assert last.dtype == torch.bfloat16
    assert cache.states[0].dtype == torch.float32
    assert lm.decode(tokens[:2], torch.tensor([0, 1]), cache).dtype == torch.bfloat16


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
