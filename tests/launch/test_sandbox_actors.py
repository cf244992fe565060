"""Sandbox actors over a small local Ray: the same pool again, whichever process dies on the way."""

import os
import signal
import time
from concurrent.futures import CancelledError

import pytest

from cispo.errors import ConfigError, DeadlineExceeded
from configs.fleet import ClusterConfig
from launch import build
from launch.cli import main
from launch.cluster import cluster
from launch.compose import compose
from launch.sandbox_actors import start_actors
from sandbox import IsolationError, Limits, Program, SandboxConfig, Verdict

TIGHT = Limits(cpu_seconds=1.0, wall_seconds=20.0, memory_bytes=96 << 20)


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Ray is started once for this module."""
    with cluster(ClusterConfig(num_workers=1, object_store_mb=100)):
        yield


@pytest.fixture(scope="module")
def two():
    """Two actors of one cell each, on the one node that there is, and the ids of their processes."""
    actors = start_actors(SandboxConfig(size=1, limits=TIGHT, placement="node", num_actors=2))
    yield actors, actors.wait_until_started(120)
    actors.stop()


@pytest.fixture
def pool(two):
    with two[0].connect() as connected:
        yield connected


def eventually(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def test_programs_run_in_the_actors_with_every_verdict_as_it_is(two, pool):
    (_, pids) = two
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    execution = pool.run(Program("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())", stdin=b"\xff\x00\r\n"))
    assert (execution.verdict, execution.stdout) == (Verdict.OK, b"\xff\x00\r\n")
    sources = {"while True: pass": "TLE", "x = b'x' * (300 << 20)": "MLE", "1 / 0": "RE", "x = (": "CE"}
    futures = [pool.submit(Program(source)) for source in sources]
    assert [future.result(timeout=60).verdict for future in futures] == list(sources.values())
    assert pool.run(Program("while True: pass"), Limits(cpu_seconds=0.2)).cpu_s < 1.0


def test_both_actors_share_the_work(pool):
    """One cell each: two programs that sleep are at it together."""
    futures = [pool.submit(Program("import time; time.sleep(1); print(1)")) for _ in range(2)]
    eventually(lambda: [station.in_flight for station in pool._stations] == [1, 1])
    assert [future.result(timeout=60).stdout for future in futures] == [b"1\n"] * 2


def test_a_dead_actor_comes_back_and_its_programs_are_run_elsewhere(two, pool):
    actors, _ = two
    pids = actors.wait_until_started(120)
    slow = [pool.submit(Program("import time; time.sleep(2); print('done')")) for _ in range(2)]
    eventually(lambda: all(station.in_flight for station in pool._stations))
    os.kill(pids[0], signal.SIGKILL)
    assert [future.result(timeout=100).stdout for future in slow] == [b"done\n"] * 2

    def is_back():
        try:
            return actors.wait_until_started(60)[0] != pids[0]
        except Exception:  # while it restarts
            return False

    eventually(is_back)
    assert {pool.run(Program("print(3)")).stdout for _ in range(4)} == {b"3\n"}


def test_actors_that_are_gone_for_good_are_a_system_error(monkeypatch):
    monkeypatch.setattr("launch.sandbox_actors.TRIES", 2)
    actors = start_actors(SandboxConfig(size=1, limits=TIGHT, placement="node"))
    actors.wait_until_started(120)
    with actors.connect() as pool:
        slow = pool.submit(Program("import time; time.sleep(15)"))
        eventually(lambda: pool._stations[0].in_flight)
        actors.stop()
        execution = slow.result(timeout=60)
        assert execution.verdict is Verdict.SE
        assert b"The process of sandbox-0 died" in execution.stderr


def test_a_cancelled_future_does_not_keep_its_cell(pool):
    running = [pool.submit(Program("import time; time.sleep(250)"), Limits(wall_seconds=280)) for _ in range(2)]
    eventually(lambda: all(station.in_flight for station in pool._stations))
    for future in running:
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result()
    assert pool.submit(Program("print(2)")).result(timeout=60).stdout == b"2\n"


def test_a_node_that_cannot_isolate_is_its_own_sentence():
    actors = start_actors(SandboxConfig(bwrap="/nonexistent/bwrap", placement="node"))
    with pytest.raises(IsolationError, match="apt-get install bubblewrap"):
        actors.wait_until_started(120)
    actors.stop()


def test_a_late_actor_is_a_deadline():
    actors = start_actors(SandboxConfig(placement="node"))
    with pytest.raises(DeadlineExceeded, match="driver waited 0 s for sandbox-0 to start.*cluster.start_seconds"):
        actors.wait_until_started(0)
    actors.stop()


def test_the_scorer_of_a_worker_sends_its_programs_to_the_actors(two, monkeypatch):
    monkeypatch.delattr(build, "make_sandbox_pool")
    config = compose(["task=program", "sandbox=node"])
    rewards = build.make_rewards(config, two[0])
    tests = [{"args": [2, 3], "returns": 5}, {"args": [0, 0], "returns": 0}]
    score = rewards._verifiers["code"].score("def add(a, b):\n    return a + b", {"entry": "add", "tests": tests})
    assert score.correct
    rewards.close()
    assert two[0].wait_until_started(60), "the actors outlive a worker's scorer"


def test_a_run_has_its_programs_scored_by_actors_that_end_with_it(tmp_path, small):
    overrides = small(
        tmp_path, "name=a", "task=program", "sandbox=node", "cluster=local", "cluster.num_workers=1", "steps=1",
        "rewards.custom=''", "sampling.max_new_tokens=24", "engine.max_length=64",
    )  # fmt: skip
    assert main(["train", *overrides]) == 0
    assert (tmp_path / "a" / "summary.json").exists()


def test_actors_without_ray_are_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"placement=node starts Ray actors, which cluster.kind=inline does without"):
        compose(["sandbox=node", "cluster=inline"])
    with pytest.raises(ConfigError, match="placement=node has no use with isolation=remote"):
        compose(["sandbox=remote", "sandbox.remote.urls=[http://a:1]", "sandbox.placement=node"])
