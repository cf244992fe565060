"""What a plan says, against numbers worked out by hand and against what a run then writes."""

import dataclasses
import json

import pytest

from cispo.learner.config import LearnerConfig
from configs.schema import ModelConfig, RunConfig
from launch.compose import compose
from launch.estimate import checkpoint_bytes, export_bytes
from launch.explain import Facts, explain
from launch.plan import lines
from launch.plan_words import num_due, schedule_text, short, size
from launch.useless import useless
from model import HybridConfig
from model.layout import Layout

SHAPE = HybridConfig()


def pairs_of(config, facts=None):
    """What the plan says, by name."""
    plan = explain(config, facts or Facts(SHAPE))
    return {what: how_much for pairs in plan.sections.values() for what, how_much in pairs}


def config_of(*overrides):
    return compose(["cluster=inline", *overrides])


def test_a_step_is_counted_in_prompts_trajectories_updates_and_tokens():
    told = pairs_of(
        config_of(
            "groups_per_step=8",
            "group_size=4",
            "updates_per_step=2",
            "engine.max_length=100",
            "sampling.max_new_tokens=60",
            "learner.max_row_tokens=400",
            "rollout.draw_limit=2",
        )
    )
    assert told["trajectories"] == "8 prompts x 4 samples = 32 trajectories"
    assert told["tokens"].startswith("at most 3.2k, prompts included")
    assert "1.92k of them sampled" in told["tokens"]
    assert told["updates"] == "2 updates of 4 groups = 16 trajectories, at most 1.6k tokens each"
    assert told["rows"].startswith("about 4 of 400 tokens")
    assert "at most 16 prompts are drawn" in told["flat groups"]


def test_a_run_is_counted_over_its_schedules_files_and_saves():
    overrides = ["steps=10", "groups_per_step=8", "group_size=4", "eval_every=4", "save_every=5", "sft.steps=0"]
    files = ["task=files", "task.files.mine.path=x.jsonl", "task.mixture={mine: 3, chain: 1}"]
    window = "sampling.max_new_tokens=[[0,10],[4,10],[5,20]]"
    told = pairs_of(config_of(*overrides, *files, window), Facts(SHAPE, {"mine": 30}, num_held_out=7))
    assert told["sampled tokens"].startswith(f"at most {short(32 * (5 * 10 + 5 * 20))}")
    assert told["prompts of mine"].startswith("75% of draws; 30 prompts, each 2 times")
    assert told["prompts of chain"] == "25% of draws; made anew for every draw"
    assert told["evaluations"].startswith("4, every 4 steps")  # before the first, after 4, 8 and 10
    assert told["checkpoints"].startswith("3, every 5 steps")


@pytest.mark.parametrize(
    ("every", "steps", "times"), [(0, 10, 2), (0, 0, 1), (3, 10, 5), (5, 10, 3), (20, 10, 2), (1, 2, 3), (5, 0, 1)]
)
def test_how_often_the_loop_evaluates_and_saves(every, steps, times):
    from cispo.trainer import due

    assert num_due(every, steps) == times
    assert times == 1 + sum(step == steps or due(every, step) for step in range(1, steps + 1))


def test_the_distance_from_sampling_to_learning_is_counted_in_updates():
    told = pairs_of(config_of("updates_per_step=4", "max_staleness=2"))
    assert "up to 2 versions old" in told["staleness"]
    assert "up to 11 updates between" in told["staleness"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["ratio_cap=3", "mask_above=inf", "mask_below=0"], "CISPO"),
        (["ratio_cap=3", "mask_above=1.28", "mask_below=0.8"], "CISPO with the unified mask"),
        (["ratio_cap=inf", "mask_above=1.28", "mask_below=0.8"], "PPO's clipping, as in GRPO and DAPO"),
        (["ratio_cap=1", "ratio_floor=1"], "REINFORCE"),
        (["ratio_cap=inf", "mask_above=inf", "mask_below=0"], "policy gradient without a cap"),
    ],
)
def test_the_objective_has_the_name_that_people_know(overrides, name):
    assert pairs_of(config_of(*overrides))["name"].startswith(name)


def test_the_band_and_the_mask_are_said():
    told = pairs_of(config_of("ratio_cap=[[0,3],[10,2]]", "mask_above=inf", "mask_below=0"))
    assert told["ratio"] == "clipped to [0, 3 (step 0) -> 2 (step 10)], against the policy that sampled"
    assert told["mask"] == "none: every token keeps its gradient"
    assert schedule_text(0.5) == "0.5"


def test_what_the_ranks_hold_is_said():
    learner = LearnerConfig(kind="megatron", num_ranks=8, layout=Layout(tensor=2, pipeline=2))
    told = pairs_of(dataclasses.replace(RunConfig(), learner=learner))
    assert told["layout"].startswith("megatron on 8 ranks (tensor=2 pipeline=2 expert=1 context=1)")
    assert told["shards"].startswith("2 ")
    assert "shards" not in pairs_of(RunConfig())


