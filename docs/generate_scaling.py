"""Writes the tables of docs/scaling.md from the formulas of model/sizes.py, model/memory.py, launch/estimate.py and
launch/publish_time.py.

python docs/generate_scaling.py
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from launch.compose import compose
from launch.estimate import learner_memory, worker_memory
from launch.publish_time import (
    Links,
    chain_seconds,
    check_seconds,
    gather_seconds,
    parts_seconds,
    pull_seconds,
    tree_seconds,
)
from model import HybridConfig
from model.layout import Layout
from model.layout_faults import check_layout
from model.memory import BFLOAT16, FLOAT32, RankMemory, Storage, Work, rank_memory
from model.sizes import active_parameters, model_parameters, rank_parameters

PAGE = Path(__file__).with_name("scaling.md")
GB, ROOM = 1e9, 80e9
MODELS = ("tiny", "hybrid_1b", "hybrid_16b", "minimax_m1")


@dataclass(frozen=True)
class Case:
    """A line of the table of layouts."""

    model: str
    num_ranks: int
    layout: Layout
    storage: Storage
    work: Work


def _m1(*parts: int, row_tokens: int = 131072, recompute: bool = True) -> Case:
    return Case("minimax_m1", 512, Layout(*parts, sequence_parallel=True), BFLOAT16, Work(row_tokens, recompute))


CASES = (
    Case("hybrid_1b", 1, Layout(), FLOAT32, Work(8192)),
    Case("hybrid_1b", 1, Layout(), FLOAT32, Work(8192, recompute=False)),
    Case("hybrid_1b", 1, Layout(), FLOAT32, Work(131072)),
    Case("hybrid_16b", 8, Layout(), BFLOAT16, Work(32768)),
    Case("hybrid_16b", 8, Layout(), replace(BFLOAT16, zero=3), Work(32768)),
    Case("hybrid_16b", 8, Layout(expert=8), BFLOAT16, Work(32768)),
    Case("hybrid_16b", 8, Layout(expert=8, context=8), BFLOAT16, Work(32768, recompute=False)),
    Case("hybrid_16b", 8, Layout(expert=8, context=8), BFLOAT16, Work(131072)),
    Case("hybrid_16b", 8, Layout(4, 1, 1, 2, 2, True), BFLOAT16, Work(131072)),
    _m1(8, 8, 1, 8, 1),
    _m1(8, 8, 1, 8, 8),
    _m1(8, 8, 5, 8, 8),
    _m1(8, 8, 1, 8, 8, recompute=False),
    _m1(8, 2, 1, 32, 32),
    _m1(8, 2, 1, 32, 32, recompute=False),
    _m1(4, 8, 1, 16, 16),
)
SHOWN = Layout(8, 8, 1, 8, 8, sequence_parallel=True)
"""The layout of MiniMax-M1 whose communication is shown in numbers."""


@cache
def shape(name: str) -> HybridConfig:
    """The shape of configs/model/<name>.yaml."""
    return compose([f"model={name}"]).model.shape


def largest_stage(case: Case) -> tuple[int, RankMemory]:
    """The stage whose ranks need most, and what they need; raises ModelError if the layout cannot work."""
    config = shape(case.model)
    check_layout(config, case.layout, case.num_ranks)
    stages = [
        rank_memory(config, case.layout, case.num_ranks, case.storage, case.work, stage)
        for stage in range(case.layout.pipeline)
    ]
    return max(enumerate(stages), key=lambda pair: pair[1].total)


def models() -> str:
    """Parameters by part, in millions."""
    rows = []
    for name in MODELS:
        whole, active = model_parameters(shape(name)), active_parameters(shape(name))
        parts = (whole.total, whole.experts, whole.lightning, whole.softmax, whole.routers + whole.norms, whole.head)
        numbers = [_millions(number) for number in (*parts, active.body, active.body + active.head)]
        rows.append([f"`model={name}`", *numbers])
    header = ["", "all", "experts", "lightning", "softmax", "routers, norms", "embedding; head", "active", "with head"]
    return _table(header, rows)


def layouts() -> str:
    """Bytes of a rank of the largest stage, in GB, for each case."""
    rows = []
    for case in CASES:
        stage, memory = largest_stage(case)
        parameters = rank_parameters(shape(case.model), case.layout, stage).total
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.head)
        total = f"{memory.total / GB:.1f}"
        rows.append(
            [
                f"`{case.model}`, {case.num_ranks}",
                _short(case.layout) + (f", ZeRO {case.storage.zero}" if case.storage.zero > 1 else ""),
                f"{case.work.row_tokens:,}{'' if case.work.recompute else ', all kept'}",
                f"{stage + 1} of {case.layout.pipeline}",
                f"{parameters / 1e9:.2f}",
                *(f"{part / GB:.1f}" for part in parts),
                f"**{total}**" if memory.total < ROOM else f"{total}, too much",
            ]
        )
    header = ["model, GPUs", "layout", "row tokens", "stage", "10⁹ parameters"]
    return _table([*header, "weights", "gradients", "optimizer", "activations", "head", "GB in all"], rows)


EXPERIMENTS = {"one_gpu": [], "node": [], "m1_like": ["engine.server.urls=[http://sampler:8000]"]}


def experiments() -> str:
    """Bytes of a rank of the learner and of a rollout worker, in GB, of the experiments on GPUs."""
    rows = []
    for name, needed in EXPERIMENTS.items():
        config = compose([f"experiment={name}", *needed])
        rank, worker = learner_memory(config, config.model.shape), worker_memory(config, config.model.shape)
        assert rank, "the family of these is known"
        parts = (rank.weights, rank.gradients, rank.optimizer, rank.activations, rank.head)
        both = rank.total + (worker.total if worker else 0)
        largest = both if not config.learner_gpus else max(rank.total, worker.total if worker else 0)
        sampling = (f"{worker.weights / GB:.1f}", f"{worker.states / GB:.1f}") if worker else ("", "")
        gpus = f"{config.learner_gpus or 'shared'}, {config.worker_gpus:g}"
        rows.append([f"`{name}`", gpus, *(f"{part / GB:.1f}" for part in parts), *sampling, f"**{largest / GB:.1f}**"])
    header = ["experiment", "GPUs: learner, workers", "weights", "gradients", "optimizer", "activations", "head"]
    return _table([*header, "worker: weights", "states, keys, values", "GB of a GPU"], rows)


def bubbles() -> str:
    """The part of an update that ranks wait, in percent."""
    counts = (8, 16, 32, 64, 128)
    rows = [
        [_short(layout), *(f"{100 * layout.bubble_fraction(count):.1f} %" for count in counts)]
        for layout in (Layout(pipeline=2), Layout(pipeline=8), Layout(1, 8, 2), Layout(1, 8, 5), Layout(pipeline=16))
    ]
    return _table(["", *(f"{count} rows" for count in counts)], rows)


def traffic() -> str:
    """What each dimension moves, as formulas and for one layout of MiniMax-M1."""
    config, layout = shape("minimax_m1"), SHOWN
    t, e, c = layout.tensor, layout.expert, layout.context
    width, number, k = config.hidden_size, config.dtype.itemsize, config.num_experts_per_tok
    once = (t - 1) / t * width * number
    to_experts = 2 * k * (e - 1) / e * width * number / t
    keys_and_values = 2 * (c - 1) * config.num_key_value_heads * config.head_dim * number / t
    states = (c - 1) * config.num_attention_heads * config.head_dim**2 * 4 / t
    stream = width * number / t
    rows = [
        ("tensor: mixer", "2 (t-1)/t · D b", 2 * once, "2 n (t-1)/t · D b", 4 * once),
        ("the same, sequence parallel", "(n+1) (t-1)/t · D b", 3 * once, "(2 n+1) (t-1)/t · D b", 5 * once),
        ("tensor: experts", "2 k (t-1)/t · D b", 2 * k * once, "the same", 2 * k * once),
        ("expert", "2 k (e-1)/e · D b / t", to_experts, "the same", to_experts),
        ("context: softmax layer", "2 (c-1) K b / t", keys_and_values, "twice that", 2 * keys_and_values),
        ("context: lightning layer, once a row", "(c-1) H d² 4 / t", states, "twice that", 2 * states),
        ("pipeline: from stage to stage", "D b / s", stream, "the same", stream),
    ]
    header = ["", "forward", "kB", "backward", "kB"]
    return _table(header, [[what, f, f"{x / 1e3:,.1f}", g, f"{y / 1e3:,.1f}"] for what, f, x, g, y in rows])


LINKS = Links()
LEARNERS, WORKERS, BUCKET = 256, 256, 1e9
"""GPUs on either side of 64 nodes, and bytes of a bucket."""

REPLICAS = 16
"""Of the policy on the workers' side: 57 GB of weights on each of 16 GPUs."""

