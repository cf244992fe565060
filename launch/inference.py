"""A trained policy at work outside training: held-out accuracy and streamed text, with the engine that trained it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from cispo.errors import CheckpointError, ConfigError, DataError
from cispo.evaluate import HeldOutEvaluator
from cispo.records import rollout_record
from configs.schema import RunConfig
from launch import build
from launch.cluster import cluster, wait_until_started
from launch.compose import compose, load_config
from launch.run_files import json_ready, write_atomically
from launch.sandbox_actors import shared_sandboxes
from launch.start_checks import check_machine
from launch.train import make_service, place_workers, worker_maker
from model import HybridLM, Tokenizer, load_pretrained
from model.checkpoint import fingerprint
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling
from rollout.state_file import stream_resumably


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
    # The policy is there: what it is judged on need not have demonstrations, and no learner's ranks are started.
    overrides = ["sft.steps=0", "learner.num_ranks=1", *overrides]
    config = load_config(run / "config.yaml", overrides) if run else compose(overrides)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(folder)))


def evaluate_policy(path: Path, overrides: Sequence[str], output: Path | None) -> dict[str, float]:
    """Metrics `eval/<task>/...` of the policy at `path`; with `output` also a file with every sampled answer."""
    config = run_config_of(path, overrides)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)  # now: it would be late to fail after minutes of sampling
    check_machine(config)
    data = build.read_data(config)
    with cluster(config.cluster) as place, shared_sandboxes(config) as sandboxes:
        workers = place_workers(config, worker_maker(config, place, sandboxes))
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


def prompt_pieces(options: argparse.Namespace, lines: Iterable[str]) -> Iterator[Iterable[str]]:
    """The prompts of `cispo generate`, each as pieces of text: the one given, a file's, or one per line."""
    if options.state and options.prompt is None and options.prompt_file is None:
        raise ConfigError("--state keeps the state of one prompt: give the prompt or --prompt-file.")
    if options.prompt is not None and options.prompt_file is not None:
        raise ConfigError("A prompt is given or read with --prompt-file, not both.")
    if options.prompt_file is not None:
        yield _file_pieces(options.prompt_file)
    elif options.prompt is not None:
        yield [options.prompt]
    else:
        yield from ([line.rstrip("\n")] for line in lines)


def _file_pieces(path: Path, size: int = 1 << 16) -> Iterator[str]:
    """The text of a file as it is, in pieces. Raises DataError if it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while piece := file.read(size):
                yield piece
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The prompt file {path} cannot be read as UTF-8 text: {error}.") from error


def generate_text(path: Path, prompt: Iterable[str], options: argparse.Namespace) -> Iterator[str]:
    """The policy's answer to the prompt that the pieces make together, piece by piece as it is sampled.

    With `options.state` it goes on from that file and saves itself there (rollout/state_file.py).
    """
    folder = policy_folder(path)
    lm, tokenizer = _opened(folder)
    pieces = [tokenizer.render([{"role": "user", "content": "".join(prompt)}])] if options.chat else prompt
    token_ids = np.fromiter(chain.from_iterable(tokenizer.encode_pieces(pieces)), dtype=np.int64)
    sampling = Sampling(
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        stop_token_ids=(tokenizer.eos_id,),
    )
    size = EngineConfig(num_slots=1, max_length=len(token_ids) + options.max_new_tokens + 1)
    engine = HybridEngine(lm, size)
    request = Request("generate", token_ids, 1, options.seed, sampling)
    if options.state:
        ids = stream_resumably(engine, request, options.state, fingerprint(lm), options.save_seconds)
    else:
        ids = engine.stream(request)
    return text_of(ids, tokenizer.decode)


def text_of(ids: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of token ids as they come; half a character waits for its other half.

    A piece is decoded behind the one before it, for the sake of decoders that treat the first token otherwise.
    """
    before, pending = list[int](), list[int]()
    for token_id in ids:
        pending.append(token_id)
        text = decode(before + pending)
        if not text.endswith("\ufffd"):
            yield text[len(decode(before)) :]
            before, pending = pending, []


@cache
def _opened(folder: Path) -> tuple[HybridLM, Tokenizer]:
    return load_pretrained(folder), Tokenizer.load(folder)
