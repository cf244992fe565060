"""A trained policy at work outside training: held-out accuracy and streamed text, with the engine that trained it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from cispo.errors import CheckpointError
from cispo.evaluate import HeldOutEvaluator
from cispo.records import rollout_record
from configs.schema import RunConfig
from launch import build
from launch.cluster import cluster, wait_until_started
from launch.compose import compose, load_config
from launch.trackers import json_ready, write_atomically
from launch.train import check_machine, make_service
from model import HybridLM, Tokenizer, load_pretrained
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling


def policy_folder(path: Path) -> Path:
    """The folder of the weights: `path` itself, or the export of the run that it is. Raises CheckpointError."""
    for folder in (path, path / "export"):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        f"{path} holds no policy: neither {path / 'config.json'} nor {path / 'export' / 'config.json'} exists; give a "
        f"run that has ended or a folder in Hugging Face layout."
    )


def run_config_of(path: Path, overrides: Sequence[str]) -> RunConfig:
    """The configuration to judge a policy by: that of its run if it has one, else the defaults."""
    folder = policy_folder(path)
    run = next((place for place in (path, path.parent) if (place / "config.yaml").is_file()), None)
    config = load_config(run / "config.yaml", overrides) if run else compose(overrides)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(folder)))


def evaluate_policy(path: Path, overrides: Sequence[str], output: Path | None) -> dict[str, float]:
    """Metrics `eval/<task>/...` of the policy at `path`; with `output` also a file with every sampled answer."""
    config = run_config_of(path, overrides)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)  # now: it would be late to fail after minutes of sampling
    check_machine(config)
    data = build.read_data(config)
    with cluster(config.cluster) as place:
        workers = [place(f"rollout-{i}", build.make_worker, config) for i in range(config.cluster.num_workers)]
        wait_until_started(workers, config.cluster.start_seconds)
        service = make_service(config, data, workers)
        evaluator = HeldOutEvaluator(service, data.held_out, config.evaluation)
        metrics = evaluator.evaluate()
    if output:
        records = [
            rollout_record(group, member, data.tokenizer.decode)
            for group in evaluator.last_groups
            for member in range(len(group.trajectories))
        ]
        lines = [json.dumps(json_ready(entry), allow_nan=False) for entry in [metrics, *records]]
        write_atomically(output, "\n".join(lines) + "\n")
    return metrics


def generate_text(path: Path, prompt: str, options: argparse.Namespace) -> Iterator[str]:
    """The policy's answer to `prompt`, piece by piece as it is sampled."""
    lm, tokenizer = _opened(policy_folder(path))
    text = tokenizer.render([{"role": "user", "content": prompt}]) if options.chat else prompt
    token_ids = tuple(tokenizer.encode(text))
    sampling = Sampling(
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        stop_token_ids=(tokenizer.eos_id,),
    )
    size = EngineConfig(num_slots=1, max_length=len(token_ids) + options.max_new_tokens + 1)
    engine = HybridEngine(lm, size)
    told, ids = "", list[int]()
    for token_id in engine.stream(Request("generate", token_ids, 1, options.seed, sampling)):
        ids.append(token_id)
        whole = tokenizer.decode(ids)
        if not whole.endswith("\ufffd"):  # half a character waits for its other half
            yield whole[len(told) :]
            told = whole


@cache
def _opened(folder: Path) -> tuple[HybridLM, Tokenizer]:
    return load_pretrained(folder), Tokenizer.load(folder)
