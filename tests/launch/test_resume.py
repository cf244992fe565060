"""One seed, one run: repeated, or killed at any moment and resumed, it writes the same lines but for times."""

import json
import random
import shutil
import subprocess
import sys
import time

import pytest

from launch.cli import main

KILLED_AT_WRITE = """
import os, signal, sys
fsync = os.fsync
def watched(descriptor):
    if sys.argv[1] in os.readlink(f"/proc/self/fd/{descriptor}"):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = watched
from launch.cli import main
main(sys.argv[2:])
"""
"""A run that is killed as it waits for the disk to take the first file whose path holds the first argument."""


@pytest.fixture
def killed_and_resumed(tmp_path, small):
    """Starts a small run, kills it in a given way, resumes it in this process, and returns its folder."""

    def run(program, kill):
        process = subprocess.Popen(
            [sys.executable, *program, "train", *small(tmp_path, "name=killed")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        folder = tmp_path / "killed"
        kill(process, folder)
        assert process.wait(timeout=120) == -9, "the run ended before it could be killed"
        assert not (folder / "summary.json").exists()
        assert main(["train", "--resume", str(folder)]) == 0
        return folder

    return run


def kills_itself(process, folder):
    process.wait(timeout=120)


def test_a_second_run_with_the_same_seed_writes_the_same_lines(tmp_path, small, whole_run, lines_of):
    assert main(["train", *small(tmp_path, "name=again")]) == 0
    assert lines_of(tmp_path / "again") == lines_of(whole_run)


def test_another_seed_writes_others(tmp_path, small, whole_run, lines_of):
    assert main(["train", *small(tmp_path, "name=other", "seed=2", "steps=1")]) == 0
    assert lines_of(tmp_path / "other")[1] != lines_of(whole_run)[1]


def test_a_run_killed_at_a_random_moment_goes_on_as_if_it_had_not_been(killed_and_resumed, whole_run, lines_of):
    chance = random.Random(time.time_ns())
    num_lines, pause = chance.randint(1, 4), chance.uniform(0.0, 0.1)
    print(f"killed {pause:.3f} s after line {num_lines} of metrics.jsonl")

    def kill(process, folder):
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= num_lines):
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()

    folder = killed_and_resumed(["-m", "launch.cli"], kill)
    assert lines_of(folder) == lines_of(whole_run)


@pytest.mark.parametrize(
    "write",
    [
        ".step_0.unfinished/manifest.json",  # no checkpoint yet: the run begins again
        "rollouts/.step_2.jsonl",
        ".step_4.unfinished/learner/__0_0.distcp",
    ],
)
def test_a_run_killed_while_it_writes_goes_on_as_if_it_had_not_been(write, killed_and_resumed, whole_run, lines_of):
    folder = killed_and_resumed(["-c", KILLED_AT_WRITE, write], kills_itself)
    assert lines_of(folder) == lines_of(whole_run)
    assert not list((folder / "checkpoints").glob(".*")), "the half-written checkpoint was left behind"


def test_a_resumed_run_neither_repeats_nor_loses_a_prompt(whole_run):
    prompts = []
    for step in range(1, 6):
        records = (whole_run / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()
        prompts.append(list(dict.fromkeys(json.loads(record)["prompt_id"] for record in records)))
    drawn = [prompt for step in prompts for prompt in step]
    assert len(set(drawn)) == len(drawn)


def test_a_finished_run_is_prolonged_from_its_last_step(tmp_path, small, whole_run, lines_of):
    assert main(["train", *small(tmp_path, "name=short", "steps=3", "eval_every=3")]) == 0
    assert main(["train", "--resume", str(tmp_path / "short"), "steps=5"]) == 0
    # Both evaluate after steps 3 and 5: the short run because it ended there, the long one because it was due.
    assert lines_of(tmp_path / "short") == lines_of(whole_run)


def test_a_moved_run_goes_on_where_it_is(tmp_path, small, whole_run, lines_of):
    assert main(["train", *small(tmp_path, "name=here", "steps=2")]) == 0
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert main(["train", "--resume", str(tmp_path / "there"), "steps=3"]) == 0
    assert not (tmp_path / "here").exists()
    assert len((tmp_path / "there" / "metrics.jsonl").read_text().splitlines()) == 4
