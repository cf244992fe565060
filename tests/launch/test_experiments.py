"""Every experiment: it composes, its parts fit the GPUs that it names, and on a small scale it runs where tests run."""

import json

import pytest

from launch import build
from launch.cli import main
from launch.compose import compose
from launch.config_tree import choices
from launch.estimate import learner_memory, worker_memory
from launch.start_checks import plan_here
from model.layout_faults import check_layout

NEEDED = {"m1_like": ["engine.server.urls=[http://sampler-0:8000]"]}
ON_GPUS = ("one_gpu", "node", "m1_like")
SMALL = (
    "model=tiny",
    "learner=local",
    "learner.layout.tensor=1",
    "learner.layout.pipeline=1",
    "learner.layout.context=1",
    "learner.layout.expert=1",
    "learner.layout.sequence_parallel=false",
    "engine=small",
    "engine.device=cpu",
    "cluster=inline",
    "cluster.num_workers=1",
    "cluster.num_nodes=1",
    "cluster.gpus_per_worker=0",
    "cluster.gpus_per_node=0",
    "learner.device=cpu",
    "learner.num_ranks=1",
    "learner.dtype=float32",
    "task=chain",
    "sft.steps=0",
    "steps=1",
    "groups_per_step=2",
    "group_size=2",
    "updates_per_step=1",
    "eval_every=0",
    "sampling.max_new_tokens=8",
    "engine.max_length=32",
    "evaluation.num_prompts=1",
    "evaluation.num_samples=1",
    "evaluation.pass_at=1",
    "rollout.draw_limit=1",
    "tracking.console=false",
)


def experiment(name, *overrides):
    return compose([f"experiment={name}", *NEEDED.get(name, []), *overrides])


@pytest.mark.parametrize("name", ON_GPUS)
def test_an_experiment_fits_the_memory_of_its_gpus_and_is_planned_anywhere(name):
    config = experiment(name)
    plan = plan_here(config)
    assert not [
        warning for warning in plan.warnings if " GB" in warning or "GPU" in warning and "not on" not in warning
    ]
    shape = config.model.shape  # with the whole vocabulary, which is larger than that of the plan
    room = config.cluster.gpu_gb * 1e9
    learner, worker = learner_memory(config, shape), worker_memory(config, shape)
    is_shared = not config.learner_gpus
    assert learner.total + (worker.total if worker and is_shared else 0) < 0.9 * room
    assert not worker or worker.total < 0.9 * room
    check_layout(shape, config.learner.layout, config.learner.num_ranks)


@pytest.mark.parametrize(("name", "learner", "workers"), [("one_gpu", 0, 1), ("node", 4, 4), ("m1_like", 256, 0)])
def test_an_experiment_takes_the_gpus_that_it_names(name, learner, workers):
    config = experiment(name)
    assert (config.learner_gpus, config.worker_gpus) == (learner, workers)
    assert learner + workers == config.cluster.num_nodes * config.cluster.gpus_per_node


def test_the_recipe_of_the_report_has_what_the_report_says():
    """Sections 3.1, 3.2, 3.3 and 5 of arXiv 2506.13585."""
    config = experiment("m1_like")
    windows = [value for _, value in config.sampling.max_new_tokens]
    assert sorted(set(windows)) == [kilo * 1024 for kilo in (40, 48, 56, 64, 72, 80)]
    assert windows == sorted(windows)
    assert config.engine.max_length > max(windows)
    assert config.rewards.soft_overlong.limit_tokens == max(windows)
    assert (config.updates_per_step, config.aggregation, config.normalise) == (16, "prompt", "std")
    assert (config.ratio_floor, config.mask_above, config.mask_below) == (0.0, float("inf"), 0.0)
    caps = [value for _, value in config.ratio_cap]
    assert caps == sorted(caps, reverse=True)
    assert caps[-1] < caps[0]
    assert (config.learner.optimizer.betas, config.learner.optimizer.eps) == ((0.9, 0.95), 1e-15)
    assert (config.sampling.temperature, config.sampling.top_p, config.sampling.top_k) == (1.0, 1.0, 0)
    assert (config.sampling.repetition_tokens, config.sampling.repetition_probability) == (3000, 0.99)


def test_every_experiment_is_of_the_list():
    assert {*ON_GPUS, "embedded", "short", "tools"} == {*choices("experiment")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ON_GPUS[1:]] + ["one_gpu"])
def test_an_experiment_runs_on_a_small_scale(name, tmp_path):
    """The same recipe with a tiny policy in one process; its GPUs, and what is large about it, are beyond a test."""
    overrides = [f"experiment={name}", *NEEDED.get(name, []), *SMALL, f"runs_folder={tmp_path}", "name=small"]
    assert main(["train", *overrides]) == 0
    summary = json.loads((tmp_path / "small" / "summary.json").read_text())
    assert summary["steps"] == 1


def test_a_workers_engine_is_put_where_the_configuration_says():
    config = compose(["cluster=inline", "engine.device=meta", "task=chain"])
    engine = build.make_engine(config, build.make_tokenizer(config))
    assert {weight.device.type for weight in engine._lm.parameters()} == {"meta"}
    assert engine._cache.length_S.device.type == "meta"
