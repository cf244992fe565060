"""What W&B is sent of a step, made of the run's own files: so a resumed run can send again what W&B lacks."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cispo.histogram import Histogram
from configs.fleet import TrackingConfig
from launch.run_files import read_jsonl

COLUMNS = (
    "step", "task", "prompt", "text", "reward", "correct", "verdict", "note", "parts", "advantage", "mean_ratio",
    "version", "stop_reason", "num_tokens", "prompt_id", "group", "member",
)  # fmt: skip
MAX_CHARACTERS = 8000
"""Of a prompt or an answer in a table: W&B loads a table whole. rollouts/step_N.jsonl has all of it."""

VARIABLES = re.compile(r"(\+*slurm\.environment[^=]*|\+*slurm(?==\{))=.*", re.DOTALL)
"""A word of the command that gives variables to a job."""


def row(step: int, metrics: Mapping[str, Any], histograms: Mapping[str, Histogram]) -> dict[str, Any]:
    """One step for `run.log`: the numbers that are finite, and the histograms."""
    import wandb

    finite = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    drawn = {
        name: wandb.Histogram(np_histogram=(list(histogram.counts), list(histogram.edges)))
        for name, histogram in histograms.items()
    }
    return {**finite, **drawn, "step": step}


def traces(step: int, records: Sequence[Mapping[str, Any]], config: TrackingConfig) -> dict[str, Any]:
    """The table of a step's traces, if it is due."""
    import wandb

    if not (config.traces_every and records and step % config.traces_every == 0):
        return {}
    return {
        "traces": wandb.Table(columns=list(COLUMNS), data=[_cells(step, record) for record in records[: config.traces]])
    }


def replayed(
    folder: Path, config: TrackingConfig, lines: Sequence[Mapping[str, Any]], *, after: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, row) of each of these lines of metrics.jsonl that is later than `after`."""
    histograms = {line["step"]: line for line in read_histograms(folder)}
    for line in lines:
        step = int(line["step"])
        if step <= after:
            continue
        drawn = {
            name: Histogram(tuple(value["counts"]), tuple(value["edges"]))
            for name, value in histograms.get(step, {}).items()
            if name != "step"
        }
        path = folder / "rollouts" / f"step_{step}.jsonl"
        is_due = config.traces_every and step % config.traces_every == 0 and path.exists()
        yield step, row(step, line, drawn) | traces(step, read_jsonl(path) if is_due else [], config)


def read_histograms(folder: Path) -> list[dict[str, Any]]:
    """The lines of histograms.jsonl, one per step; none if there is none."""
    path = folder / "histograms.jsonl"
    return read_jsonl(path) if path.exists() else []


def plain(value: Any) -> Any:
    """A configuration as W&B can show it: infinities by name, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def hidden_variables() -> Iterator[None]:
    """W&B shows the command: the variables of a job, which may be secrets, are named in it and no more."""
    command = sys.argv
    sys.argv = [VARIABLES.sub(r"\1=(not shown)", word) for word in command]
    try:
        yield
    finally:
        sys.argv = command


def _cells(step: int, record: Mapping[str, Any]) -> list[Any]:
    known: dict[str, Any] = {**record, "step": step, "parts": json.dumps(record["parts"])}
    return [_shortened(known[name]) if isinstance(known[name], str) else known[name] for name in COLUMNS]


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
