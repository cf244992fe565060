"""The script of a job from its first line to its last, in bash, with srun and scontrol of the test's own."""

import subprocess

import pytest

from launch.compose import compose
from launch.slurm import Task, render

PROGRAMS = """
scontrol() {
    echo "$*" >>"$calls"
    case "$1 $2" in
    "show hostnames") printf 'node1\\nnode2\\n' ;;
    "show node") echo "   NodeAddr=10.0.0.1 NodeHostName=node1" ;;
    "show job") echo JobState=RUNNING ;;
    requeue*) requeue ;;
    esac
}
srun() {                                    # by what is to run: a node of Ray, the wait for all, or the run
    local words="$*"
    case "$words" in
    *"launch.ray_node head"*) ray_head ;;
    *"launch.ray_node worker"*) ray_worker ;;
    *"launch.ray_node wait"*) everybody ;;
    *"launch.cli train"*) drive ;;
    esac
}
requeue() { :; }
ray_head() { exec sleep 60; }
ray_worker() { exec sleep 60; }
everybody() { echo "all are there"; }
drive() { exec sleep 0.5; }
signal_after() { (sleep "$1" && kill -USR1 $$) & }
"""


@pytest.fixture
def job(tmp_path):
    """job(changes): (status, output, calls of scontrol) of the whole script, some functions of PROGRAMS changed."""

    def run(changes=""):
        folder = tmp_path / "run"
        (tmp_path / "calls").touch()
        script = tmp_path / "job.sbatch"
        config = compose(["cluster=ray", "slurm.nodes=2", "slurm.signal_seconds=31", "slurm.start_seconds=5"])
        text = render(config, [Task(folder, ())], name="mine", script=script)
        script.write_text(f"#!/bin/bash\ncalls={tmp_path}/calls\n{PROGRAMS}\n{changes}\n{text.split('#!/bin/bash')[1]}")
        known = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
        (folder / "launch" / "7.0").mkdir(parents=True, exist_ok=True)
        (folder / "launch" / "7.0" / "address").write_text("10.0.0.1:6379\n")
        (folder / "launch" / "7.0" / "nodes.log").touch()
        done = subprocess.run(["bash", script], env=known, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, (tmp_path / "calls").read_text().splitlines()

    return run


def test_a_run_that_ends_well_ends_the_job_and_leaves_no_token(job, tmp_path):
    status, said, calls = job()
    assert status == 0 and "the run is finished" in said and "requeue 7" not in calls
    assert not (tmp_path / "run" / "launch" / "7.0" / "token").exists()


def test_a_run_that_does_not_save_in_time_is_ended_and_goes_back(job):
    status, said, calls = job('drive() { trap "" USR1; exec sleep 50; }\nsignal_after 1.5')
    assert status == 75 and "USR1: the run is asked to save and to stop, and gets 1 s for it" in said
    assert "the run did not save in 1 s (a step takes longer: raise slurm.signal_seconds)" in said
    assert calls[-1] == "requeue 7"


def test_a_node_that_leaves_is_told_and_the_run_goes_on(job):
    status, said, _ = job("ray_worker() { exec sleep 1; }\ndrive() { exec sleep 3; }")
    assert status == 0 and said.count("node node2 left Ray; the run goes on with the others if it can") == 1


def test_a_node_that_cannot_start_is_named_with_the_end_of_its_log(job, tmp_path):
    status, said, calls = job("ray_worker() { exit 1; }\neverybody() { exec sleep 30; }")
    assert status == 75 and "node node2 could not start Ray:" in said and calls[-1] == "requeue 7"


def test_a_signal_while_nodes_are_waited_for_ends_the_wait(job):
    status, said, calls = job("everybody() { exec sleep 30; }\nsignal_after 1")
    assert status == 75 and "beginning" not in said and calls[-1] == "requeue 7"


def test_a_controller_that_does_not_take_it_back_is_told(job):
    status, said, calls = job("drive() { exit 3; }\nrequeue() { return 1; }")
    assert status == 75 and "the run ended with status 3" in said
    assert "scontrol requeue failed; go on with: cispo launch slurm --resume" in said and calls.count("requeue 7") == 4


def test_a_token_that_cannot_be_written_ends_the_job(job, tmp_path):
    (tmp_path / "run" / "launch" / "7.0").mkdir(parents=True)
    (tmp_path / "run" / "launch" / "7.0" / "token").symlink_to("/nowhere/token")
    status, said, calls = job()
    assert status == 1 and "token cannot be written; nothing is tried again" in said and "requeue 7" not in calls
