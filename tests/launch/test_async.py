"""Asynchronous runs over Ray: bounded age, every prompt exactly once, whoever is killed, and partial rollouts kept."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from configs.fleet import ClusterConfig
from launch.cli import main
from launch.cluster import cluster
from rollout.ledger_file import read_ledger
from tests.launch.processes import killer

SMALLEST = ClusterConfig(num_workers=1, object_store_mb=100)
ASYNC = (
    "cluster=local",
    "cluster.num_workers=2",
    "max_staleness=2",
    "steps=6",
    "eval_every=0",
    "sampling.max_new_tokens=24",
    "engine.max_length=48",
)


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Ray is started once; the runs of this module find it and leave it as it is."""
    with cluster(SMALLEST):
        yield


def trained(folder):
    """Prompt ids of each step, in order, without repetitions of members."""
    steps = []
    for path in sorted((folder / "rollouts").glob("step_*.jsonl"), key=lambda path: int(path.stem[5:])):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        steps.append(list(dict.fromkeys(record["prompt_id"] for record in records)))
    return steps


def check_that_nothing_was_lost(folder, num_steps):
    """What was trained, with what the last checkpoint holds, is what was drawn: no prompt lost, none twice."""
    cursor, entries = read_ledger(folder / "checkpoints" / f"step_{num_steps}" / "rollouts")
    taken = [prompt for step in trained(folder) for prompt in step]
    everyone = sorted([*taken, *(entry.prompt.id for entry in entries)])
    # With draw_limit=1 a group whose rewards are all the same is not replaced, and not recorded: one in 340 by chance.
    num_flat = 4 * num_steps - len(taken)
    assert 0 <= num_flat <= 3, f"{num_flat} groups without signal in {num_steps} steps"
    assert len(set(taken)) == len(taken), "a prompt was trained on twice"
    assert len(everyone) == len(set(everyone)) == cursor["next_index"] - num_flat, "a prompt was lost"


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="on"),
        pytest.param(("rollout.on_new_weights=cut", "engine.stale_states=recompute"), marks=pytest.mark.slow, id="cut"),
    ],
)
def test_groups_are_as_old_as_allowed_and_each_is_taken_once(tmp_path, small, more):
    assert main(["train", *small(tmp_path, *ASYNC, *more, "name=a")]) == 0
    lines = metrics_of(tmp_path / "a")[1:]
    assert max(line["staleness/max"] for line in lines) == 2, "the workers did not run ahead"
    assert all(line["groups/stale_fraction"] == 0 and line["groups/drawn"] == 4 for line in lines)
    assert {line["perf/workers"] for line in lines} == {2}
    watched = [line["mismatch/eval_logp_abs_diff_mean"] for line in lines if "mismatch/eval_logp_abs_diff_mean" in line]
    assert watched and all(0 < difference < 1e-5 for difference in watched), "nobody compares sampler and learner"
    check_that_nothing_was_lost(tmp_path / "a", 6)


def test_a_killed_worker_s_groups_go_to_the_others(tmp_path, small, caplog):
    killer("ray::rollout_1", tmp_path / "a", 2)
    with caplog.at_level(logging.WARNING):
        assert main(["train", *small(tmp_path, *ASYNC, "name=a")]) == 0
    assert "The process of rollout-1 died" in caplog.text
    check_that_nothing_was_lost(tmp_path / "a", 6)


@pytest.mark.slow
def test_after_a_kill_of_everything_the_run_goes_on_with_its_partial_rollouts(tmp_path, small):
    """Long sequences on few slots, so that a checkpoint finds some half done."""
    overrides = small(
        tmp_path, *ASYNC, "name=a", "engine.num_slots=4", "sampling.max_new_tokens=120", "engine.max_length=160"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    run = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "train", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    folder = tmp_path / "a"
    end = time.monotonic() + 240
    while not (folder / "checkpoints" / "step_2").exists():
        assert run.poll() is None
        assert time.monotonic() < end, "the run made no checkpoint in time"
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(timeout=60)
    _, entries = read_ledger(folder / "checkpoints" / "step_2" / "rollouts")
    assert [entry for entry in entries if entry.begun or entry.group], "the checkpoint found nothing under way"
    assert main(["train", "--resume", str(folder)]) == 0
    check_that_nothing_was_lost(folder, 6)