UNCHANGED = 0.99
"""Of the bytes, from one version to the next, as others publish it; ours are in docs/weight_sync.md."""


def publishes() -> str:
    """Seconds of a publish of MiniMax-M1 by each way."""
    num_bytes = model_parameters(shape("minimax_m1")).total * 2.0
    nodes = WORKERS // LINKS.cards
    sent = num_bytes * (1 - UNCHANGED + 1 / 16)  # a bit for each block of 2 bytes says which changed
    gather = gather_seconds(num_bytes, LEARNERS, LINKS)
    check = check_seconds(num_bytes, LINKS, threads=LINKS.cards)
    ways = [
        ("gather to learner-0, one card", "V (n-1)/n / b", num_bytes, gather),
        ("the same through all cards of its node", "V (n-1)/n / 8 b", num_bytes, gather / LINKS.cards),
        ("checksums, 8 threads; once on either side", "V / 8 s", num_bytes, check),
        ("object store: nodes pull", "⌈log₂(N+1)⌉ V / b", num_bytes, pull_seconds(num_bytes, nodes, LINKS)),
        (
            "broadcast, binomial tree (gloo)",
            "⌈log₂(N+1)⌉ V / b",
            num_bytes,
            tree_seconds(num_bytes, BUCKET, nodes, LINKS),
        ),
        (
            "broadcast, chain of nodes (NCCL's ring)",
            "(V + (N-1) k) / b",
            num_bytes,
            chain_seconds(num_bytes, BUCKET, nodes, LINKS),
        ),
        ("changed bytes, pulled", "⌈log₂(N+1)⌉ v / b", sent, pull_seconds(sent, nodes, LINKS)),
        (
            "every rank its own part, all cards",
            "R V / min(n, m) / b",
            REPLICAS * num_bytes,
            parts_seconds(num_bytes, LEARNERS, WORKERS, REPLICAS, LINKS),
        ),
    ]
    rows = [[what, formula, f"{bytes_ / GB:,.0f}", f"{seconds:,.1f}"] for what, formula, bytes_, seconds in ways]
    return _table(["", "formula", "GB", "seconds"], rows)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}" if number >= 1e6 else f"{number / 1e6:.3f}"


def _short(layout: Layout) -> str:
    """The parts that are more than one."""
    parts = [part for part in str(layout).split() if not part.endswith("=1")]
    return ", ".join(part.replace("sequence_parallel=true", "sequence parallel") for part in parts) or "data only"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "layouts": layouts,
    "experiments": experiments,
    "bubbles": bubbles,
    "traffic": traffic,
    "publishes": publishes,
}


def with_tables(page: str) -> str:
    """The page with every table between its marks made anew."""

    def filled(mark: re.Match[str]) -> str:
        return f"<!-- {mark[1]}: docs/generate_scaling.py -->\n{TABLES[mark[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (\w+): docs/generate_scaling.py -->.*?<!-- end -->", filled, page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
