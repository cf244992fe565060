"""Held-out accuracy: pass@k against enumeration, means by task, and what could not be scored."""

import math
from itertools import combinations

import numpy as np
import pytest

from cispo.errors import ConfigError
from cispo.evaluate import (
    EvaluationConfig,
    HeldOutEvaluator,
    by_task,
    guess_accuracy,
    mean_correct,
    pass_at_k,
    sampling_mismatch,
)
from cispo.types import Prompt

NAN = float("nan")


@pytest.mark.parametrize("num_samples", [1, 2, 5, 6])
def test_pass_at_k_equals_the_share_of_all_choices_of_k(make_group, num_samples):
    for num_correct in range(num_samples + 1):
        correct = [i < num_correct for i in range(num_samples)]
        group = make_group(0, [float(c) for c in correct])
        for k in range(1, num_samples + 1):
            choices = list(combinations(correct, k))
            assert pass_at_k(group, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-12)


def test_pass_at_one_is_the_mean(make_group):
    group = make_group(0, (1.0, 0.0, 0.0, 1.0, 1.0))
    assert pass_at_k(group, 1) == pytest.approx(mean_correct(group)) == pytest.approx(0.6)


def test_answers_that_could_not_be_scored_are_left_out(make_group):
    group = make_group(0, (1.0, NAN, 0.0))
    assert mean_correct(group) == 0.5
    assert pass_at_k(group, 2) == 1.0
    assert math.isnan(pass_at_k(group, 3))
    assert math.isnan(mean_correct(make_group(0, (NAN, NAN))))


def test_all_is_the_mean_over_tasks_and_not_over_prompts(make_group):
    groups = [make_group(i, (1.0,), task="chain") for i in range(3)] + [
        make_group(3, (0.0,), task="program"),
        make_group(4, (NAN,), task="program"),
        make_group(5, (NAN,), task="never scored"),
    ]
    assert by_task(groups, "greedy", mean_correct) == {
        "eval/chain/greedy": 1.0,
        "eval/program/greedy": 0.0,
        "eval/all/greedy": 0.5,
    }
    assert by_task([], "greedy", mean_correct) == {}


class AnsweringRollouts:
    """Answers each prompt: sampled three times right of four, greedily always wrong."""

    def __init__(self, make_group):
        self.make_group = make_group
        self.asked = []

    def sample(self, prompts, *, num_samples, greedy):
        self.asked.append((len(prompts), num_samples, greedy))
        rewards = [0.0] if greedy else [1.0, 1.0, 1.0, 0.0]
        return [self.make_group(i, rewards, task=prompt.task) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("greedy", [True, False])
def test_the_evaluator_measures_sampled_and_greedy_answers(make_group, greedy):
    rollouts = AnsweringRollouts(make_group)
    prompts = [make_group(i, (0.0,)).prompt for i in range(2)]
    evaluator = HeldOutEvaluator(rollouts, prompts, EvaluationConfig(num_samples=4, pass_at=2, greedy=greedy))
    metrics = evaluator.evaluate()
    wanted = {"mean@4": 0.75, "pass@2": 1.0} | ({"greedy": 0.0} if greedy else {})
    assert metrics == {f"eval/{task}/{what}": value for task in ("chain", "all") for what, value in wanted.items()}
    assert rollouts.asked == [(2, 4, False), (2, 1, True)][: 1 + greedy]
    assert len(evaluator.last_groups[0].scores) == 4


def test_a_probe_is_shown_one_sampled_trajectory(make_group):
    shown = []
    prompts = [make_group(i, (0.0,)).prompt for i in range(2)]
    config = EvaluationConfig(num_samples=4, pass_at=2)
    rollouts = AnsweringRollouts(make_group)
    evaluator = HeldOutEvaluator(rollouts, prompts, config, probe=lambda x: shown.append(x) or {"mismatch/moe": 0.1})
    assert evaluator.evaluate()["mismatch/moe"] == 0.1
    assert shown == [evaluator.last_groups[0].trajectories[0]]


def test_the_mismatch_of_a_trajectory_is_that_of_its_actions(make_group):
    (trajectory,) = make_group(0, (0.0,)).trajectories
    behaviour, mask = trajectory.behaviour_logp_T, trajectory.action_mask_T
    logp = np.where(mask, behaviour + 0.5, np.nan).astype(np.float32)
    found = sampling_mismatch(trajectory, logp)
    assert found["mismatch/eval_logp_abs_diff_mean"] == pytest.approx(0.5, rel=1e-5)
    assert found["mismatch/eval_kl"] == pytest.approx(math.exp(0.5) - 1.5, rel=1e-5)
    assert not any(sampling_mismatch(trajectory, np.where(mask, behaviour, np.nan)).values())


@pytest.mark.parametrize("values", [{"pass_at": 5}, {"num_samples": 0}, {"num_prompts": 0}, {"pass_at": 0}])
def test_counts_that_cannot_be_measured_are_refused(values):
    with pytest.raises(ConfigError, match="pass_at <= num_samples; got"):
        EvaluationConfig(**values)


def test_what_always_giving_the_most_frequent_answer_scores():
    def prompts(task, references):
        return [Prompt(f"{task}/{at}", task, "x", (1,), reference) for at, reference in enumerate(references)]

    puzzle = [{"task": "gym/gcd", "answer": answer} for answer in ("1", "1", "1", "7")]
    asked = [*prompts("chain", ["9", "9", 3, "4"]), *prompts("gym/gcd", puzzle), *prompts("program", [{"tests": []}])]
    assert guess_accuracy(asked) == {"chain": 0.5, "gym/gcd": 0.75, "all": 0.625}
    assert guess_accuracy(prompts("program", [{"tests": []}])) == {}
