"""The head against the plain formula in float64: values, gradients, chunks, and what is refused."""

import pytest
import torch

from model import HybridConfig, ModelError
from model.head import Head

torch.set_num_threads(1)

VOCAB, WIDTH, TOKENS = 13, 16, 7


def make_head(dtype="float64"):
    head = Head(HybridConfig(vocab_size=VOCAB, hidden_size=WIDTH, param_dtype=dtype))
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)))
    return head


def make_inputs(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, torch.arange(TOKENS) * 3 % VOCAB


def plain(head, hidden, targets, temperature):
    """log-probabilities of the targets and entropies, by the formula."""
    log_probs = torch.log_softmax(hidden.double() @ head.weight.double().T / temperature, dim=-1)
    return log_probs.gather(1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)


def ratio_like(logp, part):
    """Coefficients that depend on the log-probabilities, as clipped ratios do, with zeros and both signs among them."""
    return torch.linspace(-2, 1, TOKENS, dtype=logp.dtype)[part] * (logp + 3.0).exp().clamp(0.1, 1.5)


@pytest.fixture(params=[1, 3, 100], ids=lambda size: f"chunks-of-{size}")
def chunk(request, monkeypatch):
    monkeypatch.setattr("model.head.CHUNK_TOKENS", request.param)
    monkeypatch.setattr("model.head.CHUNK_LOGITS", 1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logp_and_entropy_by_the_formula(chunk, temperature):
    head, (hidden, targets) = make_head(), make_inputs()
    logp, entropy = head.logp_and_entropy(hidden, targets, temperature)
    wanted_logp, wanted_entropy = plain(head, hidden, targets, temperature)
    torch.testing.assert_close(logp, wanted_logp)
    torch.testing.assert_close(entropy, wanted_entropy)
    assert not entropy.requires_grad
    upstream = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)
    inputs = (hidden, head.weight)
    got = torch.autograd.grad((logp * upstream).sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad((wanted_logp * upstream).sum(), inputs))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_weighted_sum_has_the_gradient_of_constant_coefficients(chunk, temperature):
    head, (hidden, targets) = make_head(), make_inputs()
    total, logp, entropy = head.weighted_logp(hidden, targets, ratio_like, temperature)
    wanted_logp, wanted_entropy = plain(head, hidden, targets, temperature)
    wanted = (ratio_like(wanted_logp.detach(), slice(None)) * wanted_logp).sum()
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(logp, wanted_logp.detach())
    torch.testing.assert_close(entropy, wanted_entropy.detach())
    assert not logp.requires_grad and not entropy.requires_grad
    inputs = (hidden, head.weight)
    torch.testing.assert_close(torch.autograd.grad(-2.5 * total, inputs), torch.autograd.grad(-2.5 * wanted, inputs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_weights_are_multiplied_in_float32(dtype):
    head = make_head(dtype)
    hidden, targets = make_inputs(head.weight.dtype)
    total, logp, _ = head.weighted_logp(hidden, targets, ratio_like, 1.0)
    wanted_logp, _ = plain(head, hidden, targets, 1.0)
    wanted = (ratio_like(wanted_logp.detach(), slice(None)) * wanted_logp).sum()
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), wanted_logp.detach(), rtol=1e-5, atol=1e-5)
    inputs = (hidden, head.weight)
    for got, exact in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        assert got.dtype == head.weight.dtype
        torch.testing.assert_close(got, exact.to(got.dtype), rtol=1e-5 if dtype == "float32" else 8e-3, atol=1e-5)


def test_logits_far_apart_keep_their_log_probabilities():
    """A probability that float32 rounds to 0 still has a finite log-probability and a finite gradient."""
    head, (hidden, targets) = make_head("float32"), make_inputs(torch.float32)
    with torch.no_grad():
        head.weight.mul_(100)
    total, logp, entropy = head.weighted_logp(hidden, targets, ratio_like, 1.0)
    wanted_logp, wanted_entropy = plain(head, hidden, targets, 1.0)
    assert logp.min() < -200
    torch.testing.assert_close(logp.double(), wanted_logp.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(entropy.double(), wanted_entropy.detach(), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(torch.autograd.grad(total, head.weight)[0]).all()


def test_without_gradients_the_weighted_sum_is_the_same():
    head, (hidden, targets) = make_head(), make_inputs()
    with torch.no_grad():
        total = head.weighted_logp(hidden, targets, ratio_like, 1.0)[0]
    assert not total.requires_grad
    torch.testing.assert_close(total, head.weighted_logp(hidden, targets, ratio_like, 1.0)[0].detach())


def test_no_tokens_give_a_sum_of_nothing():
    head, (hidden, targets) = make_head(), make_inputs()
    total, logp, _ = head.weighted_logp(hidden[:0], targets[:0], ratio_like, 1.0)
    total.backward()
    assert total == 0 and len(logp) == 0
    assert not head.weight.grad.any()


def test_a_second_backward_pass_is_refused_and_not_wrong():
    head, (hidden, targets) = make_head(), make_inputs()
    total = head.weighted_logp(hidden, targets, ratio_like, 1.0)[0]
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_non_positive_temperature_is_refused(temperature):
    head, (hidden, targets) = make_head(), make_inputs()
    with pytest.raises(ModelError, match="temperature"):
        head.logp_and_entropy(hidden, targets, temperature)
    with pytest.raises(ModelError, match="temperature"):
        head.weighted_logp(hidden, targets, ratio_like, temperature)
