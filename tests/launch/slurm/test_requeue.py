"""The end of a job's script by itself, in bash with a scontrol of the test's own: who goes back into the queue."""

import subprocess

import pytest

from configs.slurm import SlurmConfig
from launch.compose import compose
from launch.slurm import Task, render

SCONTROL = """
scontrol() {
    echo "$*" >>"$calls"
    case "$1 $2" in
    "show hostnames") echo node1 ;;
    "show node") echo "   NodeAddr=10.0.0.1 NodeHostName=node1" ;;
    "show job") answer ;;
    esac
}
sleep() { :; }
"""
BEFORE_THE_JOB_BEGINS = '\nsay "job $SLURM_JOB_ID, start'


@pytest.fixture
def end(tmp_path):
    """end(then, ...): (status, output, calls of scontrol) of a script that goes on with `then` instead of its job."""

    def run(then, answer="echo JobState=RUNNING", setup=(), **environment):
        setting = f"slurm.setup={list(setup)}" if setup else "slurm.nodes=1"
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (tmp_path / "calls").touch()
        script = tmp_path / "job.sbatch"
        text = render(compose([setting, "cluster=ray"]), [Task(folder, ())], name="mine", script=script)
        script.write_text(
            f"calls={tmp_path}/calls\nanswer() {{ {answer}; }}\n{SCONTROL}"
            + text.split(BEFORE_THE_JOB_BEGINS)[0].replace("#!/bin/bash", "")
            + f"\n{then}\n"
        )
        known = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}
        done = subprocess.run(["bash", script], env=known | environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, (tmp_path / "calls").read_text().splitlines()

    return run


def test_it_goes_back_into_the_queue_so_many_times_without_a_new_checkpoint(end):
    limit = SlurmConfig().max_restarts
    for number in range(1, limit + 1):
        status, said, calls = end("go_on_later", SLURM_RESTART_COUNT=str(number - 1))
        assert status == 75 and f"start {number} of {limit + 1}" in said
        assert calls.count("requeue 7") == number
    status, said, calls = end("go_on_later", SLURM_RESTART_COUNT=str(limit))
    assert status == 1 and "does not go back into the queue" in said and calls.count("requeue 7") == limit


def test_a_job_that_is_submitted_anew_by_hand_has_all_its_starts(end, tmp_path):
    (tmp_path / "run" / "launch").mkdir(parents=True)
    (tmp_path / "run" / "launch" / "starts").write_text(f"none {SlurmConfig().max_restarts}\n")
    status, said, _ = end("go_on_later")
    assert status == 75 and "(start 1 of" in said


def test_a_task_of_an_array_puts_itself_back_and_not_all_of_them(end):
    """One task of every array has the job id of the array."""
    status, _, calls = end("go_on_later", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    assert status == 75
    assert [call for call in calls if call.startswith(("show job", "requeue"))] == ["show job 7_1", "requeue 7_1"]


def test_a_count_that_cannot_be_kept_ends_the_job_instead_of_repeating_it_for_ever(end, tmp_path):
    (tmp_path / "run" / "launch" / "starts").mkdir(parents=True)
    status, said, calls = end("go_on_later")
    assert status == 1 and "starts cannot be written" in said and "requeue 7" not in calls


def test_logs_that_cannot_be_made_end_the_job(end, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "launch").write_text("in the way")
    status, said, _ = end("go_on_later")
    assert status == 1 and "cannot be made; nothing is tried again" in said


def test_a_cancelled_job_stays_cancelled(end):
    status, said, calls = end("go_on_later", answer="echo JobState=CANCELLED")
    assert status == 1 and "being ended from outside (CANCELLED)" in said and "requeue 7" not in calls


def test_a_controller_that_is_silent_for_a_while_costs_no_job(end):
    silent_at_first = '(($(grep -c "show job" "$calls") > 2)) && echo JobState=RUNNING'
    status, _, calls = end("go_on_later", answer=silent_at_first)
    assert status == 75 and calls.count("show job 7") == 3 and "requeue 7" in calls


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_signal_during_the_setup_is_kept(end, signal):
    _, said, _ = end('echo "asked by $asked"', setup=[f"kill -{signal} $$"])
    assert f"asked by {signal}" in said


def test_what_the_setup_sets_does_not_end_the_script(end):
    _, said, _ = end('false; echo "still here $unknown"', setup=["set -euo pipefail"])
    assert "still here" in said
