"""One update on 2 and 4 gloo ranks under every kind of layout against HybridLM in one process, in float32.

The ranks start once for all their layouts, because megatron takes seconds to import. Bounds are relative; between
layouts sums are added in other orders.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from model.checkpoint import stream_weights
from model.layout import Layout
from tests.model.megatron.learning import ADAM, CONFIG, join, make_lm, update_alone, update_together

LAYOUTS = {
    2: {
        "tensor": Layout(tensor=2),
        "sequence": Layout(tensor=2, sequence_parallel=True),
        "pipeline": Layout(pipeline=2),
        "interleaved": Layout(pipeline=2, virtual_pipeline=2),
        "data": Layout(),
        "expert": Layout(expert=2),
        "context": Layout(context=2),
        "context-expert": Layout(context=2, expert=2),
        "recomputed": Layout(pipeline=2),
    },
    4: {
        "tensor-pipeline": Layout(tensor=2, pipeline=2),
        "tensor-expert": Layout(tensor=2, expert=2),
        "sequence-context-expert": Layout(tensor=2, context=2, expert=2, sequence_parallel=True),
        "data-of-interleaved": Layout(pipeline=2, virtual_pipeline=2),
    },
}
OPTIONS = {"recomputed": {"recompute_layers": 2}, "tensor-pipeline": {"recompute_layers": 1}}
CASES = [(num_ranks, name) for num_ranks, layouts in LAYOUTS.items() for name in layouts]


def work(rank, num_ranks, folder):
    join(rank, num_ranks, folder)
    from model.megatron import (
        ParallelWeights,
        StageOptimizer,
        build_stages,
        forget_ranks,
        initialise_ranks,
        stage_config,
    )

    updates = {}
    runs = Counter()
    for name, layout in LAYOUTS[num_ranks].items():
        place = initialise_ranks(CONFIG, layout)
        stages = build_stages(stage_config(CONFIG, layout, **OPTIONS.get(name, {})))
        layer = next(iter(stages[0].module.layers.values()))
        layer.register_forward_hook(lambda *_, name=name: runs.update([name]))
        weights = ParallelWeights(stages)
        weights.load(stream_weights(make_lm()))
        optimizer = StageOptimizer(stages, **ADAM)
        updates[name] = update_together(stages, weights, optimizer, place)
        forget_ranks()
    updates["runs"] = runs
    torch.save(updates, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """(ranks, layout) -> what each rank says the update was; made when first asked for."""
    found = {}

    def of(num_ranks):
        if num_ranks not in found:
            folder = Path(tmp_path_factory.mktemp("ranks"))
            mp.spawn(work, (num_ranks, folder), nprocs=num_ranks)
            found[num_ranks] = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(num_ranks)]
        return found[num_ranks]

    return of


@pytest.fixture(scope="module")
def alone():
    torch.set_num_threads(1)
    return update_alone(make_lm())


def check_close(found, wanted, relative):
    """Tensor by tensor, in norm."""
    assert list(found) == list(wanted)
    error = {name: float((found[name] - w).norm() / w.norm()) for name, w in wanted.items()}
    assert max(error.values()) < relative, sorted(error.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize(
    "num_ranks, name",
    [pytest.param(ranks, name, marks=[pytest.mark.slow] * (ranks == 4), id=f"{ranks}-{name}") for ranks, name in CASES],
)
def test_an_update_is_that_of_one_process(updates, alone, num_ranks, name):
    for rank in updates(num_ranks):
        update = rank[name]
        assert update.loss == pytest.approx(alone.loss, rel=1e-5)
        assert update.norm == pytest.approx(alone.norm, rel=1e-5)
        assert update.imbalance == pytest.approx(alone.imbalance, rel=1e-6)
        check_close(update.logp, alone.logp, 1e-5)
        check_close(update.gradients, alone.gradients, 1e-5)
        check_close(update.weights, alone.weights, 1e-5)


def test_recomputation_runs_layers_again(updates):
    for rank in updates(2):
        assert rank["runs"]["recomputed"] == 2 * rank["runs"]["pipeline"] > 0


def test_experts_on_other_ranks_are_the_same_experts(updates):
    (spread, *_), (copied, *_) = ([rank[name] for rank in updates(2)] for name in ("expert", "data"))
    assert spread.loss == pytest.approx(copied.loss, rel=1e-6)
    check_close(spread.gradients, copied.gradients, 1e-6)
