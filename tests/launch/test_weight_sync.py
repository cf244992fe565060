"""Each transport over Ray: the run is the same to the last bit, whichever carries the weights, and outlives deaths."""

import json
import logging

import pytest

from cispo.errors import ConfigError
from configs.fleet import ClusterConfig
from launch.cli import main
from launch.cluster import cluster
from launch.compose import compose
from tests.launch.test_ray import killer

SMALLEST = ClusterConfig(num_workers=1, object_store_mb=100)
TRANSPORTS = (
    pytest.param("object_store", marks=pytest.mark.slow),  # as in tests/launch/test_ray.py, but for the bytes
    "broadcast",
    pytest.param("changed_bytes", marks=pytest.mark.slow),
)
OVER_RAY = ("cluster=local", "cluster.num_workers=2")


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Ray is started once; the runs of this module find it and leave it as it is."""
    with cluster(SMALLEST):
        yield


def without_bytes(lines):
    """Lines of a run without the one number in which transports differ."""
    found = []
    for line in lines:
        if line.startswith("{"):
            metrics = json.loads(line)
            del metrics["sync/bytes"]
            line = json.dumps(metrics)
        found.append(line)
    return found


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_is_the_same_whichever_transport_carries_the_weights(tmp_path, small, whole_run, lines_of, transport):
    assert main(["train", *small(tmp_path, "name=a", *OVER_RAY, f"sync.transport={transport}")]) == 0
    assert without_bytes(lines_of(tmp_path / "a")) == without_bytes(lines_of(whole_run))
    first, *later = metrics_of(tmp_path / "a")
    assert all(0 <= line["sync/canary_logp_diff_max"] < 1e-4 and line["sync/seconds"] > 0 for line in [first, *later])
    whole_bytes = metrics_of(whole_run)[0]["sync/bytes"]
    assert first["sync/bytes"] == whole_bytes
    if transport == "changed_bytes":  # with a bit for each block of 2 bytes, it is a sixteenth more at most
        assert all(0 < line["sync/bytes"] < 1.07 * whole_bytes != line["sync/bytes"] for line in later)
    else:
        assert all(line["sync/bytes"] == whole_bytes for line in later)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["broadcast", "changed_bytes"])
def test_a_worker_that_was_restarted_catches_up_with_the_whole_version(
    tmp_path, small, whole_run, lines_of, caplog, transport
):
    killer("ray::rollout_1", tmp_path / "a", 2)
    with caplog.at_level(logging.WARNING):
        assert main(["train", *small(tmp_path, "name=a", *OVER_RAY, f"sync.transport={transport}")]) == 0
    assert "The process of rollout-1 died" in caplog.text
    assert "it is sent the whole version" in caplog.text
    assert without_bytes(lines_of(tmp_path / "a")) == without_bytes(lines_of(whole_run))


@pytest.mark.slow
def test_two_ranks_broadcast_what_they_gather_together(tmp_path, small, lines_of):
    overrides = small(tmp_path, *OVER_RAY, "learner.num_ranks=2", "learner.copies=sharded", "steps=3")
    assert main(["train", *overrides, "name=a", "sync.transport=broadcast"]) == 0
    assert main(["train", *overrides, "name=b"]) == 0
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")


def test_a_canary_that_differs_ends_the_run_with_one_sentence(tmp_path, small, capsys):
    assert main(["train", *small(tmp_path, "name=a", "sync.canary_tolerance=1e-12")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("cispo: WeightSyncError: the weights of version 0 arrived as they were sent, but learner")
    assert "Traceback" not in message


def test_a_broadcast_to_oneself_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="sync.transport=broadcast sends from one process to others"):
        compose(["cluster=inline", "sync.transport=broadcast"])
