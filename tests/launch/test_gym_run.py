"""A whole small run on datasets of reasoning-gym: it learns from them, rises in difficulty and goes on after a stop."""

import json

import pytest

from launch.cli import main

pytest.importorskip("reasoning_gym")

MORE = (
    "task=gym",
    "task.mixture={gym/chain_sum: 2, gym/mini_sudoku: 1, game24: 1}",
    "task.parameters.gym.difficulty=[[0, 0], [12, 1]]",
    "engine.max_length=420",
    "evaluation.num_prompts=3",
    "eval_every=1",  # a run evaluates after its last step, wherever that is
)


def test_a_run_on_a_gym_mixture_goes_on_exactly_where_it_stopped(tmp_path, small, lines_of):
    assert main(["train", *small(tmp_path, "name=whole", "steps=4", *MORE)]) == 0
    assert main(["train", *small(tmp_path, "name=parts", "steps=2", *MORE)]) == 0
    assert main(["train", "--resume", str(tmp_path / "parts"), "steps=4"]) == 0
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")

    records = [json.loads(line.split(" ", 1)[1]) for line in lines_of(tmp_path / "whole") if line.startswith("step_")]
    assert {record["task"] for record in records} == {"gym/chain_sum", "gym/mini_sudoku", "game24"}
    metrics = [json.loads(line) for line in lines_of(tmp_path / "whole") if line.startswith("{")]
    assert {"reward/gym/chain_sum/mean", "eval/gym/mini_sudoku/mean@2"} <= set().union(*metrics)
    assert not any(line.get("verdict/system_error_fraction") for line in metrics)

    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert set(summary["eval"]["guess"]) == {"gym/chain_sum", "gym/mini_sudoku", "game24", "all"}
    assert "gym/chain_sum" in summary["eval"]["last"]["sampled"]
