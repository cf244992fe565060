"""How much of an update is matrix products: one CISPO update of the 30M model on a packed row of 4096 tokens.

    python benchmarks/train_step.py                 about a minute
    python benchmarks/train_step.py --tokens 8192 --lengths 64 512

The update is the learner's own: forward pass, head, loss, backward pass, clipping, AdamW. The profiler says which
operators the CPU time went to (benchmarks/products.py). The target is 70 % in matrix products. Results go to
benchmarks/results/train_step.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from engine import MODEL
from machine import machine
from products import PRODUCTS, cpu_shares, product_share

from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.packing import pack
from cispo.types import PackedBatch, Sample, UpdateSettings
from model import HybridLM

RESULTS = Path(__file__).parent / "results" / "train_step.json"
SETTINGS = UpdateSettings(lr=1e-4, ratio_cap=3.0, max_grad_norm=1.0)


def make_batch(num_tokens: int, shortest: int, longest: int) -> PackedBatch:
    """One row of sequences whose lengths are spread evenly, three quarters of each learnt from."""
    random = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        lengths.append(min(int(random.integers(shortest, longest + 1)), num_tokens - sum(lengths)))
    samples = []
    for index, length in enumerate(lengths):
        mask = np.arange(length) >= max(1, length // 4)
        samples.append(
            Sample(
                group=index,
                member=0,
                tokens_T=random.integers(0, MODEL.vocab_size, length),
                mask_T=mask,
                behaviour_logp_T=np.where(mask, -8.3, 0).astype(np.float32),
                advantage_T=np.where(mask, random.normal(), 0).astype(np.float32),
                version_T=np.where(mask, 0, -1),
            )
        )
    return pack(samples, num_batches=1, max_row_tokens=num_tokens)[0]


def cpu_seconds(learner: LocalLearner, batch: PackedBatch) -> float:
    start = time.process_time()
    result = learner.update(batch, SETTINGS)
    assert not result.skipped, result.skipped
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--lengths", type=int, nargs=2, default=[64, 512], metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    learner = LocalLearner(HybridLM(MODEL), LearnerConfig(num_threads=1))
    batch = make_batch(args.tokens, *args.lengths)
    cpu_seconds(learner, batch)  # warms up
    seconds = [cpu_seconds(learner, batch) for _ in range(args.repeats)]
    share_of = cpu_shares(lambda: [learner.update(batch, SETTINGS) for _ in range(args.repeats)])
    products = product_share(share_of)
    median = statistics.median(seconds)
    print(f"{args.tokens / median:.0f} tokens per CPU-second; {products:.1%} of it in matrix products; then")
    others = {name: share for name, share in share_of.items() if name not in PRODUCTS}
    for name, share in list(others.items())[:12]:
        print(f"  {share:6.1%}  {name}")
    report = {
        "machine": machine(),
        "parameters": sum(parameter.numel() for parameter in learner.lm.parameters()),
        "tokens": args.tokens,
        "lengths": args.lengths,
        "sequences": len(batch.rows[0].cu_seqlens) - 1,
        "cpu_seconds": [round(taken, 3) for taken in seconds],
        "share_in_products": round(products, 4),
        "shares_of_others": {name: round(share, 4) for name, share in list(others.items())[:20]},
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
