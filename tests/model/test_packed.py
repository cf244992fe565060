"""Packed weights: the same product, also after the weight changed, and the plain one where packing does not serve."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from model import HybridCache, HybridConfig, HybridLM
from model.checkpoint import load_weights, stream_weights
from model.kernels import packed
from model.kernels.packed import MAX_ROWS, MIN_WEIGHTS, Linear, PackedWeight

torch.set_num_threads(1)
# experts of [128, 256], lightning projections of [768, 256]: large enough to be packed
WIDE = HybridConfig(
    vocab_size=300, hidden_size=256, num_hidden_layers=2, attn_type_list=(0, 1), head_dim=64, intermediate_size=128
)


def is_packed(pack):
    return pack._packed is not None


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.randn(512, MIN_WEIGHTS // 512, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("rows", [1, 2, 17, MAX_ROWS])
def test_a_packed_product_is_the_plain_one(weight, rows):
    pack, x = PackedWeight(), torch.randn(rows, weight.shape[1])
    with torch.inference_mode():
        torch.testing.assert_close(pack.linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)
        strided = torch.randn(weight.shape[1], rows).T
        torch.testing.assert_close(pack.linear(strided, weight), F.linear(strided, weight), rtol=1e-5, atol=1e-4)
    assert is_packed(pack) == packed.is_available()


CHANGES = {
    "an optimizer": lambda weight: torch.optim.SGD([weight], lr=1.0).step(),
    "a copy into it": lambda weight: weight.detach().copy_(torch.ones_like(weight)),
    "a copy into a part": lambda weight: weight.detach().view(2, -1)[1].zero_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_weight_is_packed_again(weight, change):
    pack, x = PackedWeight(), torch.randn(3, weight.shape[1])
    weight.grad = torch.ones_like(weight)
    with torch.inference_mode():
        before = pack.linear(x, weight)
    change(weight)
    with torch.inference_mode():
        after = pack.linear(x, weight)
        torch.testing.assert_close(after, F.linear(x, weight), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(before, after)


def test_another_weight_is_not_taken_for_the_packed_one(weight):
    pack, x = PackedWeight(), torch.randn(3, weight.shape[1])
    with torch.inference_mode():
        for scale in (1.0, 2.0, 3.0):
            other = torch.nn.Parameter(weight.detach().clone() * scale)
            torch.testing.assert_close(pack.linear(x, other), F.linear(x, other), rtol=1e-5, atol=1e-4)
            del other


def test_gradients_flow_outside_of_inference_mode(weight):
    layer = Linear(weight.shape[1], weight.shape[0])
    x = torch.randn(3, weight.shape[1], requires_grad=True)
    with torch.inference_mode():
        layer(x)
    wanted = torch.autograd.grad(F.linear(x, layer.weight).sum(), (x, layer.weight))
    for got, expected in zip(torch.autograd.grad(layer(x).sum(), (x, layer.weight)), wanted, strict=True):
        assert torch.equal(got, expected)


def test_what_cannot_be_packed_is_multiplied_plainly(weight):
    def product_is_plain(rows=3, dtype=torch.float32, of=weight):
        pack, of = PackedWeight(), of.detach().to(dtype)
        x = torch.randn(rows, of.shape[1], dtype=dtype)
        with torch.inference_mode():
            assert torch.equal(pack.linear(x, of), F.linear(x, of))
        return not is_packed(pack)

    assert product_is_plain(rows=0)
    assert product_is_plain(rows=MAX_ROWS + 1)
    assert product_is_plain(dtype=torch.float64)
    assert product_is_plain(dtype=torch.bfloat16)
    assert product_is_plain(of=weight[1:])
    assert product_is_plain(of=weight.reshape(256, -1).contiguous())  # as wide as tall
    with torch.inference_mode():
        unversioned = weight.clone()
        assert torch.equal(PackedWeight().linear(unversioned[:3], unversioned), unversioned[:3] @ unversioned.T)


def test_a_build_without_the_operators_multiplies_plainly(weight, monkeypatch):
    monkeypatch.setattr(packed, "_AVAILABLE", False)
    pack, x = PackedWeight(), torch.randn(3, weight.shape[1])
    with torch.inference_mode():
        assert torch.equal(pack.linear(x, weight), F.linear(x, weight))


def decoded(lm, tokens):
    cache, slots = HybridCache(lm.config, 3, 20), torch.arange(3)
    lm.prefill(tokens.flatten(), torch.tensor([0, 6, 12, 18]), slots, cache)
    return lm.logits(lm.decode(tokens[:, 0], slots, cache))


def test_a_model_that_samples_follows_its_weights_and_can_be_copied():
    torch.manual_seed(0)
    lm, newer = HybridLM(WIDE), HybridLM(WIDE)
    tokens = torch.randint(0, WIDE.vocab_size, (3, 6))
    for source in (lm, newer):
        load_weights(lm, ((name, tensor.clone()) for name, tensor in stream_weights(source)))
        with torch.inference_mode():
            fast, fast_of_a_copy = decoded(lm, tokens), decoded(copy.deepcopy(lm), tokens)
        with torch.no_grad():  # outside of inference mode every product is plain
            slow = decoded(source, tokens)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
        torch.testing.assert_close(fast_of_a_copy, slow, rtol=0, atol=1e-5)
    assert is_packed(lm.model.layers[0].self_attn.qkv_proj.packed) == packed.is_available()
