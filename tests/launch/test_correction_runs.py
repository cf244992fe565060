"""Whole runs with corrections: the proximal ratio with masks, and experts replayed from the engine to the learner."""

import json

import pytest

from launch.cli import main


def steps_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]


def test_a_run_with_the_proximal_ratio(tmp_path, small):
    more = ("correction.ratio_against=proximal", "correction.token_mask_below=0.5", "correction.token_mask_above=5")
    assert main(["train", *small(tmp_path, "name=a", "steps=3", "max_staleness=1", *more)]) == 0
    steps = steps_of(tmp_path / "a")
    assert len(steps) == 3 and steps[0]["drift/proximal_kl"] < 1e-6
    assert steps[0]["correction/weight_mean"] == pytest.approx(1, abs=1e-4), "nobody is off-policy in the first step"
    for step in steps:
        assert 0 <= step["correction/masked_token_fraction"] < 0.5 and step["timing_s/proximal"] > 0
    assert any(step["staleness/max"] == 1 for step in steps)
    assert max(step["drift/proximal_kl"] for step in steps) > 1e-5


def test_a_run_that_replays_experts(tmp_path, small):
    """Within a step without staleness the first update sees the sampler's weights: hardly a choice would differ."""
    more = ("steps=2", "correction.replay_experts=true")
    assert main(["train", *small(tmp_path, "name=b", *more)]) == 0
    for step in steps_of(tmp_path / "b"):
        assert 0 <= step["moe/replay_changed_fraction"] < 0.2
        assert step["mismatch/logp_abs_diff_max"] < 1e-4
    assert main(["train", *small(tmp_path, "name=c", "updates_per_step=1", *more)]) == 0
    assert all(step["moe/replay_changed_fraction"] < 1e-3 for step in steps_of(tmp_path / "c"))


def test_a_behaviour_ratio_and_a_truncated_weight_are_refused_together(tmp_path, small, capsys):
    assert main(["train", *small(tmp_path, "name=d", "correction.tis_cap=2")]) == 1
    assert "corrects the same difference already" in capsys.readouterr().err
