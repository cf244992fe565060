"""Seconds and bytes per token of long prompts: 10k to a million, through the tokenizer and the engine.

    python benchmarks/long_context.py               about two minutes
    python benchmarks/long_context.py --long        also a million tokens through softmax attention: an hour or two

Two tiny policies, one of lightning layers alone and one with a softmax layer in four. Text is made up piece by piece,
put through the tokenizer as it comes, read by the engine in pieces of `prefill_tokens`, and answered with
`--new-tokens` tokens. Every size runs in a process of its own, on one thread, so that its peak of resident memory is
its own. Figures are CPU-seconds, because the machine may be busy with other things; the memory is what the process took
beyond what it had after a warm-up, next to what docs/long_context.md predicts. Results go to
benchmarks/results/long_context.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from model import HybridConfig, HybridLM, Tokenizer
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling

RESULTS = Path(__file__).parent / "results" / "long_context.json"
PATTERNS = {"lightning": (0, 0, 0, 0), "hybrid": (0, 0, 0, 1)}
TOKENIZER = Tokenizer.bytes_and_words(["the ", "sum ", "of ", "and ", "is "])


def text(num_tokens: int) -> Iterator[str]:
    """Pieces of text, more than `num_tokens` tokens in all."""
    random = np.random.default_rng(0)
    words = np.array(["the ", "sum ", "of ", "and ", "is ", "12 ", "7, ", "é\n", "apples "])
    for _ in range(0, num_tokens, 1000):
        yield "".join(random.choice(words, 1000))


def config_of(name: str) -> HybridConfig:
    return HybridConfig(vocab_size=TOKENIZER.vocab_size, attn_type_list=PATTERNS[name])


def predicted_bytes(config: HybridConfig, num_tokens: int) -> int:
    """State, keys and values, and the prompt's ids: the formula of docs/long_context.md."""
    state = len(config.lightning_layers) * config.num_attention_heads * config.head_dim**2 * 4
    kv = len(config.softmax_layers) * 2 * config.num_key_value_heads * config.head_dim * config.dtype.itemsize
    return state + num_tokens * (kv + 8)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sample(lm: HybridLM, num_tokens: int, num_new: int, piece: int) -> dict[str, float]:
    """CPU-seconds of each stage of one request."""
    start = time.process_time()
    stream = chain.from_iterable(TOKENIZER.encode_pieces(text(num_tokens)))
    token_ids = np.fromiter(stream, dtype=np.int64, count=num_tokens)
    encoded = time.process_time()
    engine = HybridEngine(lm, EngineConfig(1, num_tokens + num_new, piece))
    engine.submit([Request("long", token_ids, sampling=Sampling(max_new_tokens=num_new))])
    steps = engine.follow("long")
    while not next(steps):
        pass
    prefilled = time.process_time()
    num_decoded = sum(map(len, steps))
    assert num_decoded == num_new - 1, num_decoded
    done = time.process_time()
    return {
        "encode_seconds_per_token": (encoded - start) / num_tokens,
        "prefill_seconds_per_token": (prefilled - encoded) / num_tokens,
        "decode_seconds_per_token": (done - prefilled) / num_decoded,
    }


def measure(name: str, num_tokens: int, num_new: int, piece: int) -> dict[str, Any]:
    """One size, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lm = HybridLM(config_of(name))
    # Two pieces: buffers of the libraries and of one piece are there before the measurement, as in any engine at work.
    sample(lm, 2 * piece, num_new, piece)
    before = peak_bytes()
    seconds = sample(lm, num_tokens, num_new, piece)
    taken, wanted = peak_bytes() - before, predicted_bytes(lm.config, num_tokens)
    return {
        "model": name,
        "prompt_tokens": num_tokens,
        **{key: float(f"{value:.3g}") for key, value in seconds.items()},
        "peak_rss_mb": round(peak_bytes() / 1e6, 1),
        "rss_beyond_warm_up_mb": round(taken / 1e6, 1),
        "formula_mb": round(wanted / 1e6, 1),
        "bytes_per_token": round(taken / num_tokens, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="a million tokens through the hybrid, too")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=2048)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "TOKENS"), help="measure one size here, print its figures")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.new_tokens, args.prefill_tokens)))
        return
    torch.set_num_threads(1)
    sizes = [(name, size) for name in PATTERNS for size in (10_000, 100_000, 1_000_000)]
    results = []
    for name, size in sizes:
        if (name, size) == ("hybrid", 1_000_000) and not args.long:
            continue
        command = [sys.executable, __file__, "--one", name, str(size)]
        command += ["--new-tokens", str(args.new_tokens), "--prefill-tokens", str(args.prefill_tokens)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout)
        results.append(result)
        print(
            f"{name:10} {size:9,} tokens: {1e6 * result['prefill_seconds_per_token']:7.1f} us/token prefill, "
            f"{1e6 * result['decode_seconds_per_token']:7.0f} us/token decode, peak {result['peak_rss_mb']:6.0f} MB, "
            f"{result['rss_beyond_warm_up_mb']:6.1f} MB of them for the prompt (formula {result['formula_mb']:.1f})",
            flush=True,
        )
    report = {
        "machine": machine("tokenizers"),
        "prefill_tokens": args.prefill_tokens,
        "new_tokens": args.new_tokens,
        "dtype": "float32",
        "results": results,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
