"""Small runs for the tests of whole runs: a few steps of a tiny policy, with a reward that always has a signal."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main
from launch.cluster import lock_ray
from tests.launch.serving import Serving

lock_ray()  # before a test imports ray
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes that a test starts must count as this one does

REWARD = '''
def checksum(prompt, text, reference, **info):
    """Differs within almost every group, so that every step has something to learn from."""
    return sum(text.encode()) % 7 / 7
'''

SMALL = (
    "task=chain",
    "steps=5",
    "groups_per_step=4",
    "group_size=4",
    "updates_per_step=2",
    "save_every=2",
    "eval_every=3",
    "sft.steps=3",
    "sft.batch_size=8",
    "sampling.max_new_tokens=12",
    "engine.max_length=32",
    "evaluation.num_prompts=4",
    "tracking.console=false",
    "tracking.rollouts_per_step=0",
    "cluster=inline",
    "cluster.num_workers=2",
)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Callable[..., list[str]]:
    """small(runs_folder, *more): the overrides of a small run below `runs_folder`, with some changed."""
    reward = tmp_path_factory.mktemp("rewards") / "checksum.py"
    reward.write_text(REWARD)

    def overrides(runs_folder: Path, *more: str) -> list[str]:
        return [*SMALL, f"rewards.custom={reward}:checksum", f"runs_folder={runs_folder}", *more]

    return overrides


@pytest.fixture(scope="session")
def lines_of() -> Callable[[Path], list[str]]:
    """What a run wrote of each step, line by line and without times: metrics, then every rollout."""

    def read(folder: Path) -> list[str]:
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        timed = ("timing_s/", "perf/", "sync/seconds")
        lines = [json.dumps({k: v for k, v in m.items() if not k.startswith(timed)}) for m in metrics]
        for path in sorted((folder / "rollouts").glob("*.jsonl")):
            lines += [f"{path.name} {line}" for line in path.read_text().splitlines()]
        return lines

    return read


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, small) -> Path:
    """The folder of a small run in this process, from beginning to end without trouble: what others must equal."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *small(runs, "name=whole")]) == 0
    return runs / "whole"


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Callable[..., Serving]:
    """serve(*words): a running `cispo serve`, which the session ends at the latest."""
    started: list[Serving] = []

    def start(*words: str) -> Serving:
        started.append(Serving(tmp_path_factory.mktemp("serving"), *words))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.kill()
            serving.process.wait()


@pytest.fixture(scope="session")
def chain_server(serve) -> Serving:
    """A server of the chain task's policy, for tests that give it the weights that they need."""
    return serve("task=chain")
