"""The head's one-pass log-probabilities and gradients against Liger, the plain path, and the matrix products alone.

    python benchmarks/head.py                      V 32768 and 131072, D 256, T 1024 (about five minutes)
    python benchmarks/head.py --vocabularies 32768 --repeats 5

All sides get the same hidden states, weight, behaviour log-probabilities and advantages, float32, one thread, and make
the CISPO loss and the gradients of hidden states and weight:

    ours       Head.weighted_logp with the coefficients of cispo.loss
    liger      LigerFusedLinearGRPOLoss(loss_type="cispo", beta=0), its loss not compiled (the compiled part is [1, T])
    plain      log_softmax over all logits, autograd
    products   the three products with [t, V], nothing else: the limit

Times are CPU seconds, repeats alternate between the sides, medians are compared. Peak memory is the growth of a process
of its own beyond its inputs and both gradients. Before anything is timed, gradients must agree to 1e-5 of their scale.
Results go to benchmarks/results/head.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine
from torch import Tensor

from cispo.loss import Band, token_credit
from model import HybridConfig
from model.head import Head, _Chunks

RESULTS = Path(__file__).parent / "results" / "head.json"
CAP = 3.0
SIDES = ("ours", "liger", "plain", "products")


@dataclass(frozen=True)
class Case:
    """One row: hidden_TD and the head's weight want gradients; the other streams are [T]."""

    head: Head
    hidden_TD: Tensor
    targets_T: Tensor
    behaviour_T: Tensor
    advantage_T: Tensor

    def streams(self, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Behaviour log-probabilities, advantages, weights (token mean) and mask of a part of the row."""
        ones = torch.ones_like(self.advantage_T)
        return self.behaviour_T[part], self.advantage_T[part], ones[part] / len(ones), ones[part].bool()


def make_case(vocab_size: int, width: int, tokens: int) -> Case:
    torch.manual_seed(0)
    head = Head(HybridConfig(vocab_size=vocab_size, hidden_size=width))
    torch.nn.init.normal_(head.weight, std=0.05)
    hidden = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(0, vocab_size, (tokens,))
    with torch.no_grad():
        logp, _ = head.logp_and_entropy(hidden, targets, 1.0)
    behaviour = logp + 0.3 * torch.randn(tokens)
    advantage = torch.randn(8).repeat_interleave(tokens // 8)  # eight trajectories
    return Case(head, hidden, targets, behaviour, advantage)


def ours(case: Case) -> Tensor:
    band = Band(CAP)
    total, _, _ = case.head.weighted_logp(
        case.hidden_TD,
        case.targets_T,
        lambda logp_t, part: token_credit(logp_t, *case.streams(part), band).coefficient_T,
        1.0,
    )
    return -total


def plain(case: Case) -> Tensor:
    logp = torch.log_softmax(case.head(case.hidden_TD), dim=-1).gather(1, case.targets_T[:, None])[:, 0]
    credit = token_credit(logp.detach(), *case.streams(slice(None)), Band(CAP))
    return -(credit.coefficient_T * logp).sum()


def liger(case: Case) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss_of = LigerFusedLinearGRPOLoss(
        beta=0.0, loss_type="cispo", epsilon_low=0.2, epsilon_high=CAP, use_ref_model=False, compiled=False
    )

    def by_trajectory(stream: Tensor) -> Tensor:
        return stream.view(8, -1, *stream.shape[1:])

    loss: Tensor = loss_of(
        by_trajectory(case.hidden_TD),
        case.head.weight,
        by_trajectory(case.targets_T),
        torch.ones(8, len(case.targets_T) // 8),
        by_trajectory(case.advantage_T)[:, 0],
        old_per_token_logps=by_trajectory(case.behaviour_T),
    )[0]
    return loss


def products(case: Case) -> Tensor:
    """Only what no implementation can leave out, in our chunks."""
    hidden, weight = case.hidden_TD.detach(), case.head.weight.detach()
    chunks = _Chunks(hidden, weight, case.targets_T)
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    for part in chunks.parts:
        logits = torch.mm(hidden[part], weight.T, out=chunks.logits_tV[: part.stop - part.start])
        torch.mm(logits, weight, out=grad_hidden[part])
        grad_weight.addmm_(logits.T, hidden[part])
    return grad_weight


def run(side: str, case: Case) -> tuple[Tensor, ...]:
    """Loss and both gradients of one side; the products give neither."""
    if side == "products":
        return (products(case),)
    loss = {"ours": ours, "liger": liger, "plain": plain}[side](case)
    return loss.detach(), *torch.autograd.grad(loss, (case.hidden_TD, case.head.weight))


def check(case: Case) -> dict[str, float]:
    """Largest difference of each side's gradients from the plain path's, over the largest entry."""
    wanted = run("plain", case)
    errors = {}
    for side in ("ours", "liger"):
        got = run(side, case)
        errors[side] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True))
        assert errors[side] < 1e-5, f"{side} differs by {errors[side]}"
    return errors


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_bytes(side: str, vocab_size: int, width: int, tokens: int) -> int:
    """Growth of a fresh process while it runs `side`, less the two gradients that every side has to return."""
    command = [sys.executable, __file__, "--peak-of", side, "--vocabularies", str(vocab_size)]
    command += ["--width", str(width), "--tokens", str(tokens)]
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # what is freed goes back, and counts when taken again
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


def print_peak(side: str, vocab_size: int, width: int, tokens: int) -> None:
    case = make_case(vocab_size, width, tokens)
    run(side, make_case(16, width, 8))  # libraries start up
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak_rss()
    results = run(side, case)
    print(peak_rss() - before - sum(4 * result.numel() for result in results[1:]))


def peak_rss() -> int:
    """The most memory that this process has held, in bytes (getrusage would count its parent's before exec too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def compare(vocab_size: int, width: int, tokens: int, repeats: int) -> dict[str, object]:
    case = make_case(vocab_size, width, tokens)
    errors = check(case)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            seconds[side].append(cpu_seconds(lambda side=side: run(side, case)))  # type: ignore[misc]
    median = {side: statistics.median(taken) for side, taken in seconds.items()}
    return {
        "vocab_size": vocab_size,
        "width": width,
        "tokens": tokens,
        "gradient_error_against_plain": errors,
        "cpu_seconds": {side: [round(t, 3) for t in taken] for side, taken in seconds.items()},
        "ours_over": {side: round(median["ours"] / median[side], 3) for side in SIDES[1:]},
        "peak_bytes": {side: peak_bytes(side, vocab_size, width, tokens) for side in SIDES[:3]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[32768, 131072])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1024, help="a multiple of 8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", choices=SIDES, help="only print the peak memory of one side, in bytes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak_of:
        print_peak(args.peak_of, args.vocabularies[0], args.width, args.tokens)
        return
    results = []
    for vocab_size in args.vocabularies:
        results.append(compare(vocab_size, args.width, args.tokens, args.repeats))
        ratios, peaks = results[-1]["ours_over"], results[-1]["peak_bytes"]
        print(f"V {vocab_size}: time of ours over {ratios}, peak bytes {peaks}", flush=True)
    RESULTS.write_text(json.dumps({"machine": machine("liger_kernel"), "results": results}, indent=1) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
