"""The loop with small hand-written parts: who is called when, with what, and what ends it."""

import dataclasses
import itertools
import logging
import math

import numpy as np
import pytest

from cispo.advantage import has_signal
from cispo.errors import CispoError, ConfigError, NoSignal
from cispo.evidence import load_batch
from cispo.learner.config import LearnerConfig
from cispo.stop import RunStopped, StopRequest
from cispo.trainer import Parts, TrainerConfig, due, train
from cispo.types import Harvest, Progress, UpdateResult


class FakeRun:
    """Every part of a run in one diary of calls. The learner's updates end as `endings` says, then well."""

    def __init__(self, make_group, *, endings=(), rewards=(1.0, 0.0), restored=Progress(), kl=0.01):  # noqa: B008
        self.make_group, self.rewards, self.restored, self.kl = make_group, rewards, restored, kl
        self.endings = iter(endings)
        self.diary, self.settings, self.batches, self.logged, self.records = [], [], [], {}, {}
        self.indices = itertools.count()
        self.evidence = None
        self.stop = StopRequest()

    # Rollouts

    def take(self, num_groups, *, oldest_version, keep):
        assert keep is has_signal
        self.diary.append(f"take {num_groups} from {oldest_version}")
        groups = tuple(self.make_group(next(self.indices), self.rewards, num_actions=(2, 4)) for _ in range(num_groups))
        kept = tuple(group for group in groups if keep(group))
        return Harvest(kept, {"flat": len(groups) - len(kept)}, len(groups), groups)

    def metrics(self):
        return {"perf/workers": 2.0}

    # Learner

    def update(self, batch, settings):
        self.diary.append("update")
        self.settings.append(settings)
        self.batches.append(batch)
        skipped = next(self.endings, "")
        rows = tuple(row.behaviour_logp_T for row in batch.rows)
        return UpdateResult(0.5, 1.0, settings.lr, self.kl, skipped, {}, rows)

    # Weight sync, checkpoints, evaluator, tracker

    def publish(self, learner, *, version):
        assert learner is self
        self.diary.append(f"publish {version}")
        return {}

    def restore(self, learner, rollouts):
        assert learner is self and rollouts is self
        self.diary.append("restore")
        return self.restored

    def save(self, progress, learner, rollouts):
        self.diary.append(f"save {progress.step}")

    def evaluate(self):
        self.diary.append("evaluate")
        return {"eval/all/mean@4": 0.5}

    def log(self, step, metrics):
        self.diary.append(f"log {step}")
        self.logged[step] = dict(metrics)

    def rollouts(self, step, records):
        self.diary.append(f"rollouts {step}")
        self.records[step] = records

    def histograms(self, step, histograms):
        assert histograms["response_length/histogram"].counts

    def alarm(self, step, metric, text):
        pass

    def train(self, temperature=1.0, lr=1e-3, **config):
        defaults = {"groups_per_step": 2, "group_size": 2, "updates_per_step": 1, "eval_every": 0, "save_every": 0}
        parts = Parts(
            learner=self,
            rollouts=self,
            weights=self,
            checkpoints=self,
            evaluator=self,
            tracker=self,
            decode=lambda ids: "x" * len(ids),
            evidence=self.evidence,
            stop=self.stop,
        )
        return train(TrainerConfig(**defaults | config), LearnerConfig(lr=lr), parts, temperature=temperature)


@pytest.fixture
def run(make_group):
    return FakeRun(make_group)


def test_the_order_of_a_run(run):
    progress = run.train(steps=2, updates_per_step=2)
    assert run.diary == [
        *("restore", "publish 0", "evaluate", "log 0"),
        *("take 2 from 0", "update", "update", "publish 1", "rollouts 1", "log 1"),
        *("take 2 from 1", "update", "update", "publish 2", "evaluate", "rollouts 2", "log 2", "save 2"),
    ]
    # 2 groups of 2 trajectories with 2 and 4 actions, in both steps
    assert progress == Progress(step=2, generated_tokens=24, trained_tokens=24, barren_steps=0)


def test_a_run_that_is_asked_to_stop_saves_the_step_it_is_in(run):
    log = run.log
    run.log = lambda step, metrics: (log(step, metrics), step == 2 and run.stop.ask("somebody wishes so"))
    with pytest.raises(RunStopped, match="stopped after step 2, whose checkpoint is complete: somebody wishes so"):
        run.train(steps=5)
    assert run.diary[-2:] == ["log 2", "save 2"]


def test_a_run_that_is_asked_to_stop_in_its_cold_start_makes_no_step(run):
    run.stop.ask("it is late")
    with pytest.raises(RunStopped, match="after step 0"):
        run.train(steps=5)
    assert run.diary == ["restore"]


