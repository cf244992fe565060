"""`cispo train -m`: every combination in a folder of its own, and a run that fails costs the others nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cispo.errors import CispoError, ConfigError
from launch.cli import main
from launch.multirun import plan_sweep, run_sweep

ROOT = Path(__file__).parents[2]


def test_every_run_of_a_sweep_has_its_own_name_and_folder(tmp_path):
    jobs = plan_sweep(["seed=1,2", "learner.lr=1e-4,2e-4", f"runs_folder={tmp_path}", "name=mine"])
    assert [job.folder.relative_to(tmp_path).as_posix() for job in jobs] == [
        f"mine/seed-{seed}_lr-{rate}" for seed in (1, 2) for rate in ("0.0001", "0.0002")
    ]
    assert [(job.config.seed, job.config.learner.lr) for job in jobs] == [(1, 1e-4), (1, 2e-4), (2, 1e-4), (2, 2e-4)]


def test_a_sweep_that_nobody_named_takes_a_free_folder_and_a_named_one_a_new_one(tmp_path):
    overrides = ["seed=1,2", f"runs_folder={tmp_path}"]
    assert {job.folder.parent.name for job in plan_sweep(overrides)} == {"embedded-sweep"}
    (tmp_path / "embedded-sweep").mkdir()
    assert {job.folder.parent.name for job in plan_sweep(overrides)} == {"embedded-sweep-2"}
    assert {job.folder.parent.name for job in plan_sweep([*overrides, "name=a,b"])} == {"sweep"}
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="keeps its runs in a new folder"):
        plan_sweep([*overrides, "name=mine"])


def test_the_faults_of_all_runs_are_told_before_any_starts(tmp_path):
    with pytest.raises(ConfigError) as told:
        plan_sweep(["ratio_cap=3,0.2,0.5", "seed=1,x", f"runs_folder={tmp_path}"])
    text = "\n".join(told.value.faults)
    assert "write ratio_cap=1.2" in text
    assert "write ratio_cap=1.5" in text
    assert text.count("seed must be a whole number; got 'x'") == 1
    assert not list(tmp_path.iterdir())


def test_what_a_run_is_started_with_means_the_run_that_was_planned(tmp_path):
    folder = tmp_path / "it's a, b"
    (job,) = plan_sweep(["seed=3", f'runs_folder="{folder}"', "name=mine"])
    from launch.compose import compose

    assert compose(job.words[1:]) == job.config
    assert job.folder == folder / "mine" / "run"


def test_a_sweep_goes_on_after_a_failure_and_names_it_at_the_end(tmp_path, small, capsys):
    reward = tmp_path / "reward.py"
    reward.write_text("def judge(prompt, text, reference, **info):\n    return len(text) % 3\n")
    command = small(tmp_path / "runs", "steps=1", "sft.steps=0", "eval_every=0", "name=mine", "task.mixture={chain: 1}")
    swept = f"rewards.custom={tmp_path}/nobody.py:judge,{reward}:judge"
    assert main(["train", "-m", *command, swept]) == 1
    output = capsys.readouterr()
    (finished,) = (tmp_path / "runs" / "mine").glob("*/summary.json")
    assert yaml.safe_load((finished.parent / "config.yaml").read_text())["rewards"]["custom"] == f"{reward}:judge"
    assert "1 of 2 runs of the sweep failed: " in output.err
    assert "exit status 1" in output.err
    assert finished.parent.name[:20] in output.out  # what came of it is shown at the end


def test_one_that_is_killed_is_a_failure_too(tmp_path, monkeypatch):
    jobs = plan_sweep(["seed=1,2", f"runs_folder={tmp_path}"])
    ending = tmp_path / "ends.py"
    ending.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    from launch import multirun

    monkeypatch.setattr(multirun, "COMMAND", (str(ending),))
    told = []
    with pytest.raises(CispoError, match=r"2 of 2 runs of the sweep failed: .*killed by signal 9"):
        run_sweep(jobs, told.append)
    assert len([line for line in told if "the sweep goes on" in line]) == 2


def test_a_sweep_without_m_is_explained(capsys):
    assert main(["train", "seed=1,2"]) == 1
    assert "`cispo train -m` makes" in capsys.readouterr().err


def test_options_that_exclude_each_other_are_told(tmp_path, capsys):
    assert main(["train", "-m", "--cfg", "seed=1,2"]) == 1
    assert "takes" not in (error := capsys.readouterr().err)
    assert "neither --resume nor --cfg" in error
    assert main(["train", "--package", "learner"]) == 1
    assert "write --cfg job --package learner" in capsys.readouterr().err


CHILD = """
import pathlib, sys, time
pathlib.Path(sys.argv[1], "began").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1.5)
    pathlib.Path(sys.argv[1], "closed").touch()
    sys.exit(130)
"""
SWEEP = f"""
import os, sys
from launch import multirun
try:
    multirun._made([sys.executable, "-c", {CHILD!r}, sys.argv[1]], os.environ)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_leaves_the_run_the_time_to_close(tmp_path):
    with subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path)], cwd=ROOT, start_new_session=True) as sweep:
        end = time.monotonic() + 60
        while not (tmp_path / "began").exists():
            assert sweep.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does
        assert sweep.wait(timeout=60) == 130
    assert (tmp_path / "closed").exists()
