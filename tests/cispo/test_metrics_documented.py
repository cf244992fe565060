"""docs/metrics.md and the loop name the same metrics: what is logged is documented, and what is documented is logged.

A real loop with the real learner and evaluator runs two steps over groups that show every verdict, two tasks and two
parts; its names must be those of the tables' first column, with each placeholder filled in.
"""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from cispo.correction import CorrectionConfig
from cispo.evaluate import EvaluationConfig, HeldOutEvaluator, probe_of
from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.timer import Timer
from cispo.trainer import Parts, TrainerConfig, train
from cispo.types import Harvest, ObservationSpan, Progress, Score, StopReason, Verdict
from model.mismatch import KINDS
from rollout.service import Draw, RolloutService
from rollout.worker_pool import RolloutConfig

TASKS, REWARD_PARTS = ("chain", "program"), ("answer", "length")
METRICS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().split("## A line of ")[0]


ENDS = (*StopReason, *[StopReason.STOP] * (len(Verdict) - len(StopReason)))


def ended(trajectory, reason):
    return dataclasses.replace(trajectory, stop_reason=reason, observations=(ObservationSpan(3, 4, "python", "OK"),))


class Rollouts:
    """Groups of ten answers with the ten verdicts, from the policy of the step before.

    Their first actions are one version older and their experts recorded if `is_in_flight`.
    """

    is_in_flight = False

    def __init__(self, make_group):
        self.make_group = make_group
        self.indices = itertools.count()

    def make(self, task, version):
        rewards = [1.0, *[0.0] * (len(Verdict) - 1)]
        group = self.make_group(next(self.indices), rewards, task=task, version=version)
        scores = (Score(r, r > 0, dict.fromkeys(REWARD_PARTS, r), v) for r, v in zip(rewards, Verdict, strict=True))
        trajectories = tuple(map(ended, group.trajectories, ENDS))
        if self.is_in_flight:
            trajectories = tuple(map(in_flight, trajectories))
        return dataclasses.replace(group, scores=tuple(scores), trajectories=trajectories)

    def take(self, num_groups, *, oldest_version, keep):
        groups = tuple(self.make(TASKS[i % 2], oldest_version + 1) for i in range(num_groups))
        assert all(keep(group) for group in groups)
        return Harvest(groups, {}, len(groups), groups)

    def metrics(self):
        return RolloutService([], None, Draw(seed=1, group_size=2, max_new_tokens=8), RolloutConfig()).metrics()

    def sample(self, prompts, *, num_samples, greedy):
        return [self.make(prompt.task, 0) for prompt in prompts]


def in_flight(trajectory):
    """It got new weights under way, and the engine recorded which of the policy's four experts were visited."""
    version_T = trajectory.version_T.copy()
    version_T[trajectory.action_mask_T.argmax()] -= 1
    experts_TLk = np.tile(np.array([1, 3], np.uint8), (len(version_T), 2, 1))
    return dataclasses.replace(trajectory, version_T=version_T, experts_TLk=experts_TLk)


class Surroundings:
    """The parts of the loop that make no metrics."""

    def __init__(self):
        self.logged = {}

    def restore(self, learner, rollouts):
        return Progress()

    def save(self, progress, learner, rollouts):
        pass

    def publish(self, learner, *, version):
        assert list(learner.weights())
        return {"sync/seconds": 0.0, "sync/bytes": 0.0, "sync/canary_logp_diff_max": 0.0}

    def rollouts(self, step, records):
        pass

    def histograms(self, step, histograms):
        self.histograms_seen = set(histograms)

    def alarm(self, step, metric, text):
        pass

    def log(self, step, metrics):
        self.logged[step] = dict(metrics)


@pytest.fixture(scope="module")
def logged(make_lm, make_group):
    """By step, of a run as it is by default, and behind it of one with everything that corrects."""
    everything = CorrectionConfig("proximal", 2.0, 0.5, 5.0, 0.5, 2.0, replay_experts=True)
    plain, corrected = (run(make_lm, make_group, correction) for correction in (CorrectionConfig(), everything))
    assert not any(name.startswith(("correction/", "mismatch/in_flight")) for step in plain.values() for name in step)
    return plain | {step + len(plain): metrics for step, metrics in corrected.items()}


