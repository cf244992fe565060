"""Tokens per CPU-second of HybridEngine against transformers' MiniMaxForCausalLM.generate.

    python benchmarks/engine.py                     about four minutes
    python benchmarks/engine.py --repeats 5 --cases equal-64

Both sides have the same weights (a random 30M hybrid, exported and read back by transformers), float32, one thread,
one process, plain sampling at temperature 1, and make the same number of tokens. Repeats alternate between the sides
and medians are compared, because the machine may be busy with other things. CPU-seconds include the prefill.

Cases: `equal-16` and `equal-64` sample a batch of prompts to one length. `groups` samples 4 prompts 16 times each, as
RL does: the engine prefills a prompt once for its group. `long-tail` samples 128 requests whose
lengths are log-normal: the engine refills its 64 slots, transformers runs two static batches, each as long as its
longest member. `limit` is the ratio that an engine of nothing but its matrix products would reach: theirs are of the
same numbers, float32, in the same library. Results go to benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from products import cpu_shares, product_share

from model import HybridConfig, HybridLM
from model.checkpoint import save_pretrained
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling

RESULTS = Path(__file__).parent / "results" / "engine.json"

# reference size: 8 layers of which the last is softmax, hidden 256, 4 heads of 64, 8 experts top-2 of width 512
MODEL = HybridConfig(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rotary_dim=64,  # transformers rotates the whole head
    intermediate_size=512,
    num_local_experts=8,
    num_experts_per_tok=2,
    attn_type_list=(0, 0, 0, 0, 0, 0, 0, 1),
)


@dataclass(frozen=True)
class Case:
    """Prompts, and the number of new tokens that each of their `num_samples` members must get."""

    name: str
    batch: int
    prompts: list[list[int]]
    num_new: list[int]
    num_samples: int = 1

    @property
    def num_tokens(self) -> int:
        return sum(self.num_new) * self.num_samples


def cases(prompt_length: int, num_new: int) -> list[Case]:
    random = np.random.default_rng(0)

    def prompts(count: int) -> list[list[int]]:
        return random.integers(0, MODEL.vocab_size, (count, prompt_length)).tolist()

    # Median 24, mean about 33, the longest cut at 160: a tail like that of reasoning traces, made small.
    tail = np.exp(random.normal(np.log(24), 0.8, 128)).clip(4, 160).astype(int).tolist()
    return [
        Case("equal-16", 16, prompts(16), [num_new] * 16),
        Case("equal-64", 64, prompts(64), [num_new] * 64),
        Case("groups", 64, prompts(4), [num_new] * 4, num_samples=16),
        Case("long-tail", 64, prompts(128), tail),
    ]


def engine_side(lm: HybridLM) -> Callable[[Case], int]:
    def sample(case: Case) -> int:
        longest = max(map(len, case.prompts)) + max(case.num_new)
        engine = HybridEngine(lm, EngineConfig(num_slots=case.batch, max_length=longest))
        engine.submit(
            Request(str(i), tuple(prompt), case.num_samples, seed=i, sampling=Sampling(max_new_tokens=num_new))
            for i, (prompt, num_new) in enumerate(zip(case.prompts, case.num_new, strict=True))
        )
        num_tokens = 0
        while engine.has_work:
            num_tokens += sum(len(completion.token_ids) for completion in engine.step())
        return num_tokens

    return sample


def transformers_side(lm: HybridLM) -> Callable[[Case], int]:
    from transformers import MiniMaxForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(lm, folder, layout="minimax")
        theirs: Any = MiniMaxForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert_same_model(lm, theirs)

    @torch.inference_mode()
    def sample(case: Case) -> int:
        num_prompts = case.batch // case.num_samples
        for start in range(0, len(case.prompts), num_prompts):
            batch = slice(start, start + num_prompts)
            input_ids = torch.tensor(case.prompts[batch])
            out = theirs.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=max(case.num_new[batch]),
                num_return_sequences=case.num_samples,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert out.shape[1] == input_ids.shape[1] + max(case.num_new[batch]), out.shape
        return case.num_tokens  # what lies beyond a request's own length is waste, not output

    return sample


def assert_same_model(lm: HybridLM, theirs: Any) -> None:
    """Both sides must compute the same thing, or comparing their speed means nothing."""
    tokens = torch.arange(100) * 37 % MODEL.vocab_size
    with torch.inference_mode():
        ours = lm.logits(lm(tokens, torch.arange(100), torch.tensor([0, 100])))
        error = float((ours - theirs(input_ids=tokens[None]).logits[0]).abs().max())
    assert error < 1e-3, f"logits differ by {error}"
    print(f"largest difference of logits between the two: {error:.1e}")


def cpu_seconds(sample: Callable[[Case], int], case: Case) -> tuple[int, float]:
    start = time.process_time()
    num_tokens = sample(case)
    return num_tokens, time.process_time() - start


def compare(case: Case, sides: dict[str, Callable[[Case], int]], repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, sample in sides.items():
            num_tokens, taken = cpu_seconds(sample, case)
            assert num_tokens == case.num_tokens, (name, num_tokens)
            seconds[name].append(taken)
    rates = {name: case.num_tokens / statistics.median(taken) for name, taken in seconds.items()}
    share = product_share(cpu_shares(lambda: sides["engine"](case)))
    ratio = rates["engine"] / rates["transformers"]
    return {
        "case": case.name,
        "requests": len(case.prompts),
        "samples_per_request": case.num_samples,
        "slots": case.batch,
        "new_tokens": case.num_tokens,
        "cpu_seconds": {name: [round(t, 3) for t in taken] for name, taken in seconds.items()},
        "tokens_per_cpu_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(ratio, 2),
        "share_in_products": round(share, 3),
        "limit": round(ratio / share, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64, help="of the equal-length cases")
    parser.add_argument("--cases", nargs="*", default=["equal-16", "equal-64", "groups", "long-tail"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lm = HybridLM(MODEL)
    sides = {"engine": engine_side(lm), "transformers": transformers_side(lm)}
    chosen = [case for case in cases(args.prompt_length, args.new_tokens) if case.name in args.cases]
    for sample in sides.values():  # libraries compile a kernel for each new shape: once per process, so untimed
        sample(Case("warm-up", 64, [[i + 1] * 8 for i in range(64)], [1 + i // 2 for i in range(64)]))
    results = []
    for case in chosen:
        results.append(compare(case, sides, args.repeats))
        rates = results[-1]["tokens_per_cpu_second"]
        print(
            f"{case.name:10} {rates['engine']:8.0f} engine {rates['transformers']:8.0f} transformers  tokens per "
            f"CPU-second, ratio {results[-1]['ratio']:.2f}, limit {results[-1]['limit']:.2f}"
        )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    parameters = sum(parameter.numel() for parameter in lm.parameters())
    report = {"machine": machine("transformers"), "parameters": parameters, "dtype": "float32", "results": results}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
