"""Sequences that get new weights half-way: how far the learner is from them, with old states kept and recomputed.

    python benchmarks/stale_states.py                 about four minutes on one core

A run of the embedded default is trained for `OLD` + 4 steps. An engine with the weights of step `OLD` begins to answer
held-out prompts, gets the weights of 1, 2 or 4 steps later after `SWAP` tokens, and goes on. The tokens sampled after
that are compared with what the learner of the new weights says of them, reading the whole sequence; a sequence that was
begun by the new weights shows what is rounding alone. Results go to benchmarks/results/stale_states.json.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine

from cispo.learner.local import LocalLearner
from configs.schema import RunConfig
from launch import build
from launch.compose import compose
from launch.train import run_training
from rollout.engine import HybridEngine, Request
from rollout.sampling import Sampling

RESULTS = Path(__file__).parent / "results" / "stale_states.json"
OLD, SWAP, PROMPTS, SAMPLES = 15, 4, 48, 8
LATER = (1, 2, 4)
RECIPE = (
    "experiment=short", f"steps={OLD + max(LATER)}", "groups_per_step=24", "save_every=1", "checkpoints.keep=1000",
    "learner.lr=[[0,0.0001],[5,0.0005],[30,0.0005]]", "tracking.console=false", "tracking.rollouts_per_step=1",
    "cluster=inline", "name=run",
)  # fmt: skip


def learner_at(config: RunConfig, step: int) -> LocalLearner:
    """The learner of a checkpoint."""
    learner = LocalLearner(build.make_policy(config, build.make_tokenizer(config)).lm(), config.learner)
    learner.load(Path(config.runs_folder) / config.name / "checkpoints" / f"step_{step}" / "learner")
    return learner


def sampled(config: RunConfig, old: LocalLearner, new: LocalLearner, stale_states: str, swap: int) -> dict[str, float]:
    """Tokens that `new` sampled in sequences that got it after `swap` tokens, against its full forward."""
    data = build.read_data(config)
    prompts = data.held_out[:: -(-len(data.held_out) // PROMPTS)]
    sampling = Sampling(temperature=1.0, max_new_tokens=48, stop_token_ids=(data.tokenizer.eos_id,))
    engine = HybridEngine(
        build.make_policy(config, data.tokenizer).lm(),
        dataclasses.replace(config.engine, num_slots=len(prompts) * SAMPLES, stale_states=stale_states),
    )
    engine.load_weights(old.weights() if swap else new.weights(), 0)
    engine.submit(
        Request(str(i), tuple(prompt.token_ids), SAMPLES, seed=i, sampling=sampling) for i, prompt in enumerate(prompts)
    )
    completions, seconds = [], 0.0
    for step in range(10_000):
        if step == swap and swap:
            begin = time.perf_counter()
            engine.load_weights(new.weights(), 1)
            completions += engine.step()
            seconds = time.perf_counter() - begin
        completions += engine.step()
        if not engine.has_work:
            break
    newest = 1 if swap else 0
    differences = []
    for completion in completions:
        prompt = prompts[int(completion.request_id)].token_ids
        tokens_T = torch.tensor([*prompt, *completion.token_ids])
        with torch.no_grad():
            hidden_TD = new.lm(tokens_T, torch.arange(len(tokens_T)), torch.tensor([0, len(tokens_T)]))
            logp_TV = new.lm.logits(hidden_TD).log_softmax(-1)
        logp_A = logp_TV[len(prompt) - 1 : -1].gather(1, tokens_T[len(prompt) :, None])[:, 0].numpy()
        differences.append((logp_A - completion.logp)[np.asarray(completion.version) == newest])
    difference = np.concatenate(differences).astype(np.float64)
    return {
        "tokens": len(difference),
        "logp_abs_diff_mean": float(np.abs(difference).mean()),
        "logp_abs_diff_max": float(np.abs(difference).max()),
        "kl": float((np.expm1(difference) - difference).mean()),
        "swap_seconds": seconds,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        config = compose([*RECIPE, f"runs_folder={place}"])
        run_training(config)
        old = learner_at(config, OLD)
        for later in LATER:
            new = learner_at(config, OLD + later)
            for stale_states, swap in (("keep", SWAP), ("recompute", SWAP), ("begun by the new weights", 0)):
                told = sampled(config, old, new, stale_states if swap else "keep", swap)
                rows.append({"steps_later": later, "states": stale_states, **told})
                print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
