"""The gated norm in Triton against its formula in float64, gradients included."""

import pytest
import torch

pytest.importorskip("triton")
from model.kernels.gated_norm_triton import PARTIAL_SUMS, gated_rms_norm
from model.kernels.lightning_triton import IS_INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(num_rows, width, dtype=torch.float32):
    """x float32 as the heads leave it, weight and gate in the model's dtype, and the result's gradient."""
    generator = torch.Generator().manual_seed(num_rows + width)
    x, gate, grad = (torch.randn(num_rows, width, generator=generator) for _ in range(3))
    weight = 1 + 0.1 * torch.randn(width, generator=generator)
    x *= torch.linspace(0.01, 30, num_rows)[:, None]
    return [t.to(DEVICE) for t in (x, weight.to(dtype), gate.to(dtype), grad.to(dtype))]


def by_formula(x, weight, gate, eps):
    return torch.sigmoid(gate) * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight)


def values_and_gradients(function, x, weight, gate, grad, eps):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, gate)]
    y = function(*leaves, eps)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize(
    "num_rows, width",
    [(1, 16), (5, 96), (3, 8192), (PARTIAL_SUMS + 3, 32)],
    ids=["T1-W16", "T5-W96", "T3-W8192", "more rows than partial sums"],
)
def test_results_and_gradients_equal_the_formula(num_rows, width):
    tensors = inputs(num_rows, width)
    found = values_and_gradients(gated_rms_norm, *tensors, 1e-6)
    wanted = values_and_gradients(by_formula, *(t.double() for t in tensors), 1e-6)
    for name, ours, exact in zip(("y", "dx", "dweight", "dgate"), found, wanted, strict=True):
        scale = exact.abs().amax(-1, keepdim=True)
        worst = float(((ours.double() - exact).abs() / scale).max())
        assert worst < 2e-6, f"{name} is off by {worst:.1e} of its row's largest number"


def test_eps_keeps_a_row_of_zeros_finite():
    x, weight, gate, grad = inputs(2, 16)
    y, dx, *_ = values_and_gradients(gated_rms_norm, 0 * x, weight, gate, grad, 1e-4)
    assert torch.equal(y, torch.zeros_like(y))
    torch.testing.assert_close(dx, grad * torch.sigmoid(gate) * weight * 100)


def test_bfloat16_results_are_off_by_their_roundings_alone():
    x, weight, gate, grad = inputs(4, 64, torch.bfloat16)
    found = values_and_gradients(gated_rms_norm, x, weight, gate, grad, 1e-6)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    exact = values_and_gradients(by_formula, *(t.double() for t in (x, weight, gate, grad)), 1e-6)
    rounding = torch.finfo(torch.bfloat16).eps / (1 if IS_INTERPRETED else 2)  # the interpreter cuts off
    for name, roundings, ours, right in zip(("y", "dx", "dweight", "dgate"), (2, 0, 1, 1), found, exact, strict=True):
        torch.testing.assert_close(
            ours.double(),
            right,
            rtol=roundings * rounding,  # y has two: of x / rms(x) before the weight, as in the model, and its own
            atol=1e-6 * float(right.abs().max()),
            msg=lambda text, name=name: f"{name}: {text}",
        )