def test_a_run_that_is_asked_to_stop_in_its_first_evaluation_makes_no_step(run):
    log = run.log
    run.log = lambda step, metrics: (log(step, metrics), run.stop.ask("it is late"))
    with pytest.raises(RunStopped, match="stopped after step 0"):
        run.train(steps=3)
    assert run.diary[-1] == "log 0"


def test_a_run_that_is_asked_to_stop_in_its_last_step_is_finished(run):
    log = run.log
    run.log = lambda step, metrics: (log(step, metrics), step == 2 and run.stop.ask("it is late"))
    assert run.train(steps=2).step == 2
    assert run.diary[-1] == "save 2"


def test_a_resumed_run_goes_on_where_it_stood(make_group):
    run = FakeRun(make_group, restored=Progress(step=7, generated_tokens=100, trained_tokens=90, barren_steps=0))
    assert run.train(steps=8, max_staleness=2) == Progress(8, 112, 102, 0)
    assert run.diary[:3] == ["restore", "publish 7", "take 2 from 5"]
    assert run.diary[-4:] == ["evaluate", "rollouts 8", "log 8", "save 8"]


def test_a_finished_run_does_nothing_more(make_group):
    run = FakeRun(make_group, restored=Progress(step=3))
    assert run.train(steps=3) == Progress(step=3)
    assert run.diary == ["restore", "publish 3"]


def test_evaluation_and_checkpoints_come_when_due_and_at_the_end(run):
    run.train(steps=7, eval_every=3, save_every=2)
    assert [step for step, metrics in run.logged.items() if "eval/all/mean@4" in metrics] == [0, 3, 6, 7]
    assert [entry for entry in run.diary if entry.startswith("save")] == ["save 2", "save 4", "save 6", "save 7"]
    # A step is logged before it is saved: what a resumed run repeats is never missing.
    assert run.diary.index("log 2") < run.diary.index("save 2")


@pytest.mark.parametrize("every, steps", [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (5, [])])
def test_due(every, steps):
    assert [step for step in range(1, 5) if due(every, step)] == steps


def test_updates_get_the_schedules_values_of_their_step(run):
    run.train(
        steps=3,
        lr=((0, 0.0), (2, 2e-3)),
        temperature=0.7,
        ratio_cap=((0, 5.0), (1, 5.0), (2, 3.0)),
        ratio_floor=0.1,
        mask_above=1.28,
        mask_below=0.8,
        kl_stop=0.03,
        kl_step=0.01,
    )
    assert [settings.lr for settings in run.settings] == pytest.approx([0.0, 1e-3, 2e-3])
    assert [settings.ratio_cap for settings in run.settings] == [5.0, 5.0, 3.0]
    last = dataclasses.replace(run.settings[-1], lr=0.0, ratio_cap=1.0)
    assert dataclasses.asdict(last) == {
        "lr": 0.0,
        "ratio_cap": 1.0,
        "ratio_floor": 0.1,
        "mask_above": 1.28,
        "mask_below": 0.8,
        "max_grad_norm": 1.0,
        "temperature": 0.7,
        "router_aux_coef": 0.0,
        "kl_stop": 0.03,
        "kl_step": 0.01,
    }


