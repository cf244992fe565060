"""The megatron learner under many layouts against the local one in one process; on CPUs by tests/model/megatron."""

import dataclasses
import functools
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from cispo.learner.local import LocalLearner
from cispo.learner.policy import Policy
from model import load_pretrained
from model.layout import Layout
from tests.cispo.parity import (
    CONFIG,
    SETTINGS,
    Found,
    assert_agree,
    assert_corrected_agree,
    learn,
    learn_corrected,
    learner_config,
    make_batches,
    make_lm,
    on_ranks,
    reference,
    together,
)
from tests.model.megatron import megatron_on_cpu

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]

RUNS = {
    "two": (
        2,
        {
            "sequence": Layout(tensor=2, sequence_parallel=True),
            "expert": Layout(expert=2),
        },
    ),
    "two more": (
        2,
        {
            "tensor": Layout(tensor=2),
            "pipeline": Layout(pipeline=2),
            "interleaved": Layout(pipeline=2, virtual_pipeline=2),
            "context": Layout(context=2),
            "data": Layout(),
        },
    ),
    "four": (
        4,
        {
            "tensor-pipeline": Layout(tensor=2, pipeline=2),
            "tensor-expert": Layout(tensor=2, expert=2),
        },
    ),
}
"""By the start of processes that tries them: their number, and the layouts by name."""
RUN_OF = {name: run for run, (_, layouts) in RUNS.items() for name in layouts}


def marked(names):
    """Parameters; layouts of the first run are tried by `make test`, the others take longer."""
    return [pytest.param(name, marks=[] if RUN_OF[name] == "two" else pytest.mark.slow) for name in names]


CORRECTED = ("sequence", "interleaved", "context", "tensor-expert")
BALANCED = dataclasses.replace(SETTINGS, router_aux_coef=0.3)


def config_of(layout, num_ranks, **changes):
    return learner_config(kind="megatron", num_ranks=num_ranks, layout=layout, **changes)


def work(ranks, folder, num_ranks, layouts):
    """Each layout learns all batches, and once more the last two, from the state that the first one saved."""
    warnings.simplefilter("ignore")
    megatron_on_cpu.before_import()
    from cispo.learner.megatron import MegatronLearner
    from model.megatron.ranks import forget_ranks

    megatron_on_cpu.after_import()
    found, batches = {}, make_batches()
    for name, layout in layouts.items():
        config = config_of(layout, num_ranks)
        place = {"shard": config.shard_of(ranks.rank), "num_shards": config.num_shards}
        if name in CORRECTED:
            corrected = MegatronLearner(Policy(CONFIG, seed=0), config, ranks)
            found[f"{name} corrected"] = learn_corrected(corrected, BALANCED, **place)
            forget_ranks()
        learner = MegatronLearner(Policy(CONFIG, seed=0), config, ranks)
        first = learn(learner, batches[:1], BALANCED, **place)
        if name == next(iter(layouts)):
            learner.save(folder / "state")
        rest = learn(learner, batches[1:], BALANCED, **place)
        found[name] = joined(first, rest)
        learner.export(folder / f"export-{name}", eos_token_id=0)
        forget_ranks()
        resumed = MegatronLearner(Policy(CONFIG, seed=5), config, ranks)
        resumed.load(folder / "state")
        found[f"{name} resumed"] = learn(resumed, batches[1:], BALANCED, **place)
        resumed.new_optimizer(config.optimizer)
        found[f"{name} anew"] = learn(resumed, batches[:1], BALANCED, **place)
        forget_ranks()
    return found


def joined(first, rest):
    """One Found of two in a row."""
    lists = {
        name: getattr(first, name) + getattr(rest, name) for name in ("losses", "norms", "metrics", "logp", "told")
    }
    return Found(**lists, weights=rest.weights)


@pytest.fixture(scope="module")
def found(folder):
    """What a layout's ranks found; a run is made when the first of its layouts is asked for."""

    @functools.cache
    def ranks_of(run):
        num_ranks, layouts = RUNS[run]
        return on_ranks(num_ranks, work, folder / run, num_ranks, layouts)

    return lambda name: [rank[name] for rank in ranks_of(RUN_OF[name.split()[0]])]


@pytest.fixture(scope="module")
def wanted(batches):
    return reference(batches, BALANCED)


def layout_config(name):
    num_ranks, layouts = RUNS[RUN_OF[name]]
    return config_of(layouts[name], num_ranks)


def whole(found, name, batches):
    return together(layout_config(name.split()[0]), found(name), batches)


@pytest.mark.parametrize("layout", marked(RUN_OF))
def test_updates_are_those_of_one_process(found, wanted, batches, layout):
    assert_agree(whole(found, layout, batches), wanted)


@pytest.mark.parametrize("layout", marked(CORRECTED))
def test_corrected_updates_with_replayed_experts_are_those_of_one_process(found, layout):
    assert_corrected_agree(layout_config(layout), found(f"{layout} corrected"), BALANCED)


@pytest.mark.parametrize("layout", marked(RUN_OF))
def test_balance_of_experts_is_told_as_by_one_process(found, wanted, batches, layout):
    for metrics, expected in zip(whole(found, layout, batches).metrics, wanted.metrics, strict=True):
        for name in ("moe/aux_loss", "moe/load_imbalance"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("layout", marked(RUN_OF))
def test_a_state_saved_under_one_layout_goes_on_under_another(found, batches, layout):
    learner = LocalLearner(make_lm(), learner_config())
    learn(learner, batches[:1], BALANCED)
    assert_agree(whole(found, f"{layout} resumed", batches[1:]), learn(learner, batches[1:], BALANCED))


@pytest.mark.parametrize("layout", marked(RUN_OF))
def test_a_new_optimizer_forgets_the_moments(found, batches, layout):
    learner = LocalLearner(make_lm(), learner_config())
    learn(learner, batches, BALANCED)
    learner.new_optimizer(learner.config.optimizer)
    assert_agree(whole(found, f"{layout} anew", batches[:1]), learn(learner, batches[:1], BALANCED))


@pytest.mark.parametrize("layout", marked(RUN_OF))
def test_the_export_is_the_policy(found, folder, batches, layout):
    exported = load_pretrained(folder / RUN_OF[layout] / f"export-{layout}")
    for name, weight in LocalLearner(exported, learner_config()).weights():
        np.testing.assert_array_equal(weight, found(layout)[0].weights[name])


@pytest.mark.slow
def test_expert_parts_equal_whole_experts(found, batches):
    """The same ranks with the same rows, experts on one or on both: no more than rounding between them."""
    parts, copies = (whole(found, name, batches) for name in ("expert", "data"))
    assert_agree(parts, copies, 2e-6)


def test_without_a_gpu_it_is_refused_in_a_sentence():
    """In a process of its own, for the harness would make a CPU pass for one."""
    program = """
from cispo.learner.backends import make_learner
from cispo.learner.config import LearnerConfig
from cispo.learner.policy import Policy
from cispo.learner.ranks import Ranks
from model import HybridConfig
make_learner(Policy(HybridConfig()), LearnerConfig(kind="megatron"), Ranks())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "ConfigError: learner.kind=megatron needs a GPU for each rank" in done.stderr
