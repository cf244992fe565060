"""Attention over a cache: in blocks, all scores at once and by torch; and prompts that come in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import HybridCache, HybridConfig, HybridLM, cached_attention
from model import cache as cache_module
from model.cached_attention import attend_cached, attend_in_blocks, attend_whole, block_shape

torch.set_num_threads(1)


def example(before, length, heads=2, groups=3, width=8, dtype=torch.float32):
    """q, k, v and places; every sequence has its own number of keys, and zeros behind them."""
    generator = torch.Generator().manual_seed(len(before) * 100 + length)
    num_keys = max(before) + length
    before_n = torch.tensor(before)
    q = torch.randn(len(before), heads, groups, length, width, generator=generator, dtype=dtype)
    k, v = (torch.randn(len(before), heads, num_keys, width, generator=generator, dtype=dtype) for _ in range(2))
    unused = torch.arange(num_keys) >= (before_n + length)[:, None]
    for x in (k, v):
        x.masked_fill_(unused[:, None, :, None], 0)
    return q, k, v, before_n


def native(q, k, v, before_n):
    """torch's attention, one sequence at a time, with a mask written out."""
    outs = []
    for n, before in enumerate(before_n.tolist()):
        visible = torch.arange(k.shape[2]) <= before + torch.arange(q.shape[3])[:, None]
        heads = F.scaled_dot_product_attention(
            q[n].flatten(0, 1), k[n].repeat_interleave(q.shape[2], 0), v[n].repeat_interleave(q.shape[2], 0), visible
        )
        outs.append(heads.view(q[n].shape))
    return torch.stack(outs)


@pytest.mark.parametrize(
    ("before", "length"), [((0,), 17), ((50,), 33), ((0, 7, 90), 20), ((31, 32, 33), 1)], ids=lambda value: str(value)
)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 7), (16, 40), (100, 1000)])
def test_blocks_give_what_torch_gives(before, length, queries, keys):
    q, k, v, before_n = example(before, length, dtype=torch.float64)
    wanted = native(q, k, v, before_n)
    place_nL = before_n[:, None] + torch.arange(length)
    scaled = q * q.shape[-1] ** -0.5
    torch.testing.assert_close(attend_whole(scaled, k, v, place_nL), wanted)
    torch.testing.assert_close(attend_in_blocks(scaled, k, v, place_nL, queries, keys), wanted)


def test_scores_far_apart_do_not_overflow():
    q, k, v, before_n = example((40,), 9)
    q *= 1e4  # scores of some 1e4: exp of one of them alone is infinite
    place_nL = before_n[:, None] + torch.arange(9)
    blocks = attend_in_blocks(q, k, v, place_nL, 4, 10)
    assert blocks.isfinite().all()
    torch.testing.assert_close(blocks, attend_whole(q, k, v, place_nL))


def test_bfloat16_adds_up_in_float32():
    """All weights equal: the result is the mean of the values, and off by no more than a rounding of it or two."""
    q, k, _, before_n = example((3000,), 4, dtype=torch.bfloat16)
    v = torch.rand_like(k) + 1
    place_nL = before_n[:, None] + torch.arange(4)
    out = attend_in_blocks(torch.zeros_like(q), k, v, place_nL, 4, 5)
    means = torch.stack([v[:, :, : place + 1].double().mean(2) for place in place_nL[0].tolist()], dim=2)
    assert (out.double() - means[:, :, None]).abs().max() < 2 * 2**-8


def test_no_more_scores_than_a_block_are_ever_made(monkeypatch):
    """The memory bound itself: every product of queries and keys is watched."""
    made = []
    hidden = cached_attention._hidden

    def watched(place_nL, first, stop):
        made.append(place_nL.numel() * (stop - first))
        return hidden(place_nL, first, stop)

    monkeypatch.setattr(cached_attention, "_hidden", watched)
    monkeypatch.setattr(cached_attention, "MAX_WHOLE", 1000)
    monkeypatch.setitem(cached_attention.BLOCK, "cpu", 30_000)
    q, k, v, before_n = example((400, 3), 64)
    torch.testing.assert_close(attend_cached(q, k, v, before_n), native(q, k, v, before_n))
    assert made and max(made) * q.shape[1] * q.shape[2] <= 30_000 < q[..., 0].numel() * 464


