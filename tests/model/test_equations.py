"""The whole model against its equations, written down once more: one token after the other, in float64.

Nothing of model/ takes part but the weights, under their checkpoint names. Source of the equations: MiniMax-01 report
(arXiv 2501.08313), section 2, and the modeling code published with MiniMax-M1.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from model import HybridConfig, Routing
from model.checkpoint import stream_weights

SMALL = HybridConfig(
    vocab_size=29, hidden_size=24, head_dim=8, rotary_dim=4, intermediate_size=12, num_local_experts=5,
    initializer_range=0.2,
)  # fmt: skip
SHAPES = {
    "lightning first": {},
    "softmax first, nothing rotated": {"attn_type_list": (1, 0, 1, 0), "rotary_dim": 0, "rope_theta": 1e7},
    "six heads, three keys": {"num_attention_heads": 6, "num_key_value_heads": 3, "rotary_dim": 8},
    "one lightning layer": {"num_hidden_layers": 1, "attn_type_list": (0,)},
    "residual before the norm": {"postnorm": False, "layernorm_mlp_beta": 0.5, "num_experts_per_tok": 3},
}
LENGTHS = [37, 1, 40]
CLOSE = 1e-6
"""Slopes and rotary tables of ours are float32 in a float64 model."""


class Equations:
    """One sequence, token by token. `weights`: checkpoint name -> float64 tensor."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.states, self.keys, self.values = {}, {}, {}
        self.router = []

    def weight(self, layer, name):
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def norm(self, x, weight, eps):
        return x / torch.sqrt((x * x).mean() + eps) * weight

    def decay(self, head, layer):
        """exp(-s); slopes of heads beyond a power of two lie between those of the first."""
        heads, layers = self.config.num_attention_heads, self.config.num_hidden_layers
        power = 2 ** math.floor(math.log2(heads))
        exponent = 8 * (head + 1) / power if head < power else 8 * (2 * (head - power) + 1) / (2 * power)
        return math.exp(-(2**-exponent) * (1 - layer / max(layers - 1, 1) + 1e-5))

    def lightning(self, u, layer):
        config, outs = self.config, []
        width = config.head_dim
        qkv = torch.nn.functional.silu(self.weight(layer, "self_attn.qkv_proj") @ u)
        for head in range(config.num_attention_heads):
            q, k, v = qkv[3 * head * width : 3 * (head + 1) * width].split(width)
            before = self.states.get((layer, head), torch.zeros(width, width, dtype=torch.float64))
            self.states[layer, head] = self.decay(head, layer) * before + torch.outer(k, v)
            outs.append(q @ self.states[layer, head])
        normed = self.norm(torch.cat(outs), self.weight(layer, "self_attn.norm"), config.lightning_norm_eps)
        gate = torch.sigmoid(self.weight(layer, "self_attn.output_gate") @ u)
        return self.weight(layer, "self_attn.out_proj") @ (gate * normed)

    def turned(self, x, position):
        """The first rotary_dim numbers of one head as pairs (i, i + rotary_dim / 2), each turned by its angle."""
        x, half = list(x.unbind()), self.config.rotary_dim // 2
        for i in range(half):
            angle = position * self.config.rope_theta ** (-2 * i / self.config.rotary_dim)
            a, b = x[i], x[i + half]
            x[i] = a * math.cos(angle) - b * math.sin(angle)
            x[i + half] = b * math.cos(angle) + a * math.sin(angle)
        return torch.stack(x)

    def softmax(self, u, layer, position):
        config, outs = self.config, []
        q, k, v = (
            (self.weight(layer, f"self_attn.{name}_proj") @ u).split(config.head_dim) for name in ("q", "k", "v")
        )
        self.keys.setdefault(layer, []).append([self.turned(head, position) for head in k])
        self.values.setdefault(layer, []).append(v)
        for head, query in enumerate(q):
            shared = head // (config.num_attention_heads // config.num_key_value_heads)
            keys = torch.stack([past[shared] for past in self.keys[layer]])
            values = torch.stack([past[shared] for past in self.values[layer]])
            weight = torch.exp(keys @ self.turned(query, position) / math.sqrt(config.head_dim))
            outs.append(weight @ values / weight.sum())
        return self.weight(layer, "self_attn.o_proj") @ torch.cat(outs)

    def experts(self, w, layer):
        prob = torch.exp(self.weight(layer, "block_sparse_moe.gate") @ w)
        prob = prob / prob.sum()
        chosen = sorted(range(len(prob)), key=lambda e: -prob[e].item())[: self.config.num_experts_per_tok]
        self.router.append((prob, chosen))
        total = sum(prob[e] for e in chosen)
        out = 0
        for e in chosen:
            w1, w2, w3 = (self.weight(layer, f"block_sparse_moe.experts.{e}.{name}") for name in ("w1", "w2", "w3"))
            out = out + prob[e] / total * (w2 @ (torch.nn.functional.silu(w1 @ w) * (w3 @ w)))
        return out

    def logits(self, token, position):
        config, eps = self.config, self.config.rms_norm_eps
        x = self.weights["model.embed_tokens.weight"][token]
        for layer, kind in enumerate(config.attn_type_list):
            name, mixer = ("linear_attention", self.lightning) if kind == 0 else ("full_attention", self.softmax)
            u = self.norm(x, self.weight(layer, "input_layernorm"), eps)
            alpha, beta = self.scales(name)
            y = alpha * (u if config.postnorm else x) + beta * mixer(u, layer, *([position] if kind else []))
            w = self.norm(y, self.weight(layer, "post_attention_layernorm"), eps)
            alpha, beta = self.scales("mlp")
            x = alpha * (w if config.postnorm else y) + beta * self.experts(w, layer)
        return self.weights["lm_head.weight"] @ self.norm(x, self.weights["model.norm.weight"], eps)

    def scales(self, kind):
        alpha = getattr(self.config, f"layernorm_{kind}_alpha")
        return alpha or (2 * self.config.num_hidden_layers) ** 0.25, getattr(self.config, f"layernorm_{kind}_beta")


