"""What the tests of the algorithm share: a policy small enough for thousands of updates, and groups to learn from."""

import numpy as np
import pytest
import torch

from cispo.learner.local import LocalLearner
from cispo.types import Group, Prompt, Score, StopReason, Trajectory, Verdict
from model import HybridConfig, HybridLM
from tests.cispo import parity

torch.set_num_threads(1)

VOCAB = 11


def build_lm(seed: int = 0, dtype: str = "float32") -> HybridLM:
    """A random policy with both kinds of attention and four experts, 1,568 weights."""
    config = HybridConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        rotary_dim=2,
        intermediate_size=4,
        num_local_experts=4,
        attn_type_list=(0, 1),
        initializer_range=0.4,
        param_dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HybridLM(config)


def build_group(index: int, rewards, *, num_actions=3, version: int = 0, task: str = "chain", seed: int = 0) -> Group:
    """One prompt of two tokens with a trajectory for each reward; NaN is a system error."""
    rng = np.random.default_rng([seed, index])
    lengths = [num_actions] * len(rewards) if isinstance(num_actions, int) else num_actions
    trajectories = []
    for length in lengths:
        mask_T = np.arange(length + 2) >= 2
        trajectories.append(
            Trajectory(
                token_ids_T=rng.integers(0, VOCAB, length + 2),
                action_mask_T=mask_T,
                behaviour_logp_T=np.where(mask_T, rng.normal(-np.log(VOCAB), 0.3, length + 2), 0).astype(np.float32),
                version_T=np.where(mask_T, version, -1),
                stop_reason=StopReason.STOP,
            )
        )
    scores = tuple(
        Score(r, r > 0.5, {"answer": r}, Verdict.SYSTEM_ERROR)
        if np.isnan(r)
        else Score(r, r > 0.5, {"answer": r}, Verdict.CORRECT if r > 0.5 else Verdict.WRONG)
        for r in rewards
    )
    return Group(index, Prompt(f"p/{index}", task, "ab", (0, 1), "9"), tuple(trajectories), scores)


@pytest.fixture(scope="session")
def make_lm():
    return build_lm


@pytest.fixture(scope="session")
def make_group():
    return build_group


@pytest.fixture(scope="module")
def batches():
    """What learners on ranks are compared by."""
    return parity.make_batches()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For all that the ranks of a module write."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def of_one(folder, batches):
    """A state after one update, written by one process, and what that process made of the others."""
    learner = LocalLearner(parity.make_lm(), parity.learner_config())
    parity.learn(learner, batches[:1])
    learner.save(folder / "of-one")
    return parity.learn(learner, batches[1:])