def test_blocks_never_become_too_small_to_be_worth_starting():
    assert block_shape(rows=4, block=1 << 19) == (256, 512)  # the tiny policy
    assert block_shape(rows=64, block=1 << 19) == (16, 512)  # MiniMax-M1's heads, one prompt
    assert block_shape(rows=4096, block=1 << 19) == (16, 128)  # ... and 64 prompts


# --- the same inside the model ----------------------------------------------------------------------------------------

TINY = HybridConfig(
    vocab_size=30,
    hidden_size=24,
    num_hidden_layers=3,
    head_dim=8,
    rotary_dim=4,
    intermediate_size=16,
    num_local_experts=4,
    attn_type_list=(0, 1, 0),
    initializer_range=0.2,
)


def forward_logits(lm, tokens_T):
    with torch.no_grad():
        return lm.logits(lm(tokens_T, torch.arange(len(tokens_T)), torch.tensor([0, len(tokens_T)])))


@pytest.mark.parametrize("piece", [64, 200, 700])
def test_pieces_in_blocks_and_decoding_equal_one_full_forward(piece, monkeypatch):
    monkeypatch.setattr(cached_attention, "MAX_WHOLE", 4000)
    monkeypatch.setitem(cached_attention.BLOCK, "cpu", 3000)
    torch.manual_seed(0)
    lm = HybridLM(TINY)
    tokens_T = torch.randint(0, 30, (710,))
    wanted = forward_logits(lm, tokens_T)
    cache = HybridCache(TINY, 2, 1000)
    slot = torch.tensor([1])
    for first in range(0, 700, piece):
        part = tokens_T[first : min(first + piece, 700)]
        logits = lm.logits(lm.prefill(part, torch.tensor([0, len(part)]), slot, cache))[0]
        torch.testing.assert_close(logits, wanted[first + len(part) - 1], atol=2e-4, rtol=1e-4)
    for place in range(700, 710):
        logits = lm.logits(lm.decode(tokens_T[place : place + 1], slot, cache))[0]
        torch.testing.assert_close(logits, wanted[place], atol=2e-4, rtol=1e-4)


def test_sequences_of_very_different_lengths_decode_as_each_would_alone(monkeypatch):
    monkeypatch.setattr(cache_module, "SHORT", 8)
    torch.manual_seed(0)
    lm = HybridLM(TINY)
    lengths = [3, 200, 8, 7, 33, 40, 1]
    prompts = [torch.randint(0, 30, (length,)) for length in lengths]
    cache = HybridCache(TINY, 9, 300)
    slots_N = torch.tensor([8, 0, 1, 2, 5, 4, 3])
    lm.prefill(torch.cat(prompts), torch.tensor([0, *lengths]).cumsum(0), slots_N, cache)
    parts = cache.parts(slots_N, cache.length_S[slots_N], 201)
    assert [(part.longest, sorted(part.lanes.tolist())) for part in parts] == [
        (8, [0, 3, 6]),  # up to 8 with the new token
        (9, [2]),  # up to 32
        (41, [4, 5]),  # up to 128
        (201, [1]),
    ]
    tokens_N = torch.arange(7) + 5
    together = lm.logits(lm.decode(tokens_N, slots_N, cache))
    for lane, prompt in enumerate(prompts):
        wanted = forward_logits(lm, torch.cat([prompt, tokens_N[lane : lane + 1]]))[-1]
        torch.testing.assert_close(together[lane], wanted, atol=2e-4, rtol=1e-4)