def test_a_family_whose_sizes_nobody_knows_is_told_and_not_guessed():
    shape = compose(["model=tiny_ring"]).model.shape
    told = pairs_of(dataclasses.replace(RunConfig(), model=ModelConfig(shape=shape)), Facts(shape))
    assert "not known" in told["memory"]
    assert "memory of each" not in told


def test_sizes_and_counts_have_three_digits():
    assert [short(12), short(1500), short(2.5e9)] == ["12", "1.5k", "2.5G"]
    assert [size(12), size(19.94e9), size(5.44e12)] == ["12 B", "19.9 GB", "5.44 TB"]


def test_a_run_writes_its_plan_and_its_files_have_the_sizes_that_were_said(whole_run):
    text = (whole_run / "plan.txt").read_text()
    assert "4 prompts x 4 samples = 16 trajectories" in text
    config = json.loads((whole_run / "export" / "config.json").read_text())
    shape = dataclasses.replace(compose(["model=tiny"]).model.shape, vocab_size=config["vocab_size"])
    (states,) = (whole_run / "checkpoints" / "step_5" / "learner").glob("*.distcp")
    assert states.stat().st_size == pytest.approx(checkpoint_bytes(shape), rel=0.15)  # and a header for each tensor
    (weights,) = (whole_run / "export").glob("*.safetensors")
    assert weights.stat().st_size == pytest.approx(export_bytes(shape), rel=0.02)


def test_the_plan_alone_starts_nothing_and_makes_no_folder(tmp_path, small, capsys):
    from launch.cli import main

    assert main(["plan", *small(tmp_path / "runs", "name=a")]) == 0
    assert "4 prompts x 4 samples = 16 trajectories" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


USELESS = {
    "every ratio is 1": ["updates_per_step=1"],
    "proximal policy is always 1": ["updates_per_step=1", "max_staleness=1", "correction.ratio_against=proximal"],
    "ratio_floor=0.5 raises": ["ratio_floor=0.5"],
    "a group is never split": ["groups_per_step=2", "updates_per_step=4"],
    "shards without a row": ["cluster=local", "learner.num_ranks=64", "groups_per_step=4", "group_size=4"],
    "little more than their sign": ["group_size=2"],
    "nothing is learnt": ["rewards.weights={answer: 0}"],
    "eval_every=7 is more than steps=5": ["steps=5", "eval_every=7"],
    "loses all its steps": ["save_every=0"],
    "its schedule is cut": ["steps=5", "learner.lr=[[0,0],[100,1e-4]]"],
    "learner.lr is 0 throughout": ["learner.lr=0"],
    "a row of its own": ["learner.max_row_tokens=64"],
    "it never costs anything": ["rewards.soft_overlong.limit_tokens=500", "rewards.soft_overlong.buffer_tokens=5"],
    "no repetition is ever stopped": ["sampling.repetition_tokens=3000"],
    "nothing is drawn from there": ["task.files.mine.path=x.jsonl"],
    "nothing yet that rewards could sharpen": ["sft.steps=0"],
    "use the first GPU of their node": ["cluster=local", "engine.device=cuda"],
    "keeps GPUs for workers that sample on": ["cluster=local", "cluster.gpus_per_worker=1"],
    "lets workers run ahead": ["max_staleness=1"],
    "a rank of the learner may need": ["learner.device=cuda", "cluster.gpu_gb=0.001"],
    "a rollout worker may need": ["engine.device=cuda", "cluster.gpu_gb=0.001"],
    "a rank of the learner and a rollout worker, on one GPU,": [
        "cluster=local",
        "learner.device=cuda",
        "engine.device=cuda",
        "cluster.gpus_per_worker=1",
        "cluster.gpu_gb=0.1",
    ],
}


@pytest.mark.parametrize("says", sorted(USELESS))
def test_what_is_legal_and_useless_is_warned_about(says):
    config = config_of(*USELESS[says])
    assert any(says in warning for warning in useless(config, SHAPE)), useless(config, SHAPE)


@pytest.mark.parametrize("experiment", ["embedded", "tools"])
def test_the_experiments_that_run_here_are_warned_about_nothing_else_than_their_own_choice(experiment):
    warnings = useless(compose([f"experiment={experiment}"]), SHAPE)
    assert [warning for warning in warnings if "save_every=0" not in warning] == []


def test_warnings_are_lines_of_the_log():
    told = lines(explain(config_of("updates_per_step=1"), Facts(SHAPE)))
    assert any(line.startswith("warning: with one update per step and no staleness") for line in told)
