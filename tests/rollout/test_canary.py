"""Weights whose bytes arrived and that still compute another policy are caught; equal ones pass."""

import numpy as np
import pytest
import torch

from cispo.errors import WeightSyncError
from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from rollout.canary import Canary, canary_prompts, check_canary
from rollout.engine import EngineConfig, HybridEngine
from rollout.receiver import Receiver
from rollout.weight_package import make_package
from tests.rollout.test_receiver import SHAPE, arrays_of, lm

PROMPTS = canary_prompts(SHAPE.vocab_size, 1, 32)


def canary_of(learner, tolerance=1e-3):
    return Canary(PROMPTS, tuple(learner.text_logp(prompt) for prompt in PROMPTS), tolerance)


def receiver(policy=None):
    engine = HybridEngine(policy or lm(0), EngineConfig(num_slots=1, max_length=8))
    return engine, Receiver(engine, "rollout-0")


def learner_of(seed, **changes):
    policy = lm(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(8.0 if weight.dim() > 1 else 1.0)  # a policy that prefers some tokens to others
    return LocalLearner(policy, LearnerConfig(**changes))


def test_prompts_are_the_runs_own_and_the_same_each_time():
    assert [prompt.tolist() for prompt in canary_prompts(32, 1, 32)] == [prompt.tolist() for prompt in PROMPTS]
    assert {len(prompt) for prompt in PROMPTS} == {16} and PROMPTS[0].tolist() != PROMPTS[1].tolist()
    assert canary_prompts(32, 2, 32)[0].tolist() != PROMPTS[0].tolist()
    assert all(0 <= token < 5 for prompt in canary_prompts(5, 1, 100) for token in prompt)
    assert canary_prompts(32, 1, 0) == ()


def test_the_engine_says_what_a_packed_pass_says_and_touches_no_request():
    learner = learner_of(1)
    engine, _ = receiver(learner.lm)
    for prompt in PROMPTS:
        tokens, borders = torch.from_numpy(prompt), torch.tensor([0, len(prompt)])
        logits = learner.lm.logits(learner.lm(tokens, torch.arange(len(prompt)), borders)).double()
        expected = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0].detach().numpy()
        for found in (engine.logp(prompt), learner.text_logp(prompt)):
            assert found.dtype == np.float32 and np.isnan(found[0])
            np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-5)
    assert not engine.has_work and engine.num_running == 0


def test_learner_and_worker_agree_on_what_arrived():
    learner = learner_of(1)
    loaded = receiver()[1].load(make_package(learner.weights(), 3, canary_of(learner)), 3)
    assert loaded.canary_difference < 1e-4
    assert loaded.num_bytes == sum(weight.numel() * 4 for weight in learner.lm.parameters())


def transposed(weights):
    name = next(n for n, w in weights.items() if w.dim() == 2 and w.shape[0] == w.shape[1] and w.shape[0] > 2)
    weights[name] = weights[name].T.contiguous()


def scaled(weights):
    name = next(n for n in weights if n.endswith("out_proj.weight") or n.endswith("o_proj.weight"))
    weights[name] = weights[name] * 1.5


def swapped(weights):
    first, second = [name for name in weights if ".experts." in name and name.endswith(".w1.weight")][:2]
    weights[first], weights[second] = weights[second], weights[first]


@pytest.mark.parametrize("spoil", [transposed, scaled, swapped])
def test_weights_that_pass_every_checksum_and_are_wrong_are_caught(spoil):
    """The learner gathers one tensor wrongly and sums up what it gathered; it computes with the right one itself."""
    learner = learner_of(1)
    weights = {name: tensor.clone() for name, tensor in learner.weights()}
    spoil(weights)
    with pytest.raises(WeightSyncError, match=r"weights of version 3 arrived.*differ by up to .* and 0.001 is allowed"):
        receiver()[1].load(make_package(weights.items(), 3, canary_of(learner)), 3)


def test_stale_derived_tensors_of_the_worker_are_caught():
    """An engine that keeps something made of the old weights has the right bytes and the wrong policy."""
    learner = learner_of(1)
    engine, receiving = receiver()
    stale = [weight.clone() for weight in engine._lm.parameters()]
    load = engine.load_weights

    def load_and_forget(weights, version):
        load(weights, version)
        with torch.no_grad():
            next(engine._lm.parameters()).copy_(stale[0])

    engine.load_weights = load_and_forget
    with pytest.raises(WeightSyncError, match="do not compute the same policy"):
        receiving.load(make_package(learner.weights(), 3, canary_of(learner)), 3)


def test_a_difference_in_one_prompt_alone_is_a_tie_between_experts():
    found = [np.array([np.nan, -1.0, -2.0], np.float32), np.array([np.nan, -1.5, -2.0], np.float32)]
    told = (found[0], found[0])
    canary = Canary((np.array([0, 1, 2]), np.array([1, 1, 2])), told, 1e-3)
    assert check_canary(canary, lambda prompt: found[prompt[0]], 1) == 0.0
    with pytest.raises(WeightSyncError, match="up to 0.5 nats"):
        check_canary(canary, lambda prompt: found[1], 1)


def test_log_probabilities_that_are_not_finite_name_the_side():
    learner = learner_of(1)
    canary = canary_of(learner)
    broken = tuple(np.full_like(logp_T, np.nan) for logp_T in canary.logp)
    with pytest.raises(WeightSyncError, match="the worker computes.*not finite"):
        check_canary(canary, lambda prompt: broken[0], 1)
    with pytest.raises(WeightSyncError, match="the learner computes.*not finite"):
        check_canary(Canary(PROMPTS, broken, 1e-3), learner.text_logp, 1)


def test_an_engine_that_cannot_say_is_not_asked():
    class Other:
        def load_weights(self, weights, version):
            self.names = [name for name, _ in weights]

    learner, other = learner_of(1), Other()
    loaded = Receiver(other, "rollout-0").load(make_package(learner.weights(), 3, canary_of(learner)), 3)
    assert loaded.canary_difference is None and other.names == list(arrays_of(learner.lm))


def test_bfloat16_travels_in_two_bytes_and_arrives_exactly():
    learner = learner_of(1, dtype="bfloat16")
    package = make_package(learner.weights(), 3, canary_of(learner, tolerance=0.5))
    routers = {name for name in package.arrays if name.endswith("block_sparse_moe.gate.weight")}
    assert {record.form.dtype for name, record in package.manifest.records.items() if name not in routers} == {
        "bfloat16"
    }
    assert all(array.dtype == np.uint16 for name, array in package.arrays.items() if name not in routers)
    assert all(package.arrays[name].dtype == np.float32 for name in routers)
    engine, receiving = receiver()
    assert 0 < receiving.load(package, 3).canary_difference < 0.5
    for name, weight in arrays_of(engine._lm).items():
        np.testing.assert_array_equal(weight, dict(learner.weights())[name].float().numpy())
