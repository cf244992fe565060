"""Another family of models samples with the same engine and learns with the same learner as the first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cispo.advantage import assign_credit
from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.optimizer import OptimizerConfig
from cispo.packing import pack
from cispo.types import Group, Prompt, Score, StopReason, Trajectory, UpdateSettings, Verdict
from model import HybridConfig, HybridLM
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling

torch.set_num_threads(1)
VOCAB = 13
RING = HybridConfig(
    family="bailing_linear",
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=4,
    attn_type_list=(0, 1, 0, 1),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rotary_dim=4,
    intermediate_size=6,
    dense_intermediate_size=12,
    first_k_dense_replace=1,
    num_local_experts=8,
    num_experts_per_tok=3,
    num_shared_experts=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    group_norm_size=2,
    initializer_range=0.2,
)
PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3), (2, 2)]


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return LocalLearner(HybridLM(RING), LearnerConfig(optimizer=OptimizerConfig(weight_decay=0.0)))


def sampled(learner, num_samples=4):
    """Every prompt's completions from an engine that was sent the learner's weights; more members than slots."""
    torch.manual_seed(99)
    engine = HybridEngine(HybridLM(RING), EngineConfig(num_slots=6, max_length=64, prefill_tokens=8))
    engine.load_weights(learner.weights(), version=1)
    sampling = Sampling(max_new_tokens=12, stop_token_ids=(0,))
    engine.submit(Request(str(i), prompt, num_samples, i, sampling) for i, prompt in enumerate(PROMPTS))
    ended = [[] for _ in PROMPTS]
    while engine.has_work:
        for completion in engine.step():
            ended[int(completion.request_id)].append(completion)
    return ended


def full_forward_logp(lm, tokens):
    tokens_T = torch.tensor(tokens)
    with torch.no_grad():
        hidden = lm(tokens_T, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
        return lm.logp(hidden[:-1], tokens_T[1:]).numpy()


def test_behaviour_log_probabilities_equal_the_full_forward_pass(learner):
    lengths = set()
    for prompt, completions in zip(PROMPTS, sampled(learner), strict=True):
        assert len(completions) == 4
        for completion in completions:
            logp = full_forward_logp(learner.lm, [*prompt, *completion.token_ids.tolist()])
            np.testing.assert_allclose(completion.logp, logp[len(prompt) - 1 :], rtol=0, atol=1e-5)
            lengths.add(len(completion.token_ids))
    assert len(lengths) > 2


def groups_of(completions):
    """Trajectories are rewarded for tokens in the upper half of the vocabulary."""
    groups = []
    for index, (prompt, members) in enumerate(zip(PROMPTS, completions, strict=True)):
        before = len(prompt)
        trajectories = tuple(
            Trajectory(
                token_ids_T=np.concatenate([prompt, c.token_ids]),
                action_mask_T=np.arange(before + len(c.token_ids)) >= before,
                behaviour_logp_T=np.concatenate([np.zeros(before, np.float32), c.logp]),
                version_T=np.concatenate([np.full(before, -1), c.version]),
                stop_reason=StopReason.STOP,
            )
            for c in members
        )
        rewards = [float((c.token_ids > VOCAB // 2).mean()) for c in members]
        scores = tuple(Score(r, r > 0.5, {"answer": r}, Verdict.CORRECT) for r in rewards)
        groups.append(Group(index, Prompt(f"p/{index}", "chain", "ab", tuple(prompt), "9"), trajectories, scores))
    return groups


def objective(batch, result):
    """Weighted advantage times log-probability, as the weights before the update have it."""
    rows = zip(batch.rows, result.logp_rows, strict=True)
    return sum(float((row.weight_T * row.advantage_T * logp)[row.mask_T].sum()) for row, logp in rows)


def test_an_update_makes_what_was_rewarded_likelier(learner):
    (batch,) = pack(assign_credit(groups_of(sampled(learner))), num_batches=1, max_row_tokens=40, version=1)
    assert len(batch.rows) > 1
    before = {name: parameter.detach().clone() for name, parameter in learner.lm.named_parameters()}
    update = UpdateSettings(lr=1e-3, ratio_cap=3.0, router_aux_coef=0.01)
    first = learner.update(batch, update)
    assert float(first.metrics["mismatch/logp_abs_diff_mean"]) < 1e-5, "the engine sampled from the learner's policy"
    assert first.kl < 1e-9
    assert first.grad_norm > 0
    second = learner.update(batch, update)
    assert objective(batch, second) > objective(batch, first) + 1e-3
    still = {name for name, parameter in learner.lm.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {f"model.layers.{layer}.block_sparse_moe.gate.expert_bias" for layer in (1, 2, 3)}


def test_a_learner_is_saved_and_resumed(learner, tmp_path):
    (batch,) = pack(assign_credit(groups_of(sampled(learner))), num_batches=1, version=1)
    update = UpdateSettings(lr=1e-3, ratio_cap=3.0)
    learner.update(batch, update)
    learner.save(tmp_path)
    torch.manual_seed(7)
    resumed = LocalLearner(HybridLM(RING), learner.config)
    resumed.load(tmp_path)
    assert resumed.update(batch, update).loss == learner.update(batch, update).loss
    for one, other in zip(learner.lm.parameters(), resumed.lm.parameters(), strict=True):
        assert torch.equal(one, other)
