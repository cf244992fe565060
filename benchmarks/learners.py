"""Seconds and memory of one update by each learner: the 30M model, two ranks of one thread each.

    python benchmarks/learners.py                              about ten minutes on two quiet cores
    python benchmarks/learners.py --only local megatron-tensor
    python benchmarks/learners.py --device cuda --peak-tflops 989 --dtype bfloat16

Every case starts its ranks anew and makes the same updates: four packed rows of `--tokens` tokens each, dealt out to
the data ranks. Told are, of the slowest rank, the median of wall and of CPU seconds of an update, and, of the largest,
the resident memory beyond what the process had before the model was made, at its peak. With `--peak-tflops` also the
share of the devices' peak that 6 floating-point operations per active weight and token are (mfu). On a machine whose
cores are busy wall seconds say little. Where no GPU is present megatron runs through the tests' harness. Results go to
benchmarks/results/learners.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from engine import MODEL
from machine import machine
from train_step import SETTINGS, make_batch

from cispo.learner.backends import make_learner
from cispo.learner.config import DeepSpeedConfig, LearnerConfig
from cispo.learner.policy import Policy
from cispo.learner.ranks import Ranks
from cispo.learner.shards import deal
from cispo.types import PackedBatch
from model.layout import Layout
from model.sizes import active_parameters

RESULTS = Path(__file__).parent / "results" / "learners.json"
NUM_ROWS = 4


def cases() -> dict[str, dict[str, Any]]:
    """Name -> what a LearnerConfig is made with."""
    two = {"num_ranks": 2}
    layouts = {
        "data": Layout(),
        "tensor": Layout(tensor=2, sequence_parallel=True),
        "pipeline": Layout(pipeline=2),
        "expert": Layout(expert=2),
        "context": Layout(context=2),
    }
    return {
        "local": {},
        "local-recomputed": {"recompute": True},
        "local-whole": two,
        "local-sharded": two | {"copies": "sharded"},
        **{
            f"deepspeed-{stage}": two | {"kind": "deepspeed", "deepspeed": DeepSpeedConfig(stage=stage)}
            for stage in (1, 2, 3)
        },
        **{f"megatron-{name}": two | {"kind": "megatron", "layout": layout} for name, layout in layouts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(cases()), default=list(cases()))
    parser.add_argument("--tokens", type=int, default=1024, help="of each of the four rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of one device, to tell mfu")
    args = parser.parse_args()
    results = []
    for name in args.only:
        config = LearnerConfig(device=args.device, dtype=args.dtype, **cases()[name])
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (config, args.tokens, args.repeats, Path(folder)), nprocs=config.num_ranks)
            ranks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
        result = {"learner": name, "ranks": config.num_ranks, **worst(ranks)}
        if args.peak_tflops:
            work_done = 6 * active_parameters(MODEL).total * NUM_ROWS * args.tokens
            rate = work_done / result["wall_seconds"] / config.num_ranks
            result["mfu"] = round(rate / args.peak_tflops / 1e12, 4)
        results.append(result)
        print("  ".join(f"{key} {value}" for key, value in result.items()), flush=True)
    report = {
        "machine": machine("deepspeed", "megatron-core"),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "dtype": args.dtype,
        "rows": NUM_ROWS,
        "tokens_per_row": args.tokens,
        "results": results,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


def worst(ranks: list[dict[str, float]]) -> dict[str, float]:
    """An update takes as long as its slowest rank, and a rank must have room for the largest."""
    return {key: max(rank[key] for rank in ranks) for key in ranks[0]}


def work(rank: int, config: LearnerConfig, num_tokens: int, repeats: int, folder: Path) -> None:
    """One rank of one case."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if config.kind == "megatron" and not torch.cuda.is_available():
        import_on_cpu()
    store = dist.FileStore(str(folder / "store"), config.num_ranks)
    ranks = Ranks()
    if config.num_ranks > 1:
        ranks = Ranks.join(store, rank, config.num_ranks, device=config.device, deadline_seconds=600)
    before = peak_bytes(config)
    learner = make_learner(Policy(MODEL), config, ranks)
    batch = deal(make_rows(num_tokens), config.num_shards)[config.shard_of(rank)]
    learner.update(batch, SETTINGS)  # warms up
    wall, cpu = [], []
    for _ in range(repeats):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        result = learner.update(batch, SETTINGS)
        assert not result.skipped, result.skipped
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
    figures = {
        "wall_seconds": round(statistics.median(wall), 3),
        "cpu_seconds": round(statistics.median(cpu), 3),
        "peak_mb": round((peak_bytes(config) - before) / 1e6),
    }
    (folder / f"{rank}.json").write_text(json.dumps(figures), encoding="utf-8")
    learner.close()


def make_rows(num_tokens: int) -> PackedBatch:
    """Four rows; that they are the same makes no difference to time or memory."""
    return PackedBatch(make_batch(num_tokens, 64, 512).rows * NUM_ROWS)


def peak_bytes(config: LearnerConfig) -> int:
    """The most that this process has held so far, on the device or resident."""
    if config.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def import_on_cpu() -> None:
    """Megatron, which takes a GPU for granted, through the tests' harness."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.model.megatron import megatron_on_cpu

    megatron_on_cpu.before_import()
    import model.megatron  # noqa: F401

    megatron_on_cpu.after_import()


if __name__ == "__main__":
    main()
