"""The page that shows the algorithm: its formulas are those of the framework, it needs torch alone, and it learns."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import cispo.advantage
from cispo.loss import cispo_loss
from cispo.packing import aggregation_weights
from cispo.types import Sample
from rollout.own_module import load_module

FILE = Path(__file__).parents[2] / "examples" / "cispo_on_one_page.py"


@pytest.fixture(scope="module")
def page():
    return load_module(str(FILE))


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_are_those_of_the_framework(page, seed):
    rng = torch.Generator().manual_seed(seed)
    behaviour, advantage, noise = (torch.randn(200, generator=rng, dtype=torch.float64) for _ in range(3))
    weight = torch.rand(200, generator=rng, dtype=torch.float64)
    mask = torch.rand(200, generator=rng) < 0.8
    losses, gradients = [], []
    for real in (False, True):
        logp = (behaviour + noise).requires_grad_()
        if real:
            loss = cispo_loss(logp, behaviour, advantage, weight, mask, ratio_cap=page.RATIO_CAP).loss
        else:
            loss = page.cispo_loss(logp, behaviour, advantage, weight * mask)
        loss.backward()
        losses.append(loss.item())
        gradients.append(logp.grad)
    assert 0.02 < (noise.exp() > page.RATIO_CAP).double().mean() < 0.5, "the cap must matter"
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


def test_advantages_are_those_of_the_framework(page):
    rewards = torch.from_numpy(np.random.default_rng(0).choice([0.0, 0.25, 1.0], (20, 4))).float()
    rewards[3] = 0.25
    wanted = np.stack([cispo.advantage.group_advantages(row.numpy()) for row in rewards])
    assert not wanted[3].any()
    np.testing.assert_allclose(page.group_advantages(rewards), wanted, rtol=1e-5, atol=1e-6)


def test_weights_are_those_of_the_framework(page):
    lengths = np.random.default_rng(1).integers(1, 7, (5, 3))
    mask = torch.arange(6) < torch.from_numpy(lengths)[:, :, None]
    samples = [
        Sample(
            group=group, member=member, tokens_T=np.arange(length), mask_T=np.ones(length, bool),
            behaviour_logp_T=np.zeros(length, "f"), advantage_T=np.zeros(length, "f"), version_T=np.zeros(length, int),
        )
        for (group, member), length in np.ndenumerate(lengths)
    ]  # fmt: skip
    wanted = torch.tensor(aggregation_weights(samples, "prompt")).view(5, 3, 1) * mask
    torch.testing.assert_close(page.token_weights(mask), wanted.float(), rtol=1e-6, atol=0)
    assert page.token_weights(mask).sum() == pytest.approx(1)


def test_the_verifier_knows_right_from_nearly_right(page):
    prompt = torch.tensor([[4, 0, 2, page.SEPARATOR]] * 4)
    answers = torch.tensor([[0, 2, 4, 6, 1, 1], [0, 2, 4, 4, 6, 1], [0, 4, 2, 6, 0, 0], [0, 6, 4, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    assert page.verify(prompt, answers, mask).tolist() == [1.0, 0.75, 0.5, 0.25]


def test_what_is_learnt_from_was_sampled_from_the_same_policy(page):
    torch.manual_seed(0)
    policy = page.Policy()
    prompts = page.make_prompts(40)
    answers, logp, mask = page.sample(policy, prompts)
    again = policy(torch.cat([prompts, answers], 1))[:, page.PROMPT_LENGTH - 1 : -1]
    torch.testing.assert_close(again.gather(2, answers[:, :, None]).squeeze(2), logp, rtol=0, atol=1e-5)
    for answer, kept in zip(answers.tolist(), mask.sum(1).tolist(), strict=True):
        assert page.END not in answer[: kept - 1]
        assert kept == page.MAX_NEW_TOKENS or answer[kept - 1] == page.END


def test_it_learns(page, capsys):
    before, after = page.train(steps=40, seed=0)
    assert before < 0.05 and after > 0.2
    assert "step   40   accuracy" in capsys.readouterr().out


def test_it_is_a_page_and_needs_torch_alone():
    text = FILE.read_text()
    assert len(text.splitlines()) < 200
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"argparse", "time", "torch"}