def test_the_batches_carry_the_aggregation_the_normalisation_and_the_age(make_group):
    run = FakeRun(make_group, rewards=(3.0, -1.0))
    run.train(steps=3, groups_per_step=4, updates_per_step=2, aggregation="sample", normalise="mean")
    assert len(run.batches) == 6
    for number, batch in enumerate(run.batches):
        (row,) = batch.rows
        # 4 answers of 2 and 4 tokens, by their rewards of 3 and -1
        by_hand = {(2.0, 1 / 8), (-2.0, 1 / 16)}
        assert set(zip(row.advantage_T[row.mask_T].tolist(), row.weight_T[row.mask_T].tolist(), strict=True)) == by_hand
        assert set(row.age_T[row.mask_T]) == {number // 2}  # all were sampled by version 0
        assert len({group for group, _ in row.members}) == 2


def test_kl_stop_ends_the_step_and_not_the_run(make_group):
    run = FakeRun(make_group, endings=["", "kl_stop"])
    progress = run.train(steps=2, groups_per_step=4, updates_per_step=4)
    assert run.diary.count("update") == 2 + 4
    assert run.logged[1]["drift/skipped_updates"] == 3 and run.logged[2]["drift/skipped_updates"] == 0
    assert run.logged[1]["tokens/trained"] == 6 and progress.trained_tokens == 6 + 24
    assert "publish 1" in run.diary
    ratios = [record["ratio"] for record in run.records[1]]
    assert sum(ratio is None for ratio in ratios) == 4, "two of four groups were never looked at by the learner"


def test_a_few_updates_that_are_not_finite_are_survived(make_group):
    run = FakeRun(make_group, endings=["nonfinite", "", "nonfinite", ""])
    run.train(steps=1, groups_per_step=4, updates_per_step=4, max_nonfinite_updates=3)
    assert run.diary.count("update") == 4 and run.logged[1]["drift/skipped_updates"] == 2


def test_updates_that_are_not_finite_are_counted_over_steps(make_group):
    run = FakeRun(make_group, endings=["nonfinite"] * 9)
    with pytest.raises(CispoError, match=r"step 3: 3 updates in a row"):
        run.train(steps=9, groups_per_step=1, updates_per_step=1, max_nonfinite_updates=3)


def test_too_many_of_them_end_the_run_before_anything_is_overwritten(make_group):
    run = FakeRun(make_group, endings=["", *["nonfinite"] * 3])
    with pytest.raises(CispoError, match=r"step 1: 3 updates in a row had a loss or gradient .* lower learner\.lr"):
        run.train(steps=5, groups_per_step=4, updates_per_step=4, max_nonfinite_updates=3, save_every=1)
    assert run.diary[-1] == "update"


def test_the_batches_of_the_last_step_that_were_not_finite_are_kept(make_group, tmp_path):
    run = FakeRun(make_group, endings=["", "nonfinite", "nonfinite"])
    run.evidence = tmp_path / "nonfinite"
    with pytest.raises(CispoError, match=rf"step 1: .*, whose batches are in {run.evidence}/step_1; lower"):
        run.train(steps=5, groups_per_step=3, updates_per_step=3, max_nonfinite_updates=2)
    files = sorted(run.evidence.glob("*/*"))
    assert [file.name for file in files] == ["update_1.npz", "update_2.npz"]
    for file, batch in zip(files, run.batches[1:], strict=True):
        for row, kept in zip(batch.rows, load_batch(file).rows, strict=True):
            for field in dataclasses.fields(row):
                np.testing.assert_array_equal(getattr(kept, field.name), getattr(row, field.name))


def test_steps_without_signal_end_the_run_with_a_sentence(make_group):
    run = FakeRun(make_group, rewards=(1.0, 1.0))
    with pytest.raises(
        NoSignal, match="step 3: no group to learn from for 3 steps in a row; of 2 groups drawn .* 2 flat"
    ):
        run.train(steps=9, max_barren_steps=3, save_every=1)
    assert run.diary.count("update") == 0
    assert list(run.logged) == [0, 1, 2] and run.logged[2]["groups/flat_fraction"] == 1.0
    assert "save 2" in run.diary and "save 3" not in run.diary


def test_barren_steps_are_counted_over_a_restart_and_only_in_a_row(make_group):
    flat = FakeRun(make_group, rewards=(1.0, 1.0), restored=Progress(step=4, barren_steps=2))
    with pytest.raises(NoSignal, match="step 5"):
        flat.train(steps=9, max_barren_steps=3)
    fine = FakeRun(make_group, restored=Progress(step=4, barren_steps=2))
    assert fine.train(steps=5, max_barren_steps=3).barren_steps == 0


@pytest.mark.parametrize("kl, warned", [(0.3, True), (0.05, False), (math.nan, False)])
def test_drift_above_the_threshold_is_said_once_a_step(make_group, caplog, kl, warned):
    with caplog.at_level(logging.WARNING, logger="cispo"):
        FakeRun(make_group, kl=kl).train(steps=2, kl_warn=0.1)
    said = [record.getMessage().split(",")[0] for record in caplog.records]
    assert said == [f"step {step}: drift/kl_p95 is 0.3" for step in (1, 2)] * warned


def test_every_fault_of_a_configuration_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        TrainerConfig(group_size=1, aggregation="mean", normalise="max", ratio_cap=0.2, mask_above=0.28, kl_stop=-1.0)
    text = str(error.value)
    assert len(error.value.faults) == 6
    for word in (
        "group_size must be at least 2",
        "aggregation",
        "normalise",
        "ratio_cap=1.2",
        "mask_above=1.28",
        "kl_stop",
    ):
        assert word in text


@pytest.mark.parametrize("cap", [0.2, ((0, 3.0), (10, 0.5)), ((3, 3.0), (3, 2.0)), ()])
def test_a_cap_that_is_ever_below_one_is_refused(cap):
    with pytest.raises(ConfigError, match="ratio_cap must be"):
        TrainerConfig(ratio_cap=cap)
