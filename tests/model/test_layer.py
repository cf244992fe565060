"""The interface of layers, by a mixer that no family has: a vector gate and a short convolution, two kept states.

It is what Gated DeltaNet, KDA and Mamba2 ask of the house beyond lightning attention: a decay that depends on the token
and the key dimension, and inputs of earlier tokens. Engine and cache know nothing of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from model import HybridCache, HybridConfig, HybridLM
from model.families import FAMILIES
from model.layer import Kept, PostNorm, PreNorm
from model.softmax import SoftmaxAttention
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling

torch.set_num_threads(1)
TINY = HybridConfig(
    vocab_size=19,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    rotary_dim=4,
    intermediate_size=8,
    num_local_experts=4,
    attn_type_list=(0, 1, 0),
    initializer_range=0.3,
)


class GatedMixer(nn.Module):
    """S_t = diag(g_t) S_{t-1} + c_t^T v_t, o_t = q_t S_t, with c_t = k_t + k_{t-1} / 2; sequence by sequence."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.heads = layer, config.num_attention_heads
        inner = config.num_attention_heads * config.head_dim
        self.inputs = nn.Linear(config.hidden_size, 4 * inner, bias=False, dtype=config.dtype)
        self.output = nn.Linear(inner, config.hidden_size, bias=False, dtype=config.dtype)

    @staticmethod
    def kept(config):
        heads, width = config.num_attention_heads, config.head_dim
        return Kept(states={"state": (heads, width, width), "before": (heads, width)})

    def run(self, u, state, before):
        outs = []
        for q, k, v, g in self.inputs(u).view(len(u), 4, self.heads, -1):
            kernel, before = k + before / 2, k
            state = torch.sigmoid(g)[:, :, None] * state + kernel[:, :, None] * v[:, None]
            outs.append((q[:, None] @ state).flatten())
        return self.output(torch.stack(outs)), state, before

    def forward(self, u, row):
        width = self.output.in_features // self.heads
        zero = u.new_zeros(self.heads, width, width)
        lengths = row.cu_seqlens.diff().tolist()
        return torch.cat([self.run(part, zero, zero[:, 0])[0] for part in u.split(lengths)])

    def prefill(self, u, row, slots, cache):
        return self.go_on(u.split(row.cu_seqlens.diff().tolist()), slots, cache)

    def decode(self, u, turn, cache):
        return self.go_on(u.split(1), turn.slots_N, cache)

    def go_on(self, parts, slots, cache):
        outs = []
        states, befores = cache.constant["state"][self.layer], cache.constant["before"][self.layer]
        for part, slot in zip(parts, slots.tolist(), strict=True):
            out, states[slot], befores[slot] = self.run(part, states[slot], befores[slot])
            outs.append(out)
        return torch.cat(outs)


@pytest.fixture
def lm(monkeypatch):
    family = dataclasses.replace(FAMILIES["minimax"], mixers=(GatedMixer, SoftmaxAttention))
    monkeypatch.setitem(FAMILIES, "minimax", family)
    torch.manual_seed(0)
    return HybridLM(TINY)


def logp_of(lm, tokens):
    tokens_T = torch.tensor(tokens)
    with torch.no_grad():
        hidden = lm(tokens_T, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
        return lm.logp(hidden[:-1], tokens_T[1:]).numpy()


def sample(engine):
    ended = []
    while engine.has_work:
        ended += engine.step()
    return ended


def test_the_engine_samples_with_any_mixer_and_its_log_probabilities_are_those_of_the_full_forward(lm):
    engine = HybridEngine(lm, EngineConfig(num_slots=4, max_length=40, prefill_tokens=4))
    prompts = {"a": (1, 2, 3, 4, 5, 6, 7), "b": (3,), "c": (9, 8)}
    sampling = Sampling(max_new_tokens=9, stop_token_ids=(0, 1))
    engine.submit(Request(name, prompt, 3, i, sampling) for i, (name, prompt) in enumerate(prompts.items()))
    ended = sample(engine)
    assert len(ended) == 9
    for completion in ended:
        prompt = prompts[completion.request_id]
        wanted = logp_of(lm, [*prompt, *completion.token_ids.tolist()])[len(prompt) - 1 :]
        np.testing.assert_allclose(completion.logp, wanted, rtol=0, atol=1e-5)


def test_a_paused_sequence_takes_every_state_along(lm):
    def engine():
        return HybridEngine(lm, EngineConfig(num_slots=2, max_length=40, prefill_tokens=4))

    request = Request("a", (1, 2, 3), 1, 0, Sampling(max_new_tokens=12))
    through, first, second = engine(), engine(), engine()
    for one in (through, first):
        one.submit([request])
    (wanted,) = sample(through)
    for _ in range(5):
        first.step()
    second.resume(first.snapshot("a"))
    (found,) = sample(second)
    np.testing.assert_array_equal(found.token_ids, wanted.token_ids)
    np.testing.assert_array_equal(found.logp, wanted.logp)


def test_a_slot_is_cleared_copied_and_counted_with_every_state(lm):
    cache = HybridCache(TINY, num_slots=3, max_length=5)
    lm.prefill(torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([1]), cache)
    cache.fork(1, [2])
    before = cache.constant["before"]
    assert before.keys() == {0, 2}
    for pool in before.values():
        assert bool(pool[1].any()) and torch.equal(pool[1], pool[2]) and not bool(pool[0].any())
    cache.reset([1])
    assert not any(bool(pool[1].any()) for pool in before.values())
    # two layers of 2 heads x (8 x 8 and 8), one of keys and values, 1 head x 5 places x 8
    assert cache.bytes() == 3 * 4 * (2 * 2 * (64 + 8) + 2 * 5 * 8)
    assert cache.snapshot(2).keys() == {
        "length", "layers.0.state", "layers.2.state", "layers.0.before", "layers.2.before", "layers.1.keys",
        "layers.1.values",
    }  # fmt: skip


def test_the_residual_rules_by_hand():
    x, u, branch = torch.tensor([1.0]), torch.tensor([10.0]), torch.tensor([100.0])
    assert PreNorm()(x, u, branch) == 101
    assert PreNorm(2, 3)(x, u, branch) == 302
    assert PostNorm(2, 3)(x, u, branch) == 320
