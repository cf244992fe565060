"""What the age of the groups costs in accuracy, after the same number of samples, and where old states come in.

    python benchmarks/staleness.py                    seeds 1, 2, 3: about 40 minutes on two cores
    python benchmarks/staleness.py --seeds 1

Each seed has one cold start, from which a run with each setting goes on: 30 steps of 24 groups of 16, both tasks of the
embedded default, at a rate that learns as much as there is to learn in so few steps. What is told is the held-out
accuracy at the end, how old the tokens were, and how far sampler and learner of one version were apart: on tokens of
sequences that this version began, and on those of sequences that an older one had begun (`in flight`), whose states
are kept or computed anew. Results go to benchmarks/results/staleness.json, a table to the terminal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from machine import machine

from launch.compose import compose
from launch.train import run_training

RESULTS = Path(__file__).parent / "results" / "staleness.json"
RECIPE = (
    "experiment=short",
    "steps=30",
    "groups_per_step=24",
    "learner.lr=[[0,0.0001],[5,0.0005],[30,0.0005]]",
    "tracking.console=false",
    "tracking.rollouts_per_step=1",
)
SETTINGS = {
    "0": ("max_staleness=0",),
    "1": ("max_staleness=1",),
    "4": ("max_staleness=4",),
    "4, recompute": ("max_staleness=4", "engine.stale_states=recompute"),
}
METRICS = (
    "staleness/mean",
    "staleness/max",
    "ratio/capped_fraction",
    "ratio/masked_fraction",
    "drift/kl_p95",
    "mismatch/logp_abs_diff_mean",
    "mismatch/in_flight_logp_abs_diff_mean",
    "mismatch/in_flight_kl",
)


def run(name: str, folder: Path, *overrides: str, sft_only: bool = False) -> Path:
    """One run; its folder."""
    return run_training(compose([*RECIPE, *overrides, f"name={name}", f"runs_folder={folder}"]), sft_only=sft_only)


def judge(setting: str, seed: int, folder: Path) -> dict[str, Any]:
    """Accuracy before and after, and the mean of each metric over the steps that have it."""
    evaluated = json.loads((folder / "summary.json").read_text())["eval"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {name: [line[name] for line in lines if name in line] for name in METRICS}
    return {
        "setting": setting,
        "seed": seed,
        "accuracy": {
            kind: [evaluated[when][kind]["all"] for when in ("first", "last")] for kind in ("sampled", "greedy")
        },
        "metrics": {name: statistics.mean(values) for name, values in found.items() if values},
        "seconds_per_step": statistics.median(
            line["perf/step_seconds"] for line in lines if "perf/step_seconds" in line
        ),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each setting: means over the seeds, for accuracy with the range."""
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == setting]
        last = {kind: [row["accuracy"][kind][1] for row in mine] for kind in ("sampled", "greedy")}
        cells = [f"{statistics.mean(a):.3f} ({min(a):.3f} to {max(a):.3f})" for a in last.values()]
        for name in METRICS:
            values = [row["metrics"][name] for row in mine if name in row["metrics"]]
            cells.append(f"{statistics.mean(values):.2g}" if values else "–")
        lines.append(" | ".join(["", setting, *cells, ""]).strip())
    return "\n".join([" | ".join(["", "setting", "sampled", "greedy", *METRICS, ""]).strip(), *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for seed in arguments.seeds:
            start = run(f"{seed}-start", Path(place), f"seed={seed}", sft_only=True) / "export"
            for setting, overrides in SETTINGS.items():
                name = f"{seed}-{setting.replace(', ', '-')}"
                own = (f"seed={seed}", f"model.path={start}", "sft.steps=0", *overrides)
                rows.append(judge(setting, seed, run(name, Path(place), *own)))
                print(json.dumps(rows[-1]), flush=True)
                RESULTS.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
