"""`cispo runs`: the runs of a folder in one table, or some side by side: settings that differ, and results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cispo.errors import DataError
from launch.run_files import read_metrics
from launch.run_folder import is_driven
from launch.summary import accuracies

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "–"
NOT_SETTINGS = ("name", "runs_folder")
"""Keys that always differ and say nothing."""


@dataclass(frozen=True)
class LocalRun:
    """A run as its folder shows it, whether it is over or not."""

    folder: Path

    @property
    def is_one(self) -> bool:
        """There is something of a run in the folder."""
        return any((self.folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "rollouts"))

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The configuration by dotted key."""
        import yaml

        text = (self.folder / "config.yaml").read_text(encoding="utf-8")
        try:
            return dict(_flat(yaml.safe_load(text) or {}))
        except (yaml.YAMLError, AttributeError) as error:
            raise DataError(f"{self.folder / 'config.yaml'} is not a configuration ({error}).") from error

    @cached_property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """Those of metrics.jsonl."""
        return read_metrics(self.folder)

    @property
    def step(self) -> int:
        """The last one that was logged."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def state(self) -> str:
        """ "running", "finished" or "stopped"."""
        if is_driven(self.folder):
            return "running"
        return "finished" if (self.folder / "summary.json").exists() else "stopped"

    @property
    def last_change(self) -> float:
        """Seconds since 1970."""
        metrics, config = self.folder / "metrics.jsonl", self.folder / "config.yaml"
        return (metrics if metrics.exists() else config).stat().st_mtime

    def accuracy(self, kind: str) -> tuple[float, float] | None:
        """(first, last) held-out accuracy over all tasks; `kind` is "sampled" or "greedy"."""
        found = [a[kind] for line in self.lines if (a := accuracies(line))[kind]]
        overall = [by_task.get("all", sum(by_task.values()) / len(by_task)) for by_task in found]
        return (overall[0], overall[-1]) if overall else None

    def last(self, metric: str) -> float | None:
        """Its last value."""
        return next((line[metric] for line in reversed(self.lines) if line.get(metric) is not None), None)

    def total(self, metric: str) -> float:
        """Its sum over all steps."""
        return float(sum(line.get(metric) or 0 for line in self.lines))


def find_runs(folder: Path) -> list[LocalRun]:
    """The runs in a folder, changed last first. Raises DataError if there is none."""
    runs = [LocalRun(path.parent) for path in folder.glob("*/config.yaml")]
    if not runs:
        raise DataError(
            f"{folder} holds no run, which is a folder with a config.yaml; name the folder that has them, e.g. "
            f"cispo runs path/to/runs."
        )
    return sorted(runs, key=lambda run: -run.last_change)


def show(folders: Sequence[Path]) -> None:
    """Print runs side by side, or one table of those below the folders; nothing of none."""
    from rich.console import Console

    if all((folder / "config.yaml").is_file() for folder in folders):
        runs = [LocalRun(folder) for folder in folders]
        tables = side_by_side(runs) if len(runs) > 1 else [overview(runs)] if runs else []
    else:
        tables = [overview([run for folder in folders for run in _runs_of(folder)])]
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for table in tables:
        console.print(table)


def _runs_of(folder: Path) -> list[LocalRun]:
    return [LocalRun(folder)] if (folder / "config.yaml").is_file() else find_runs(folder)


def overview(runs: Sequence[LocalRun]) -> Table:
    """One line for each."""
    table = _table("run", "state", "step", "sampled", "greedy", "reward", "s per step", "last change")
    for run in runs:
        table.add_row(
            run.folder.name,
            run.state,
            f"{run.step} of {run.settings.get('steps', '?')}",
            _from_to(run.accuracy("sampled")),
            _from_to(run.accuracy("greedy")),
            _number(run.last("reward/mean")),
            _number(run.last("perf/step_seconds")),
            _ago(time.time() - run.last_change),
        )
    return table


def differing_settings(runs: Sequence[LocalRun]) -> dict[str, list[str]]:
    """Dotted key -> its value in each run as JSON, for the keys whose values are not all the same."""
    keys = sorted({key for run in runs for key in run.settings} - set(NOT_SETTINGS))
    rows = {key: [json.dumps(run.settings[key], default=str) if key in run.settings else MISSING for run in runs]
            for key in keys}  # fmt: skip
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def results(runs: Sequence[LocalRun]) -> dict[str, list[str]]:
    """What each run came to, as text by the name of the result."""
    rows = {
        "state": [run.state for run in runs],
        "step": [str(run.step) for run in runs],
        "sampled accuracy": [_from_to(run.accuracy("sampled")) for run in runs],
        "greedy accuracy": [_from_to(run.accuracy("greedy")) for run in runs],
        "tokens sampled": [f"{run.total('tokens/generated'):.3g}" for run in runs],
        "seconds of steps": [f"{run.total('perf/step_seconds'):.3g}" for run in runs],
    }
    for metric in ("reward/mean", "response_length/mean", "drift/kl_p95", "staleness/mean", "ratio/capped_fraction"):
        rows[f"last {metric}"] = [_number(run.last(metric)) for run in runs]
    return rows


def side_by_side(runs: Sequence[LocalRun]) -> list[Table]:
    """The settings that differ between the runs, and what each came to."""
    names = [run.folder.name for run in runs]
    tables = []
    for title, rows in (("setting", differing_settings(runs)), ("result", results(runs))):
        table = _table(title, *names)
        for name, cells in rows.items():
            table.add_row(name, *cells)
        tables += [table] if rows else []
    return tables


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    return table


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping itself."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return pairs


def _from_to(values: tuple[float, float] | None) -> str:
    return MISSING if values is None else f"{values[0]:.3f} → {values[1]:.3f}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
