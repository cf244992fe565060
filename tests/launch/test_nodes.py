"""A run over three nodes loses one in the middle and ends as if it had not."""

import threading
import time

import ray
from ray.cluster_utils import Cluster

from launch.cli import main
from rollout.ledger_file import read_ledger

NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}


def test_a_node_that_is_lost_costs_its_workers_a_restart(tmp_path, small, caplog):
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    doomed = [nodes.add_node(**NODE) for _ in range(2)][-1]
    folder = tmp_path / "a"

    def lose_a_node():
        end = time.monotonic() + 200
        while time.monotonic() < end:
            metrics = folder / "metrics.jsonl"
            if metrics.exists() and metrics.read_text().count("\n") >= 3:
                nodes.remove_node(doomed, allow_graceful=False)
                return
            time.sleep(0.02)

    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        thread = threading.Thread(target=lose_a_node, daemon=True)
        thread.start()
        overrides = small(tmp_path, "name=a", "cluster=local", "cluster.num_workers=4", "max_staleness=1", "steps=8")
        assert main(["train", *overrides, "eval_every=0"]) == 0
        thread.join(timeout=60)
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert "The process of rollout-" in caplog.text and "It is restarted" in caplog.text
    cursor, entries = read_ledger(folder / "checkpoints" / "step_8" / "rollouts")
    assert cursor["next_index"] - len(entries) == 8 * 4, "a prompt was lost or taken twice"
