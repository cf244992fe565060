"""What a report shows of one run, from whatever of its files is there; what is missing or damaged is said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cispo.errors import DataError
from launch.accuracy_chart import Curve
from launch.local_run import LocalRun
from launch.report_traces import Traces, read_traces
from launch.run_files import json_ready, read_jsonl_leniently

Record = dict[str, Any]


@dataclass(frozen=True)
class ReportRun:
    """One run of a page.

    Attributes:
        local: the run as other commands see it, with the lines that could be read.
        label: what it is called in the page.
        lines: those of metrics.jsonl.
        config: the text of config.yaml, "" if there is none.
        summary: summary.json, None if there is none.
        traces: the trajectories to read.
        missing: a sentence for each thing that the reader of the page might look for in vain.
    """

    local: LocalRun
    label: str
    lines: list[Record]
    config: str
    summary: Record | None
    traces: Traces
    missing: list[str]

    @classmethod
    def read(cls, folder: Path, label: str, *, max_traces: int, max_tokens: int) -> Self:
        """Read a run's folder, which may be of a run under way or of one that was killed."""
        missing: list[str] = []
        lines = _metric_lines(folder / "metrics.jsonl", missing)
        config = _text(folder / "config.yaml", missing, "its settings are not known")
        local = _local_run(folder, lines, missing)
        summary = _summary(folder / "summary.json", local, missing)
        traces = read_traces(folder, max_traces=max_traces, max_tokens=max_tokens)
        if not traces.num_traces:
            missing.append("rollouts/ has no trace that can be read: there is none to show.")
        return cls(local, label, lines, config, summary, traces, [*missing, *traces.faults])

    def data(self) -> Record:
        """All of it as plain JSON, for the scripts of the page; tokens apart."""
        return {
            "label": self.label,
            "config": self.config,
            "ratio_cap": _ratio_cap(self.config),
            "summary": self.summary,
            "missing": self.missing,
            "metrics": _columns(self.lines),
            "accuracy": {name: vars(curve) for name, curve in accuracy_curves(self.lines).items()},
            "lengths": [{"step": step, "num_tokens": values} for step, values in self.traces.lengths],
            "num_traces": self.traces.num_traces,
            "traces": self.traces.kept,
            "prompts": self.traces.prompts,
            "vocabulary": self.traces.vocabulary,
        }


def accuracy_curves(lines: Sequence[Record]) -> dict[str, Curve]:
    """`eval/<set>/<measure>` of the lines of metrics.jsonl -> curves by "<set>/<measure>".

    Where several sets were measured and none is called "all", their mean is added under that name.
    """
    curves: dict[str, Curve] = {}
    for line in lines:
        measured = {name.removeprefix("eval/"): value for name, value in line.items() if name[:5] == "eval/"}
        for name, value in (measured | _means_over_sets(measured)).items():
            if value is not None:
                curve = curves.setdefault(name, Curve([], []))
                curve.steps.append(line["step"])
                curve.values.append(value)
    return curves


def readable(text: str) -> str:
    """A name from the file system as text that can be written: bytes that are no UTF-8 become a mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _means_over_sets(measured: Mapping[str, float | None]) -> dict[str, float]:
    by_measure: dict[str, list[float | None]] = {}
    for name, value in measured.items():
        by_measure.setdefault(name.rpartition("/")[2], []).append(value)
    return {
        f"all/{measure}": sum(value for value in values if value is not None) / len(values)
        for measure, values in by_measure.items()
        if len(values) > 1 and None not in values and f"all/{measure}" not in measured
    }


def _metric_lines(path: Path, missing: list[str]) -> list[Record]:
    if not path.exists():
        missing.append("metrics.jsonl is missing: there are no curves.")
        return []
    records, faults = read_jsonl_leniently(path)
    lines = [{name: _number(value) for name, value in record.items()} for record in records]
    whole = [line for line in lines if isinstance(line.get("step"), int)]
    if len(whole) < len(lines):
        faults.append(f"metrics.jsonl has {len(lines) - len(whole)} lines without a step, which are left out.")
    if not lines and not faults:
        missing.append("metrics.jsonl has no line yet: the first step is not over.")
    missing += faults
    return whole


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _text(path: Path, missing: list[str], consequence: str) -> str:
    if not path.exists():
        missing.append(f"{path.name} is missing: {consequence}.")
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _local_run(folder: Path, lines: list[Record], missing: list[str]) -> LocalRun:
    """The run with the lines that could be read, and without settings if config.yaml cannot be."""
    local = LocalRun(folder)
    vars(local)["lines"] = lines
    if not (folder / "config.yaml").exists():
        vars(local)["settings"] = {}
    try:
        _ = local.settings
    except (DataError, UnicodeDecodeError) as error:
        missing.append(f"config.yaml cannot be read as settings ({str(error)[:200]}): it is shown as it is.")
        vars(local)["settings"] = {}
    return local


def _summary(path: Path, local: LocalRun, missing: list[str]) -> Record | None:
    if not path.exists():
        under_way = local.state == "running"
        missing.append(
            "This run is under way: the page shows what it has written so far."
            if under_way
            else "summary.json is missing: the run was stopped before its last step."
        )
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        missing.append(f"summary.json is damaged ({error}): what it says is left out.")
        return None
    return json_ready(summary) if isinstance(summary, dict) else None


def _ratio_cap(config: str) -> float | None:
    match = re.search(r"^ratio_cap:\s*([\d.]+)\s*$", config, flags=re.M)
    return float(match[1]) if match else None


def _columns(lines: Sequence[Record]) -> dict[str, list[Any]]:
    """One list per metric, aligned with "step"; null where a step did not log it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: [line.get(name) for line in lines] for name in names}
