"""The files of a run's folder: written whole or not at all, read without trust that the writer lived to finish.

config.yaml  metrics.jsonl  rollouts/step_N.jsonl  checkpoints/  export/  summary.json  report.html
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cispo.errors import DataError


def write_summary(run_folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write summary.json, complete or not at all; a number that is not finite becomes null."""
    path = run_folder / "summary.json"
    write_atomically(path, json.dumps(json_ready(summary), indent=2, allow_nan=False) + "\n")
    return path


def rollout_files(run_folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every rollouts/step_N.jsonl, in the order of steps."""
    names = ((re.fullmatch(r"step_(\d+)\.jsonl", p.name), p) for p in (run_folder / "rollouts").glob("*"))
    return sorted((int(match[1]), path) for match, path in names if match)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file.

    A last line without its end is what a killed run leaves, and is ignored; any other bad line raises DataError.
    """
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    del unfinished  # "" when the file ends as it should
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}): {line[:80]!r}") from error
    return records


def read_jsonl_leniently(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a JSON Lines file for somebody who looks at a run, and a sentence on damaged lines if any."""
    *lines, unfinished = path.read_text(encoding="utf-8", errors="replace").split("\n")
    del unfinished  # what a killed run leaves, or one under way is about to finish
    records, bad = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            bad.append(number)
    if not bad:
        return records, []
    which = f"line {bad[0]} is" if len(bad) == 1 else f"{len(bad)} lines from line {bad[0]} on are"
    return records, [f"{path.name} is damaged: {which} left out."]


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one per step; none if the run logged nothing yet."""
    path = run_folder / "metrics.jsonl"
    return read_jsonl(path) if path.exists() else []


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash of the machine, sees the old text or the new and nothing else."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def json_ready(value: Any) -> Any:
    """The same value in what strict JSON knows: numpy scalars as numbers, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if hasattr(value, "item"):  # a numpy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_lines(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as JSON Lines; all ASCII, so that no character of a record can end its line."""
    return "".join(json.dumps(json_ready(record), allow_nan=False) + "\n" for record in records)
