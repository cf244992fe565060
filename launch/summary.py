"""summary.json: what a run came to, read back from its own metrics.jsonl, so that a resumed run has a whole one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from launch.run_files import read_jsonl

Line = Mapping[str, Any]
RL_SECONDS = ("perf/step_seconds", "timing_s/evaluate", "timing_s/save")


def summarise(
    folder: Path, config: RunConfig, wall_seconds: float, *, guess: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """First, last and best held-out accuracy by task, what a constant answer would score, seconds and tokens.

    `guess` is what the most frequent right answer scores on each task's held-out prompts. `seconds.rl` holds the steps,
    the evaluations and the checkpoints but the last. `seconds.total` is this process's wall time; of a resumed run at
    least what its steps took together.
    """
    lines = read_jsonl(folder / "metrics.jsonl")
    evaluated = [accuracies(line) for line in lines if any(name.startswith("eval/") for name in line)]
    sft = sum(line.get("timing_s/sft", 0.0) for line in lines)
    rl = sum(line.get(name, 0.0) for line in lines for name in RL_SECONDS)
    return {
        "seed": config.seed,
        "steps": int(lines[-1]["step"]) if lines else 0,
        "eval": {
            "first": evaluated[0] if evaluated else {},
            "last": evaluated[-1] if evaluated else {},
            "best": max(evaluated, key=_sampled_over_all, default={}),
            "guess": dict(guess or {}),
        },
        "seconds": {"sft": round(sft, 2), "rl": round(rl, 2), "total": round(max(wall_seconds, sft + rl), 2)},
        "tokens": {
            "generated": _total(lines, "tokens/generated"),
            "trained": _total(lines, "tokens/trained"),
        },
    }


def accuracies(line: Line) -> dict[str, dict[str, float]]:
    """{"sampled": {task: mean@k}, "greedy": {task: accuracy}} of one line; "all" is the mean over tasks."""
    found: dict[str, dict[str, float]] = {"sampled": {}, "greedy": {}}
    for name, value in line.items():
        if name.startswith("eval/"):
            task, what = name.removeprefix("eval/").rsplit("/", 1)
            kind = "sampled" if what.startswith("mean@") else what
            if kind in found:
                found[kind][task] = value
    return found


def _sampled_over_all(accuracy: Mapping[str, Mapping[str, float]]) -> float:
    return accuracy["sampled"].get("all", float("-inf"))


def _total(lines: Iterable[Line], name: str) -> int:
    return int(sum(line.get(name, 0) for line in lines))
