"""The experts: every way to run them against each token's own sum."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import HybridConfig
from model import moe as moe_module
from model.moe import MoE

torch.set_num_threads(1)
CONFIG = HybridConfig(hidden_size=6, intermediate_size=5, num_local_experts=4, num_experts_per_tok=2)


def make(seed=0):
    torch.manual_seed(seed)
    moe = MoE(CONFIG).double()
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_()
    return moe


def by_definition(moe, x_TD):
    """Token by token: sum over its experts of weight * W2(SiLU(W1 x) * W3 x)."""
    outs = []
    for x in x_TD:
        prob = torch.softmax(moe.gate.weight @ x, dim=0)
        chosen = prob.argsort(descending=True)[: moe.gate.num_chosen]
        out = torch.zeros_like(x)
        for e in chosen:
            gate, up = (moe.experts.gate_up_proj[e] @ x).chunk(2)
            out += prob[e] / prob[chosen].sum() * (moe.experts.down_proj[e] @ (F.silu(gate) * up))
        outs.append(out)
    return torch.stack(outs)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("work", [0, 1 << 30], ids=["chosen experts", "all experts"])
def test_without_gradients_each_token_gets_its_experts(monkeypatch, work, tokens):
    monkeypatch.setattr(moe_module, "DENSE_WORK", work)
    moe, x = make(), torch.randn(tokens, CONFIG.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(moe(x), by_definition(moe, x))


def test_with_gradients_each_token_gets_its_experts():
    moe, x = make(), torch.randn(9, CONFIG.hidden_size, dtype=torch.float64, requires_grad=True)
    inputs = (x, *moe.parameters())
    upstream = torch.randn(9, CONFIG.hidden_size, dtype=torch.float64)
    out, wanted = moe(x), by_definition(moe, x)
    torch.testing.assert_close(out, wanted)
    got, expected = (torch.autograd.grad((y * upstream).sum(), inputs) for y in (out, wanted))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_experts_that_nobody_chose_are_left_out(monkeypatch):
    moe = make()
    with torch.no_grad():
        moe.gate.weight.copy_(torch.tensor([9.0, 8.0, -8.0, -9.0])[:, None].expand(-1, CONFIG.hidden_size))
        moe.experts.down_proj[2:] = float("nan")
        x = torch.rand(30, CONFIG.hidden_size, dtype=torch.float64)
        monkeypatch.setattr(moe_module, "DENSE_WORK", 0)
        assert moe(x).isfinite().all()
