"""A run as its folder shows it, for whoever only looks: `cispo runs`, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cispo.errors import DataError
from launch.attempts import read_attempts
from launch.run_files import read_metrics
from launch.run_folder import is_driven
from launch.summary import accuracies


@dataclass(frozen=True)
class LocalRun:
    """A run as its folder shows it, whether it is over or not.

    Attributes:
        folder: its own.
        within: the folder that it was looked for in; None is the one that holds it.
    """

    folder: Path
    within: Path | None = None

    @property
    def name(self) -> str:
        """As in `runs/<name>`, of a run of a sweep `<sweep>/<run>`."""
        return str(self.folder.relative_to(self.within)) if self.within else self.folder.name

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

    @cached_property
    def code(self) -> str:
        """The commit that the newest attempt ran, with a "+" if the code was changed since; "" if nobody knows."""
        begun = [line["code"] for line in read_attempts(self.folder) if "code" in line]
        commit = begun[-1].get("commit") if begun else None
        return f"{commit[:8]}{'+' if begun[-1].get('is_changed') else ''}" if commit else ""

    def last(self, metric: str) -> float | None:
        """Its last value."""
        return next((line[metric] for line in reversed(self.lines) if line.get(metric) is not None), None)

    def course(self, metric: str) -> list[float]:
        """Its values by step, without the steps that have none."""
        return [float(line[metric]) for line in self.lines if line.get(metric) is not None]

    def total(self, metric: str) -> float:
        """Its sum over all steps."""
        return float(sum(line.get(metric) or 0 for line in self.lines))


def find_runs(folder: Path) -> list[LocalRun]:
    """The runs in a folder and those of its sweeps, changed last first. Raises DataError if there is none."""
    runs = [LocalRun(path.parent, folder) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.yaml")]
    if not runs:
        raise DataError(
            f"{folder} holds no run, which is a folder with a config.yaml; name the folder that has them, e.g. "
            f"cispo runs path/to/runs."
        )
    return sorted(runs, key=lambda run: -run.last_change)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping itself."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return pairs
