"""Real jobs of a real Slurm of two nodes: submitted, trained, signalled, put back, resumed, finished."""

import json

import pytest

from launch.cli import main
from rollout.ledger_file import read_ledger

SLOW_REWARD = '''
import time

def slow(prompt, text, reference, **info):
    """Makes a step last for seconds, so that a time limit of minutes falls into the run."""
    time.sleep(1.0)
    return sum(text.encode()) % 7 / 7
'''


def submitted(capsys, *words):
    """The id of the job that `cispo launch slurm` submits."""
    assert main(["launch", "slurm", *words]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    return told.split()[1], told


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_whole(folder, steps):
    """Every step once, and every prompt trained on once."""
    assert steps_of(folder) == list(range(steps + 1))
    cursor, entries = read_ledger(folder / "checkpoints" / f"step_{steps}" / "rollouts")
    assert cursor["next_index"] - len(entries) == steps * 4, "a prompt was lost or taken twice"
    assert (folder / "summary.json").exists()


def at_line(slurm, job, folder, number, seconds=120):
    """Wait for a line of metrics.jsonl."""
    metrics = folder / "metrics.jsonl"
    log = folder / "launch" / f"slurm-{job}.log"
    slurm.wait_for(job, lambda *_: metrics.exists() and metrics.read_text().count("\n") >= number, seconds, log)


def test_a_job_trains_over_two_nodes_and_its_script_is_kept(slurm, capsys, tmp_path, job):
    number, told = submitted(capsys, *job(tmp_path, "name=a", "steps=2"))
    folder = tmp_path / "a"
    log = folder / "launch" / f"slurm-{number}.log"
    token, modes, sampling = folder / "launch" / f"{number}.0" / "token", set(), set()

    def is_over(state, _):
        sampling.update(node for node in ("node1", "node2") if slurm.works_on(node, "rollout"))
        if token.exists():
            modes.add(token.stat().st_mode & 0o777)
        return state not in ("PENDING", "RUNNING", "COMPLETING")

    slurm.wait_for(number, is_over, 150, log)
    assert slurm.state(number) == ("COMPLETED", 0), log.read_text()
    assert "all 2 nodes have joined Ray" in log.read_text() and f"the run is finished: {folder}" in log.read_text()
    assert_whole(folder, 2)
    assert sampling == {"node1", "node2"}, "a node stood idle"
    assert (folder / "launch" / "job").read_text().strip() == number
    assert modes == {0o600} and not token.exists(), "others could use the job's Ray"
    assert f"scancel {number}" in told and str(log) in told
    assert (folder / "launch" / "job.sbatch").read_text().startswith("#!/bin/bash")
    assert slurm.processes_of("node1") == slurm.processes_of("node2") == [], "Ray was left behind"


def test_a_request_that_the_cluster_cannot_meet_is_refused_with_its_numbers(slurm, capsys, tmp_path, job):
    words = job(
        tmp_path, "name=a", "slurm.partition=brief", "slurm.time=1:00:00", "slurm.gpus_per_node=8",
        "learner.device=cuda", "slurm.memory=64G", "slurm.account=chemistry", "slurm.constraint=h100",
        "cluster.num_workers=4",
    )  # fmt: skip
    assert main(["launch", "slurm", *words]) == 1
    told = capsys.readouterr().err
    for fault in (
        "slurm.nodes=2 is more than the 1 that a job in partition brief may have",
        "slurm.time=1:00:00 is over the limit of partition brief, 00:10:00",
        "slurm.gpus_per_node=8 is more than the 0 that the best node",
        "slurm.memory=64G (65536 MiB) is more than the 8000",
        "slurm.account=chemistry may not use partition brief",
        "slurm.constraint=h100 is no feature of partition brief",
    ):
        assert fault in told
    assert main(["launch", "slurm", *job(tmp_path, "name=a", "slurm.partition=debgu")]) == 1
    assert "is not one of this cluster: did you mean 'debug'?" in capsys.readouterr().err
    assert main(["launch", "slurm", *job(tmp_path, "name=a", "slurm.constraint=small")]) == 1
    assert "more than the 1 nodes of partition debug that have it all" in capsys.readouterr().err
    either = job(tmp_path, "name=a", "slurm.partition='brief,debug'")
    assert main(["launch", "slurm", "--dry-run", *either]) == 0, capsys.readouterr().err
    assert "#SBATCH --partition=brief,debug" in capsys.readouterr().out
    assert slurm.ask("squeue", "-h") == "" and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_saves_before_its_limit_goes_back_and_finishes(slurm, capsys, tmp_path, job):
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    limits = ("slurm.time=2", "slurm.signal_seconds=61", f"rewards.custom={tmp_path}/slow.py:slow")
    words = job(tmp_path, "name=a", "steps=24", "save_every=0", *limits)
    own = ("task=", "sft.steps=")  # as in the embedded default: both tasks, the sandbox, and a cold start
    number, _ = submitted(capsys, *(word for word in words if not word.startswith(own)), "sft.steps=10")
    log = tmp_path / "a" / "launch" / f"slurm-{number}.log"
    slurm.wait_for(number, lambda state, restarts: state == "PENDING" and restarts, 300, log)
    assert main(["launch", "slurm", "--resume", str(tmp_path / "a")]) == 1
    assert f"job {number} of" in capsys.readouterr().err, "a second job could have begun while the first one waits"
    slurm.wait_for(number, lambda state, _: state in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"), 800, log)
    state, restarts = slurm.state(number)
    assert state == "COMPLETED" and restarts >= 1, log.read_text()
    assert (
        "USR1: the run is asked to save" in log.read_text() and "back into the queue from checkpoint" in log.read_text()
    )
    assert_whole(tmp_path / "a", 24)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_fails_costs_the_job_a_restart(slurm, capsys, tmp_path, job):
    number, _ = submitted(capsys, *job(tmp_path, "name=a", "steps=12", "save_every=1"))
    folder = tmp_path / "a"
    log = folder / "launch" / f"slurm-{number}.log"
    at_line(slurm, number, folder, 4)
    slurm.down("node2")
    slurm.ask("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    slurm.wait_for(number, lambda state, restarts: state == "PENDING" and restarts == 1, 60, log)
    slurm.up("node2")
    slurm.ask("scontrol", "update", "nodename=node2", "state=idle")
    slurm.wait_for(number, lambda state, _: state in ("COMPLETED", "FAILED", "CANCELLED"), 300, log)
    assert slurm.state(number) == ("COMPLETED", 1), log.read_text()
    assert "going on with" in log.read_text()
    assert_whole(folder, 12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_start_that_always_fails_ends_with_a_sentence_and_a_cancelled_job_stays_so(slurm, capsys, tmp_path, job):
    broken = ("slurm.max_restarts=1", "slurm.interface=nosuch0")
    number, _ = submitted(capsys, *job(tmp_path, "name=a", "steps=2", *broken))
    log = tmp_path / "a" / "launch" / f"slurm-{number}.log"
    slurm.wait_for(number, lambda state, _: state in ("COMPLETED", "FAILED"), 200, log)
    assert slurm.state(number) == ("FAILED", 1)
    assert "2 starts in a row ended at checkpoint none, and slurm.max_restarts=1" in log.read_text()
    assert "could not start Ray" in log.read_text()
    assert "finds no IPv4 address by slurm.interface=nosuch0" in log.read_text()

    number, _ = submitted(capsys, *job(tmp_path, "name=b", "steps=100"))
    at_line(slurm, number, tmp_path / "b", 2)
    slurm.ask("scancel", number)
    slurm.wait_for(number, lambda state, _: state not in ("RUNNING", "COMPLETING"), 60)
    assert slurm.state(number) == ("CANCELLED", 0)
    assert slurm.processes_of("node1") == slurm.processes_of("node2") == [], "Ray was left behind"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_whose_ray_never_comes_is_named(slurm, capsys, tmp_path, job):
    """The second node's Ray is told to be somebody else: it is up, and never joins."""
    away = tmp_path / "away.sh"
    away.write_text('[ "$SLURMD_NODENAME" = node2 ] && [ "$3" = worker ] && exec sleep 120\nexec "$REAL_PYTHON" "$@"\n')
    import sys

    late = (f"slurm.environment.REAL_PYTHON={sys.executable}", "slurm.start_seconds=45", "slurm.max_restarts=0")
    (tmp_path / "python").write_text(f"#!/bin/bash\n{away.read_text()}")
    (tmp_path / "python").chmod(0o755)
    number, _ = submitted(capsys, *job(tmp_path, "name=a", f"slurm.python={tmp_path}/python", *late))
    log = tmp_path / "a" / "launch" / f"slurm-{number}.log"
    slurm.wait_for(number, lambda state, _: state == "FAILED", 250, log)
    assert "The job waited 45 s for node2 to join Ray's head at" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_array_makes_every_run_of_a_sweep(slurm, capsys, tmp_path, job):
    words = job(tmp_path, "name=sweep", "steps=2", "seed=1,2", "slurm.nodes=1")
    number, told = submitted(capsys, "-m", *words)
    for task in (0, 1):
        log = tmp_path / "sweep" / "launch" / f"slurm-{number}_{task}.log"
        slurm.wait_for(f"{number}_{task}", lambda state, _: state in ("COMPLETED", "FAILED"), 300, log)
    for seed in (1, 2):
        assert_whole(tmp_path / "sweep" / f"seed-{seed}", 2)
        assert str(tmp_path / "sweep" / f"seed-{seed}") in told
