"""Cold start: the same update as RL, with the gradient of plain cross-entropy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cispo.errors import CispoError, ConfigError
from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.sft import Demonstration, SftConfig, cold_start, demonstration_batch

EXAMPLES = [
    Demonstration((1, 2, 3), (4, 5)),
    Demonstration((6,), (7, 8, 9, 10)),
    Demonstration((2, 2), (1,)),
]


class ListeningTracker:
    def __init__(self):
        self.phases = []

    def phase(self, name, done, total, **numbers):
        self.phases.append((name, done, total, numbers))


def cross_entropy(lm, examples):
    """Mean negative log-likelihood of all completion tokens, by torch's own function."""
    logits, targets = [], []
    for example in examples:
        tokens = torch.tensor(example.prompt_ids + example.completion_ids)
        first = max(1, len(example.prompt_ids))
        hidden = lm(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
        logits.append(lm.logits(hidden[first - 1 : -1]))
        targets.append(tokens[first:].clone())
        for start, stop in example.observed:
            targets[-1][len(example.prompt_ids) + start - first : len(example.prompt_ids) + stop - first] = -100
    return F.cross_entropy(torch.cat(logits), torch.cat(targets))


@pytest.mark.parametrize("max_row_tokens", [6, 100])
@pytest.mark.parametrize(
    "examples",
    [
        EXAMPLES,
        [*EXAMPLES, Demonstration((), (3, 1, 4))],
        [*EXAMPLES, Demonstration((4, 4), (5, 6, 7, 8, 9), observed=((1, 3), (4, 5)))],
    ],
    ids=["prompts", "no prompt", "observations"],
)
def test_gradient_equals_cross_entropy(make_lm, examples, max_row_tokens):
    learner, tracker = LocalLearner(make_lm(dtype="float64"), LearnerConfig()), ListeningTracker()
    config = SftConfig(steps=1, lr=0.0, max_grad_norm=float("inf"), router_aux_coef=0.0)
    loss = cold_start(learner, lambda step: examples, config, max_row_tokens=max_row_tokens, tracker=tracker)
    found = {name: p.grad.clone() for name, p in learner.lm.named_parameters()}
    learner.lm.zero_grad()
    wanted = cross_entropy(learner.lm, examples)
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    for name, parameter in learner.lm.named_parameters():
        np.testing.assert_allclose(found[name], parameter.grad, rtol=1e-5, atol=1e-8, err_msg=name)


def test_prompts_carry_no_weight_and_completion_tokens_the_same():
    (row,) = demonstration_batch(EXAMPLES, max_row_tokens=100).rows
    assert row.mask_T.sum() == 7
    np.testing.assert_allclose(row.weight_T, np.where(row.mask_T, 1 / 7, 0.0), rtol=1e-6)


def test_cold_start_lowers_the_loss_and_reports_the_likelihood(make_lm):
    learner, tracker = LocalLearner(make_lm(), LearnerConfig()), ListeningTracker()
    before = float(cross_entropy(learner.lm, EXAMPLES).detach())
    config = SftConfig(steps=30, lr=0.02, log_every=10, router_aux_coef=0.5)
    last = cold_start(learner, lambda step: EXAMPLES, config, max_row_tokens=64, tracker=tracker)
    assert last < 0.5 * before
    assert [(name, done, total) for name, done, total, _ in tracker.phases] == [
        ("cold start", n, 30) for n in (10, 20, 30)
    ]
    # What is reported is before the last update and without the router's loss, which is above 1.
    assert tracker.phases[-1][3]["loss"] == last
    assert last == pytest.approx(float(cross_entropy(learner.lm, EXAMPLES).detach()), abs=0.2)


def test_the_schedule_and_the_examples_follow_the_step(make_lm):
    seen, rates = [], []

    class Recorder(LocalLearner):
        def update(self, batch, settings):
            rates.append(settings.lr)
            return super().update(batch, settings)

    learner = Recorder(make_lm(), LearnerConfig())
    config = SftConfig(steps=3, lr=((0, 0.0), (2, 0.2)))
    cold_start(
        learner, lambda step: seen.append(step) or EXAMPLES, config, max_row_tokens=64, tracker=ListeningTracker()
    )
    assert seen == [0, 1, 2] and rates == pytest.approx([0.0, 0.1, 0.2])


def test_a_loss_that_is_not_finite_ends_the_cold_start_with_a_sentence(make_lm):
    learner = LocalLearner(make_lm(), LearnerConfig())
    with torch.no_grad():
        learner.lm.lm_head.weight.fill_(math.nan)
    with pytest.raises(CispoError, match=r"cold start, update 1: .* not finite .* lower sft\.lr, now 0\.02"):
        cold_start(learner, lambda step: EXAMPLES, SftConfig(steps=2, lr=0.02), max_row_tokens=64, tracker=None)


@pytest.mark.parametrize("values", [{"steps": -1}, {"batch_size": 0}, {"log_every": 0}, {"lr": ((3, 1.0), (3, 2.0))}])
def test_settings_that_cannot_work_are_refused(values):
    with pytest.raises(ConfigError, match=r"sft\."):
        SftConfig(**values)