def run(make_lm, make_group, correction):
    rollouts, around = Rollouts(make_group), Surroundings()
    rollouts.is_in_flight = correction.replay_experts
    prompts = [rollouts.make(task, 0).prompt for task in TASKS]
    learner = LocalLearner(make_lm(), LearnerConfig())
    evaluation = EvaluationConfig(num_samples=4, pass_at=2)
    parts = Parts(
        learner=learner,
        rollouts=rollouts,
        weights=around,
        checkpoints=around,
        evaluator=HeldOutEvaluator(rollouts, prompts, evaluation, probe=probe_of(learner, can_compare=True)),
        tracker=around,
        decode=str,
    )
    config = TrainerConfig(steps=2, groups_per_step=4, updates_per_step=2, max_staleness=1, correction=correction)
    train(config, LearnerConfig(), parts)
    return around.logged


def documented_rows():
    """(name with placeholders, the whole row) for every metric in the tables."""
    rows = [line for line in METRICS.splitlines() if line.startswith("| `")]
    return [(re.match(r"\| `([^`]+)` \|", row)[1], row) for row in rows]


def filled_in(name, row):
    """The names that a documented one stands for in the run above."""
    definition = row.split("|")[2]
    phases = re.findall(r"`(\w+)`", definition)
    fillings = {
        "<task>": TASKS,
        "<part>": REWARD_PARTS,
        "<name>": [verdict.value for verdict in Verdict],
        "<set>": (*TASKS, "all"),
        "<kind>": KINDS,
        "<reason>": [reason.value for reason in StopReason],
        "<phase>": [phase for phase in phases if phase != "sft"],  # logged before the loop, by the cold start
    }
    (placeholder,) = re.findall(r"<\w+>", name) or [""]
    names = [name.replace(placeholder, filling) for filling in fillings[placeholder]] if placeholder else [name]
    return {name.replace("mean@k", "mean@4").replace("pass@k", "pass@2") for name in names}


def test_every_logged_name_is_documented(logged):
    documented = set().union(*(filled_in(*row) for row in documented_rows()))
    names = set().union(*logged.values())
    assert len(names) > 50
    assert names <= documented, f"not in docs/metrics.md: {sorted(names - documented)}"


@pytest.mark.parametrize("name, row", documented_rows(), ids=[name for name, _ in documented_rows()])
def test_every_documented_name_is_logged(logged, name, row):
    missing = filled_in(name, row) - set().union(*logged.values())
    assert not missing, f"documented and never logged: {sorted(missing)}"


def test_step_zero_is_the_evaluation_alone(logged):
    assert {name.split("/")[0] for name in logged[0]} == {"eval", "mismatch", "sync", "timing_s"}


def test_no_name_is_documented_twice_and_no_cell_is_empty():
    names = [name for name, _ in documented_rows()]
    assert len(set(names)) == len(names)
    for name, row in documented_rows():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 5 and all(cells), name


def test_the_timer_adds_up_phases_and_leaves_out_those_that_were_not_entered():
    timer = Timer()
    for phase in ("rollout", "update", "update", "evaluate"):
        with timer(phase):
            pass
    timer.seconds.update(rollout=4.0, update=2.0, evaluate=0.0)
    metrics = timer.metrics(generated_tokens=80, trained_tokens=60)
    assert metrics["timing_s/rollout"] == 4.0 and metrics["timing_s/update"] == 2.0
    assert not {"timing_s/evaluate", "timing_s/publish"} & set(metrics)
    assert metrics["perf/generated_tokens_per_second"] == 20 and metrics["perf/trained_tokens_per_second"] == 30
    assert Timer().metrics(generated_tokens=5, trained_tokens=5)["perf/trained_tokens_per_second"] == 0.0


def test_a_phase_that_fails_is_timed_too():
    timer = Timer()
    with pytest.raises(KeyError), timer("rollout"):
        raise KeyError
    assert timer.seconds["rollout"] > 0
