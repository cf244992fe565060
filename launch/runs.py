"""`cispo runs`: the runs of a folder in one table, or some side by side: settings that differ, and results."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cispo.errors import ConfigError
from configs.strict import nearest
from launch.local_run import LocalRun, find_runs
from launch.run_files import json_ready

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "–"
NOT_SETTINGS = ("name", "runs_folder")
"""Keys that always differ and say nothing."""
BARS = "▁▂▃▄▅▆▇█"
SPARKS = 12
"""Characters of a small curve."""
SORTS: Mapping[str, Callable[[LocalRun], Any]] = {
    "change": lambda run: run.last_change,
    "name": lambda run: run.name,
    "step": lambda run: run.step,
    "sampled": lambda run: _last_accuracy(run, "sampled"),
    "greedy": lambda run: _last_accuracy(run, "greedy"),
}
"""What the list can be ordered by, besides any metric."""


@dataclass(frozen=True)
class Choice:
    """Which runs of a folder are shown, and in which order.

    Attributes:
        where: settings that a run must have, as `key=value`.
        sort: one of SORTS, or a metric of metrics.jsonl, by its last value.
        limit: how many at most; 0 is all.
    """

    where: Sequence[str] = field(default_factory=list)
    sort: str = "change"
    limit: int = 0


def show(folders: Sequence[Path], choice: Choice | None = None, *, as_json: bool = False) -> None:
    """Print runs side by side, or one table of those below the folders; nothing of none.

    Raises DataError if a folder holds no run, ConfigError if `choice` names what no run has.
    """
    choice = choice or Choice()
    named = all((folder / "config.yaml").is_file() for folder in folders)
    runs = chosen([run for folder in folders for run in _runs_of(folder)], choice, keep_order=named)
    if as_json:
        print(json.dumps([facts(run) for run in runs], indent=2, allow_nan=False))
        return
    tables = side_by_side(runs) if named and len(runs) > 1 else [overview(runs)] if runs else []
    _print(tables)


def _print(tables: Sequence[Table]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for table in tables:
        console.print(table)


def _runs_of(folder: Path) -> list[LocalRun]:
    return [LocalRun(folder)] if (folder / "config.yaml").is_file() else find_runs(folder)


def chosen(runs: Sequence[LocalRun], choice: Choice, *, keep_order: bool = False) -> list[LocalRun]:
    """Those that are asked for, in order: the largest first, names from a to z; `keep_order` is that of `runs`."""
    for condition in choice.where:
        runs = [run for run in runs if _has(run, condition, runs)]
    if keep_order and choice.sort == Choice.sort:
        ordered = list(runs)
    else:
        key = SORTS.get(choice.sort) or _last_value(choice.sort, runs)
        ordered = sorted(runs, key=key, reverse=choice.sort != "name")
    return ordered[: choice.limit or None]


def _has(run: LocalRun, condition: str, runs: Sequence[LocalRun]) -> bool:
    key, equals, value = condition.partition("=")
    known = sorted({key for run in runs for key in run.settings})
    if not equals or key not in known:
        raise ConfigError(
            f"--where {condition}: a condition is key=value of a setting of these runs; {nearest(key, known)}"
        )
    here = run.settings.get(key)
    return value in (str(here), json.dumps(here, default=str)) or _same_number(here, value)


def _same_number(here: Any, value: str) -> bool:
    try:
        return not isinstance(here, bool) and float(here) == float(value)
    except (TypeError, ValueError):
        return False


def _last_value(metric: str, runs: Sequence[LocalRun]) -> Callable[[LocalRun], float]:
    known = sorted({name for run in runs for line in run.lines for name in line})
    if metric not in known:
        raise ConfigError(f"--sort {metric}: no run has such a metric; {nearest(metric, [*SORTS, *known])}")
    return lambda run: _or_last(run.last(metric))


def _last_accuracy(run: LocalRun, kind: str) -> float:
    found = run.accuracy(kind)
    return _or_last(found[1] if found else None)


def _or_last(value: float | None) -> float:
    """A run without the value stands below all others."""
    return -math.inf if value is None else value


def facts(run: LocalRun) -> dict[str, Any]:
    """All that is known of one run, for programs."""
    accuracy = {kind: run.accuracy(kind) for kind in ("sampled", "greedy")}
    return json_ready(
        {
            "name": run.name,
            "folder": str(run.folder),
            "state": run.state,
            "step": run.step,
            "code": run.code,
            "last_change": run.last_change,
            "accuracy": {
                kind: dict(zip(("first", "last"), found, strict=True)) for kind, found in accuracy.items() if found
            },
            "metrics": {name: run.last(name) for name in sorted({name for line in run.lines for name in line})},
            "settings": run.settings,
        }
    )


def overview(runs: Sequence[LocalRun]) -> Table:
    """One line for each."""
    table = _table("run", "state", "step", "sampled", "greedy", "reward", "", "s per step", "code", "last change")
    for run in runs:
        table.add_row(
            run.name,
            run.state,
            f"{run.step} of {run.settings.get('steps', '?')}",
            _from_to(run.accuracy("sampled")),
            _from_to(run.accuracy("greedy")),
            _number(run.last("reward/mean")),
            sparkline(run.course("reward/mean")),
            _number(run.last("perf/step_seconds")),
            run.code or MISSING,
            _ago(time.time() - run.last_change),
        )
    return table


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """A curve of `width` characters at most, each the mean of an equal share of the values; "" of fewer than two."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    means = list(_shares(finite, min(width, len(finite))))
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _shares(values: Sequence[float], number: int) -> Iterator[float]:
    for share in range(number):
        part = values[share * len(values) // number : (share + 1) * len(values) // number]
        yield sum(part) / len(part)


def differing_settings(runs: Sequence[LocalRun]) -> dict[str, list[str]]:
    """Dotted key -> its value in each run as JSON, for the keys whose values are not all the same."""
    keys = sorted({key for run in runs for key in run.settings} - set(NOT_SETTINGS))
    rows = {key: [json.dumps(run.settings[key], default=str) if key in run.settings else MISSING for run in runs]
            for key in keys}  # fmt: skip
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def results(runs: Sequence[LocalRun]) -> dict[str, list[str]]:
    """What each run came to, as text by the name of the result."""
    rows = {
        "code": [run.code or MISSING for run in runs],
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
    names = [run.name for run in runs]
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


def _from_to(values: tuple[float, float] | None) -> str:
    return MISSING if values is None else f"{values[0]:.3f} → {values[1]:.3f}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
