"""Over Ray: the same run as in one process, whichever process dies on the way; errors and deadlines with sentences."""

import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from cispo.errors import ConfigError, DeadlineExceeded, WorkerDied
from cispo.learner.config import LearnerConfig
from configs.fleet import ClusterConfig, SyncConfig
from launch.actors import InlineHandle, RayHandle, our_error
from launch.cli import main
from launch.cluster import cluster, wait_until_started
from launch.learner_ranks import LearnerDied, LearnerRanks
from launch.weight_sync import VerifiedSync
from tests.launch.processes import killer

SMALLEST = ClusterConfig(num_workers=1, object_store_mb=100)


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Ray is started once; the runs of this module find it and leave it as it is."""
    with cluster(SMALLEST):
        yield


def joined(**environment):
    """Whether another process of this machine may come in."""
    program = f"import ray; ray.init({ray.get_runtime_context().gcs_address!r}); ray.get(ray.put(1))"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", program], env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0 or "Failed to connect" in done.stderr, done.stderr
    return done.returncode == 0


def test_only_who_has_its_token_gets_in():
    token = os.environ["RAY_AUTH_TOKEN"]
    with ThreadPoolExecutor() as tries:  # who is not let in tries for a while
        friend = tries.submit(joined, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        guesser = tries.submit(joined, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
        stranger = tries.submit(joined, RAY_AUTH_MODE="disabled")
    assert friend.result() and not guesser.result() and not stranger.result()


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.ObjectLostError("0" * 56, None, ""),
        ray.exceptions.OwnerDiedError("0" * 56, None, ""),
        ray.exceptions.NodeDiedError("the node died"),
        ray.exceptions.WorkerCrashedError(),
    ],
)
def test_an_answer_that_is_lost_with_its_node_is_the_death_of_who_gave_it(error):
    assert isinstance(our_error(error, "rollout-0"), WorkerDied)


class Shelf:
    """Something to be made elsewhere: keeps a number and gives it back, in several ways."""

    def __init__(self, number):
        if number < 0:
            raise ConfigError(f"a shelf holds a number from 0; got {number}.")
        self.number = number

    def get(self):
        return self.number

    def add(self, more):
        self.number += more
        return self.number

    def refuse(self):
        raise DeadlineExceeded("the shelf waited 3 s for nobody.")

    def break_down(self):
        return self.number / 0

    def sleep(self):
        time.sleep(60)

    def call(self, method):
        getattr(self, method)()

    def package(self, version):
        time.sleep(60)


@pytest.fixture(params=[RayHandle, InlineHandle])
def shelf(request):
    handle = request.param("shelf-0", Shelf, 5)
    yield handle
    handle.stop()


def test_calls_references_and_restarts_are_the_same_inline_and_over_ray(shelf):
    assert shelf.started().result(timeout=60) > 0
    assert shelf.call("add", 2).result(timeout=60) == 7
    reference = shelf.reference("get").result(timeout=60)
    assert shelf.call("add", reference).result(timeout=60) == 14
    with pytest.raises(DeadlineExceeded, match="^the shelf waited 3 s for nobody.$"):
        shelf.call("refuse").result(timeout=60)
    with pytest.raises(DeadlineExceeded, match="^the shelf waited 3 s for nobody.$"):
        shelf.reference("refuse").result(timeout=60)
    shelf.restart()
    assert shelf.call("get").result(timeout=60) == 5


def test_an_error_in_a_constructor_is_told_as_itself():
    handle = RayHandle("shelf-1", Shelf, -1)
    with pytest.raises(ConfigError, match="^a shelf holds a number from 0; got -1.$"):
        wait_until_started([handle], 60)
    handle.stop()


def test_a_defect_keeps_the_traceback_of_its_process():
    handle = RayHandle("shelf-2", Shelf, 5)
    with pytest.raises(ZeroDivisionError, match="break_down"):
        handle.call("break_down").result(timeout=60)
    handle.stop()


def test_deaths_and_deadlines_say_who_waited_for_whom():
    handle = RayHandle("learner-0", Shelf, 5)
    pid = handle.started().result(timeout=60)
    assert "ray::learner_0" in Path(f"/proc/{pid}/cmdline").read_text(), "the process list says who is who"
    slow = LearnerRanks([handle], LearnerConfig(), deadline_seconds=0.1)
    with pytest.raises(DeadlineExceeded, match=r"driver waited 0.1 s for learner-0 to sleep.*cluster.update_seconds"):
        slow._all("sleep")
    with pytest.raises(DeadlineExceeded, match=r"driver waited 0.1 s for learner-0 to pack the weights of version 3"):
        VerifiedSync(slow, None, SyncConfig(), lambda: 1).publish(None, version=3)
    with pytest.raises(DeadlineExceeded, match=r"driver waited 0 s for learner-0 to start.*cluster.start_seconds"):
        wait_until_started([handle], 0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=r"^The process of learner-0 died \([^()]{1,120}\)\.$"):
        handle.call("get").result(timeout=60)
    with pytest.raises(LearnerDied, match=r"^The process of learner-0 died .* pack the weights of version 4"):
        learner = LearnerRanks([handle], LearnerConfig(), deadline_seconds=60)
        VerifiedSync(learner, None, SyncConfig(), lambda: 1).publish(None, version=4)
    handle.stop()


def test_a_learner_that_does_not_answer_for_the_whole_of_a_version_is_told_after_the_deadline():
    silent = SimpleNamespace(name="learner-0", reference=lambda *_: Future())
    made = LearnerRanks([silent], LearnerConfig(), deadline_seconds=0.1).whole_package(3)
    with pytest.raises(DeadlineExceeded, match=r"waited 0.1 s for learner-0 to pack the whole of version 3"):
        made.result(timeout=20)


@pytest.mark.slow
def test_a_killed_worker_costs_a_warning_and_nothing_else(tmp_path, small, whole_run, lines_of, caplog):
    killer("ray::rollout_1", tmp_path / "a", 2)
    with caplog.at_level(logging.WARNING):
        assert main(["train", *small(tmp_path, "name=a", "cluster=local", "cluster.num_workers=2")]) == 0
    assert "The process of rollout-1 died" in caplog.text
    assert "It is restarted" in caplog.text
    assert lines_of(tmp_path / "a") == lines_of(whole_run)


@pytest.mark.slow
def test_a_killed_learner_costs_the_steps_since_the_last_checkpoint(tmp_path, small, whole_run, lines_of, caplog):
    killer("ray::learner_0", tmp_path / "a", 3)
    with caplog.at_level(logging.WARNING):
        assert main(["train", *small(tmp_path, "name=a", "cluster=local", "cluster.num_workers=2")]) == 0
    assert "The process of learner-0 died" in caplog.text
    assert "Everything starts again from step" in caplog.text
    assert lines_of(tmp_path / "a") == lines_of(whole_run)


def test_without_restarts_a_killed_learner_ends_the_run_which_then_goes_on(
    tmp_path, small, whole_run, lines_of, capsys
):
    killer("ray::learner_0", tmp_path / "a", 3)
    overrides = small(tmp_path, "name=a", "cluster=local", "cluster.num_workers=2", "cluster.learner_restarts=0")
    assert main(["train", *overrides]) == 1
    message = capsys.readouterr().err
    assert message.startswith("cispo: LearnerDied: The process of learner-0 died")
    assert "Traceback" not in message
    assert f"`cispo train --resume {tmp_path / 'a'}` goes on from step " in message
    assert main(["train", "--resume", str(tmp_path / "a"), "cluster=inline", "cluster.num_workers=2"]) == 0
    assert lines_of(tmp_path / "a") == lines_of(whole_run)


@pytest.mark.slow
def test_one_of_two_ranks_dies_and_the_run_goes_on_as_if_nothing_had_happened(tmp_path, small, lines_of, caplog):
    """The other rank only sees its connection close; whose death it was is what people read."""
    overrides = small(tmp_path, "cluster=local", "cluster.num_workers=1", "learner.num_ranks=2")
    assert main(["train", *overrides, "name=whole"]) == 0
    killer("ray::learner_1", tmp_path / "a", 3)
    with caplog.at_level(logging.WARNING):
        assert main(["train", *overrides, "name=a"]) == 0
    assert "The process of learner-1 died" in caplog.text
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "whole")


def test_more_deaths_than_allowed_end_the_run(tmp_path, small, capsys):
    killer("ray::rollout_0", tmp_path / "a", 1)
    overrides = small(
        tmp_path, "name=a", "cluster=local", "cluster.num_workers=1", "rollout.max_restarts=0", "steps=99"
    )
    assert main(["train", *overrides]) == 1
    message = capsys.readouterr().err
    assert message.startswith("cispo: WorkerDied: The process of rollout-0 died")
    assert "rollout.max_restarts is 0" in message
    assert "Traceback" not in message
