"""Attention over a cache: in blocks, all scores at once and by torch's kernel; and prompts that come in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import HybridCache, HybridConfig, HybridLM, cached_attention
from model import cache as cache_module
from model.cached_attention import attend_cached, attend_fused, attend_in_blocks, attend_whole, block_shape
from model.kernels import fused_attention

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

    monkeypatch.setattr(fused_attention, "_AVAILABLE", False)
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


# --- by torch's kernel ------------------------------------------------------------------------------------------------

needs_kernel = pytest.mark.skipif(not fused_attention.is_available(), reason="this build of torch lacks the operator")


def fused(q, k, v, before_n):
    """The kernel on keys and values that lie in a longer pool, as a cache's do."""
    pools = [F.pad(x, (0, 0, 0, 77), value=float("nan")) for x in (k, v)]
    k, v = (pool[:, :, : k.shape[2]] for pool in pools)
    return attend_fused(q * q.shape[-1] ** -0.5, k, v, before_n)


@needs_kernel
@pytest.mark.parametrize(
    ("before", "length"),
    [((0,), 17), ((50,), 33), ((0, 7, 90), 20), ((31, 32, 33), 1), ((1,), 300), ((1100,), 515), ((0, 600), 800)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize(("groups", "width"), [(1, 8), (3, 20), (2, 64)])
def test_the_kernel_gives_what_float64_gives(before, length, groups, width):
    q, k, v, before_n = example(before, length, groups=groups, width=width)
    wanted = native(q.double(), k.double(), v.double(), before_n).float()
    with torch.inference_mode():
        torch.testing.assert_close(fused(q, k, v, before_n), wanted, atol=2e-6, rtol=1e-5)
    permuted = q.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)  # tokens first, as the model has them
    torch.testing.assert_close(fused(permuted, k, v, before_n), wanted, atol=2e-6, rtol=1e-5)


@needs_kernel
def test_the_kernel_takes_padded_sequences():
    """Padded to 1,040 new tokens after 90 others, a sequence has keys for 30 of them, and those get theirs."""
    q, k, v, before_n = example((60, 90), 1040)
    out = fused(q, k[:, :, :120], v[:, :, :120], before_n)
    wanted = native(q[:, :, :, :60], k[:, :, :150], v[:, :, :150], before_n)
    torch.testing.assert_close(out[0, :, :, :60], wanted[0])
    torch.testing.assert_close(out[1, :, :, :30], wanted[1, :, :, :30])
    assert out.isfinite().all()


@needs_kernel
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_parts_of_very_different_weight_are_joined(scale):
    """The past outweighs the piece or the other way round, by more than exp can tell."""
    q, k, v, before_n = example((400,), 90)
    wanted = native(scale * q.double(), k.double(), v.double(), before_n).float()
    out = fused(scale * q, k, v, before_n)
    # Scores of `scale` in float32 are off by scale * 2^-24 each, whoever makes them.
    torch.testing.assert_close(out, wanted, atol=scale * 1e-6, rtol=1e-5)


@needs_kernel
def test_the_kernel_copies_no_keys_and_holds_few_scores():
    """What it asks the allocator for, all in all, beside 10 MB of keys and values and 131 MB of scores."""
    q, k, v, before_n = example((40_000,), 128, heads=2, groups=3, width=16)
    with torch.profiler.profile(profile_memory=True) as profile:
        attend_cached(q, k, v, before_n)
    taken = {event.key: event.cpu_memory_usage for event in profile.key_averages() if event.cpu_memory_usage > 0}
    kernel = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert kernel in taken, taken
    assert sum(taken.values()) < 20 * q.numel() * 4 < k.numel() * 4, taken


def test_what_the_kernel_cannot_do_or_does_slowly_goes_another_way(monkeypatch):
    q, k, v, before_n = example((500,), 64, heads=1, groups=3)
    assert fused_attention.pays(q, k) == fused_attention.is_available()
    assert not fused_attention.pays(q.double(), k.double())
    assert not fused_attention.pays(q.bfloat16(), k.bfloat16())
    assert not fused_attention.pays(q.to("meta"), k.to("meta"))
    assert not fused_attention.pays(q[:, :, :, :8], k)  # few scores
    wide_q, wide_k, *_ = example((500,), 64, heads=1, groups=3, width=128)
    assert not fused_attention.pays(wide_q, wide_k)
    wanted = native(q, k, v, before_n)
    monkeypatch.setattr(fused_attention, "_AVAILABLE", False)
    monkeypatch.setattr(fused_attention, "attend", None)  # whoever calls it, fails
    torch.testing.assert_close(attend_cached(q, k, v, before_n), wanted)


def test_gradients_do_not_go_through_the_kernel():
    """Its sums have no backward pass; q, k and v get the gradients that torch's attention gives them."""
    *parts, before_n = example((500,), 64, heads=1, groups=3)
    parts = [part.requires_grad_() for part in parts]
    got, wanted = (torch.autograd.grad(way(*parts, before_n).square().sum(), parts) for way in (attend_cached, native))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


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


@pytest.mark.parametrize("by_kernel", [False, pytest.param(True, marks=needs_kernel)], ids=["blocks", "kernel"])
@pytest.mark.parametrize("piece", [64, 200, 700])
def test_pieces_and_decoding_equal_one_full_forward(piece, by_kernel, monkeypatch):
    calls = []
    attend = fused_attention.attend

    def counted(*args, **options):
        calls.append(args)
        return attend(*args, **options)

    monkeypatch.setattr(fused_attention, "attend", counted)
    monkeypatch.setattr(fused_attention, "MIN_SCORES", 1)
    monkeypatch.setattr(fused_attention, "_AVAILABLE", by_kernel)
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
    num_pieces = -(-700 // piece)
    assert len(calls) == by_kernel * (2 * num_pieces - 1 + 10)  # past and own; the first piece has no past


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
