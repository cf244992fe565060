"""The blocks of lightning attention against its definition, token by token in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.lightning import NARROW, SPAN, block_size, lightning_attention, lightning_recurrence, lightning_step, slopes

BLOCK = block_size(3)


def borders(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs(lengths, heads=2, width=3, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(sum(lengths))
    shape = (sum(lengths), heads, width)
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]
    tensors.append(torch.randn(len(lengths), heads, width, width, generator=generator, dtype=dtype))
    return [tensor.requires_grad_(grad) for tensor in tensors]


def test_slopes_by_hand():
    assert slopes(4, 0, 3).tolist() == pytest.approx(
        [0.25 * 1.00001, 0.0625 * 1.00001, 2**-6 * 1.00001, 2**-8 * 1.00001]
    )
    assert slopes(2, 2, 3).tolist() == pytest.approx([2**-4 * 1e-5, 2**-8 * 1e-5], rel=1e-3)
    assert slopes(2, 0, 1).tolist() == pytest.approx([2**-4 * 1.00001, 2**-8 * 1.00001])
    assert slopes(4, 1, 3).dtype == torch.float32


def test_slopes_when_heads_are_no_power_of_two():
    # 6 heads: the slopes of 4 heads, then every second slope of 8 heads
    wanted = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    assert slopes(6, 0, 2).tolist() == pytest.approx([s * 1.00001 for s in wanted])


def test_the_definition_by_hand():
    # one head of width 1: S = 1*2 = 2, then exp(-s)*2 + 3*5
    q, k, v = (torch.tensor(x, dtype=torch.float64).view(2, 1, 1) for x in ([1, 7], [1, 3], [2, 5]))
    slope = torch.tensor([0.5], dtype=torch.float64)
    state = 2 * torch.exp(torch.tensor(-0.5, dtype=torch.float64)) + 15
    for attend in (lightning_recurrence, lightning_attention):
        out, final = attend(q, k, v, slope)
        assert out.flatten().tolist() == pytest.approx([2.0, 7 * float(state)])
        assert float(final) == pytest.approx(float(state))


LENGTHS = {
    "one token": [1],
    "a block and its neighbours": [BLOCK, 1, BLOCK - 1, BLOCK + 1, 3],
    "empty sequences": [0, 5, 0, BLOCK - 5, 0],
    "many short": [3, 7, 1, 20, 2, 31, 9, 14, 4, 1, 1, 33],
    "more than one span of blocks": [5, BLOCK * SPAN + 40, 17],
}


@pytest.mark.parametrize("with_state", [False, True], ids=["from zero", "state carried in"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_blocks_equal_the_recurrence(lengths, with_state):
    q, k, v, state = inputs(lengths)
    state = state if with_state else None
    slope = torch.tensor([0.9, 0.003], dtype=torch.float64)
    out, final = lightning_attention(q, k, v, slope, borders(lengths), state)
    wanted, wanted_final = lightning_recurrence(q, k, v, slope, borders(lengths), state)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(final, wanted_final, rtol=1e-10, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2 * BLOCK + 3), min_size=1, max_size=6).filter(any))
def test_gradients_equal_the_recurrence(lengths):
    slope = torch.tensor([0.5, 0.05], dtype=torch.float64)
    results = []
    for attend in (lightning_attention, lightning_recurrence):
        tensors = inputs(lengths, grad=True)
        out, final = attend(*tensors[:3], slope, borders(lengths), tensors[3])
        loss = (out * torch.arange(1, out.numel() + 1).view_as(out).sin()).sum() + (final**2).sum()
        results.append(torch.autograd.grad(loss, tensors))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-8)


def test_the_strongest_decay_does_not_overflow_in_float32():
    lengths = [600]
    q, k, v, state = inputs(lengths, dtype=torch.float32)
    slope = torch.tensor([0.92, 1e-7])
    out, final = lightning_attention(q, k, v, slope, None, state)
    wanted, wanted_final = lightning_recurrence(*(x.double() for x in (q, k, v)), slope.double(), None, state.double())
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(final.double(), wanted_final, rtol=1e-4, atol=1e-3)


def test_bfloat16_inputs_keep_a_float32_state():
    q, k, v, _ = inputs([40], dtype=torch.bfloat16)
    out, final = lightning_attention(q, k, v, torch.tensor([0.1, 1e-4]))
    assert out.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    _, stepped = lightning_step(q[:1], k[:1], v[:1], torch.tensor([0.1, 1e-4]), final[:1])
    assert stepped.dtype == torch.float32


@pytest.mark.parametrize("width", [NARROW - 1, NARROW], ids=["narrow heads", "wide heads"])
def test_a_step_is_decay_then_add_then_read(width):
    q, k, v, state = inputs([1, 1, 1], width=width)
    slope = slopes(2, 0, 3).double()
    out, new = lightning_step(q, k, v, slope, state)
    wanted = torch.exp(-slope)[:, None, None] * state + torch.einsum("nhd,nhe->nhde", k, v)
    torch.testing.assert_close(new, wanted)
    torch.testing.assert_close(out, torch.einsum("nhd,nhde->nhe", q, wanted))
