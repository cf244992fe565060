"""The same small run with another learner: one config word, two ranks, and the numbers of the local one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from configs.fleet import ClusterConfig
from launch.cli import main
from launch.cluster import cluster
from model import load_pretrained

STARTUP = Path(__file__).parents[1] / "model" / "megatron" / "startup"
pytestmark = pytest.mark.slow  # tests/cispo compares the learners themselves

BACKENDS = {
    "deepspeed": ["learner=deepspeed", "learner.num_ranks=2", "learner.deepspeed.stage=3"],
    "megatron": ["learner=megatron"],
}


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Ray, whose processes let megatron work on CPUs."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STARTUP), *filter(None, [before])])
    try:
        with cluster(ClusterConfig(num_workers=1, object_store_mb=100)):
            yield
    finally:
        os.environ["PYTHONPATH"] = before or ""


@pytest.fixture(scope="module", params=BACKENDS)
def run(request, tmp_path_factory, small):
    """The folder of a run that stopped after three steps and went on."""
    runs = tmp_path_factory.mktemp("backends")
    overrides = small(runs, "name=a", "cluster=local", "cluster.num_workers=1", *BACKENDS[request.param])
    assert main(["train", *overrides, "steps=3"]) == 0
    assert main(["train", "--resume", str(runs / "a"), "steps=5"]) == 0
    return runs / "a"


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_its_first_step_is_that_of_the_local_learner(run, whole_run):
    """Cold start, weights to the workers, sampling, and the step's updates; later texts may differ by a rounding."""
    found, wanted = (metrics_of(folder)[1] for folder in (run, whole_run))
    for name in ("actor/loss", "actor/grad_norm", "actor/entropy", "ratio/mean", "ratio/max", "drift/kl_mean"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-4, atol=1e-6, err_msg=name)
    rollouts = [
        [json.loads(line)["text"] for line in (folder / "rollouts" / "step_1.jsonl").read_text().splitlines()]
        for folder in (run, whole_run)
    ]
    assert rollouts[0] == rollouts[1]


def test_the_engine_agrees_with_it_after_every_publication(run):
    metrics = metrics_of(run)
    assert [line["step"] for line in metrics] == [0, 1, 2, 3, 4, 5]
    differences = [line["mismatch/logp_abs_diff_max"] for line in metrics[1:]]
    assert max(differences) < 1e-5, differences


def test_it_exports_a_policy(run):
    assert load_pretrained(run / "export").config.num_hidden_layers > 1