def by_equations(config, weights, sequences):
    """Logits of all tokens, and the router loss over all layers: E * sum of (share of tokens) * (mean probability)."""
    runs = [Equations(config, weights) for _ in sequences]
    logits = torch.stack(
        [
            run.logits(token.item(), t)
            for run, tokens in zip(runs, sequences, strict=True)
            for t, token in enumerate(tokens)
        ]
    )
    router = [entry for run in runs for entry in run.router]
    mean = torch.stack([prob for prob, _ in router]).mean(0)
    share = torch.zeros(len(mean), dtype=torch.float64)
    for _, chosen in router:
        share[chosen] += 1 / len(router)
    return logits, len(mean) * (share * mean).sum()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_packed_row_computes_the_equations_gradients_included(shape, oracle):
    lm = oracle.make_lm(dataclasses.replace(SMALL, **shape)).double()
    tokens = oracle.random_tokens(lm.config, sum(LENGTHS), seed=3)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    direction = torch.randn(sum(LENGTHS), lm.config.vocab_size, dtype=torch.float64)

    routing = Routing()
    logits = lm.logits(lm(tokens, positions, torch.tensor([0, *LENGTHS]).cumsum(0), routing))
    ((logits * direction).sum() + routing.aux_loss()).backward()
    weights = {name: weight.clone().requires_grad_() for name, weight in stream_weights(lm)}
    wanted, aux_loss = by_equations(lm.config, weights, tokens.split(LENGTHS))
    ((wanted * direction).sum() + aux_loss).backward()

    assert float((logits - wanted).detach().abs().max()) < CLOSE
    torch.testing.assert_close(routing.aux_loss(), aux_loss, rtol=1e-7, atol=0)
    for parameter in lm.parameters():
        parameter.data = parameter.grad  # so that gradients come under checkpoint names, too
    grads = dict(stream_weights(lm))
    assert grads.keys() == weights.keys()
    for name, weight in weights.items():
        wanted_grad = torch.zeros_like(weight) if weight.grad is None else weight.grad  # an expert that nobody chose
        error = float((grads[name] - wanted_grad).abs().max())
        assert error <= CLOSE * float(wanted_grad.abs().max()), name
