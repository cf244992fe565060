"""A policy that was trained here opens in transformers and writes the same greedy text there as in our engine."""

import dataclasses

import pytest
import torch

from cispo.advantage import assign_credit
from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.packing import pack
from cispo.types import UpdateSettings
from model import HybridLM, load_pretrained, save_pretrained
from rollout.engine import EngineConfig, HybridEngine
from rollout.sampling import Sampling

PROMPTS = [(3,), (0, 1), (5, 5, 2, 9, 1, 0, 4), tuple(range(11)) * 4]
NUM_NEW = 40


def whole_head_rotated(lm):
    """transformers rotates all of a head, whatever rotary_dim says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return HybridLM(dataclasses.replace(lm.config, rotary_dim=lm.config.head_dim))


@pytest.fixture(scope="module")
def trained(make_lm, make_group):
    """Four updates on groups with a signal; their weights are far from where they began."""
    learner = LocalLearner(whole_head_rotated(make_lm()), LearnerConfig())
    before = learner.lm.lm_head.weight.detach().clone()
    for step in range(4):
        groups = [make_group(i, (1.0, 0.0, 1.0, 0.0), num_actions=(2, 7, 4, 5), seed=step) for i in range(4)]
        (batch,) = pack(assign_credit(groups), num_batches=1)
        result = learner.update(batch, UpdateSettings(lr=0.02, ratio_cap=3.0, max_grad_norm=1.0))
        assert not result.skipped
    assert float((learner.lm.lm_head.weight.detach() - before).abs().max()) > 0.05
    return learner.lm


def test_transformers_writes_the_same_greedy_text(trained, tmp_path):
    from transformers import MiniMaxForCausalLM

    save_pretrained(trained, tmp_path, "minimax", max_shard_bytes=3000)
    native = MiniMaxForCausalLM.from_pretrained(tmp_path)
    engine = HybridEngine(load_pretrained(tmp_path), EngineConfig(num_slots=4, max_length=100, prefill_tokens=16))
    ours = engine.generate(PROMPTS, Sampling(temperature=0.0, max_new_tokens=NUM_NEW))
    texts = [completion.token_ids.tolist() for (completion,) in ours]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        tokens = torch.tensor([prompt])
        # without a mask, generate takes every token that is the padding token for padding
        options = {"attention_mask": torch.ones_like(tokens), "pad_token_id": 0}
        out = native.generate(tokens, max_new_tokens=NUM_NEW, do_sample=False, **options)
        assert out[0, len(prompt) :].tolist() == text
    assert len(set(map(tuple, texts))) == len(PROMPTS)
    assert max(len(set(text)) for text in texts) > 3, "a text that repeats one token proves little"
