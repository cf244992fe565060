"""The example of a reward of one's own: what it pays, and a run with it."""

import json
from pathlib import Path

from launch.cli import main
from rollout.own_module import load_module

FILE = Path(__file__).parents[2] / "examples" / "custom_reward" / "shorter_is_better.py"


def test_of_two_right_answers_the_shorter_is_paid_more():
    reward = load_module(str(FILE)).reward
    paid = [reward("1+1=", "2", "2", correct=right, num_actions=n) for right, n in ((True, 4), (True, 8), (False, 1))]
    assert paid == [0.5, 0.375, 0.0]


def test_a_run_is_paid_by_it(tmp_path):
    words = (
        "task=chain", "steps=2", "groups_per_step=2", "group_size=4", "sft.steps=20", "sft.batch_size=16",
        "cluster=inline", "cluster.num_workers=1", "evaluation.num_prompts=2", "tracking.console=false",
        "sampling.max_new_tokens=12", "engine.max_length=32", f"rewards.custom={FILE}:reward",
    )  # fmt: skip
    assert main(["train", *words, f"runs_folder={tmp_path}", "name=run"]) == 0
    records = [json.loads(line) for path in (tmp_path / "run" / "rollouts").glob("*") for line in path.open()]
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1:]:
        assert "reward/custom/mean" in json.loads(line)
    for record in records:
        assert record["parts"]["custom"] == 0.0 or record["correct"]
