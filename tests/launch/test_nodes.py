"""A Ray cluster of three nodes: who lives where, a node that is lost in the middle of a run, one that is missing."""

import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from configs.fleet import ClusterConfig
from launch.cli import main
from launch.cluster import cluster
from launch.sandbox_actors import start_actors
from rollout.ledger_file import read_ledger
from sandbox import SandboxConfig

NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def three_nodes():
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    added = [nodes.add_node(**NODE) for _ in range(2)]
    yield nodes, added
    nodes.shutdown()


class Resident:
    """Knows where it is."""

    def node(self):
        return ray.get_runtime_context().get_node_id()


@pytest.mark.slow
def test_what_there_is_once_is_near_the_driver_and_workers_and_sandboxes_are_spread(three_nodes):
    nodes, _ = three_nodes
    config = ClusterConfig(kind="ray", address=nodes.address, num_nodes=3)
    with cluster(config) as place:
        here = ray.get_runtime_context().get_node_id()
        ranks = [place(f"learner-{number}", Resident) for number in range(3)]
        workers = [place(f"rollout-{number}", Resident, is_worker=True) for number in range(6)]
        assert {rank.call("node").result(60) for rank in ranks} == {here}
        assert len({worker.call("node").result(60) for worker in workers}) == 3
        sandboxes = start_actors(SandboxConfig(size=1))
        try:
            for actor, node_id in zip(sandboxes.actors, sandboxes.node_ids, strict=True):
                found = ray.get(
                    actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), timeout=60
                )
                assert found == node_id
            assert len(set(sandboxes.node_ids)) == 3
        finally:
            sandboxes.stop()


def test_a_node_that_is_lost_costs_its_workers_a_restart(three_nodes, tmp_path, small, caplog):
    nodes, added = three_nodes
    folder = tmp_path / "a"

    def lose_a_node():
        end = time.monotonic() + 200
        while time.monotonic() < end:
            metrics = folder / "metrics.jsonl"
            if metrics.exists() and metrics.read_text().count("\n") >= 3:
                here = ray.get_runtime_context().get_node_id()
                nodes.remove_node(next(node for node in added if node.node_id != here), allow_graceful=False)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=lose_a_node, daemon=True)
    thread.start()
    ray_cluster = ("cluster=ray", f"cluster.address={nodes.address}", "cluster.num_nodes=3", "cluster.num_workers=4")
    overrides = small(tmp_path, "name=a", "max_staleness=1", "steps=8", "eval_every=0", *ray_cluster)
    assert main(["train", *overrides]) == 0
    thread.join(timeout=60)
    assert "The process of rollout-" in caplog.text and "It is restarted" in caplog.text
    cursor, entries = read_ledger(folder / "checkpoints" / "step_8" / "rollouts")
    assert cursor["next_index"] - len(entries) == 8 * 4, "a prompt was lost or taken twice"


def test_a_cluster_that_is_too_small_is_a_sentence_with_what_to_do(three_nodes, tmp_path, small, capsys):
    nodes, _ = three_nodes
    short = ("cluster=ray", f"cluster.address={nodes.address}", "cluster.num_nodes=4", "cluster.start_seconds=1")
    assert main(["train", *small(tmp_path, "name=a", *short)]) == 1
    told = capsys.readouterr().err
    assert "waited 1 s for cluster.num_nodes=4 nodes of the Ray cluster and sees " in told
    assert "cispo train --resume" in told
    assert not ray.is_initialized(), "the cluster that was joined was not left"


def test_a_cluster_that_is_not_there_is_a_sentence_with_what_to_do(tmp_path, small, capsys):
    nowhere = ("cluster=ray", "cluster.address=127.0.0.1:1", "cluster.start_seconds=0.5")
    assert main(["train", *small(tmp_path, "name=b", *nowhere)]) == 1
    assert "cluster.address=127.0.0.1:1 cannot be joined" in capsys.readouterr().err
