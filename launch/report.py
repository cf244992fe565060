"""One page per run, report.html: curves, lengths and traces to read, in one file that opens without a network.

Python gathers the numbers, report_charts.js and report_traces.js draw them. What a model wrote is hostile: it reaches
the page only as JSON without a "<" and is shown only as text, and a content security policy forbids every request.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cispo.errors import DataError
from launch.accuracy_chart import Curve, accuracy_svg
from launch.run_files import read_jsonl, rollout_files, write_atomically

Record = dict[str, Any]

MAX_TRACES = 10_000
MAX_TOKENS = 1_000_000
"""Bounds of what one page embeds: about 25 bytes a token, so 25 MB at most. More is thinned evenly over the steps."""


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run's folder, also of a run that is still going on, and return its path.

    Reads metrics.jsonl, and config.yaml, summary.json and rollouts/ where they exist. Raises DataError when the folder
    is not one of a run, or one of the files is damaged.
    """
    from plotly.offline import get_plotlyjs

    page = _fill(
        _asset("report.html"),
        {
            "title": html.escape(run_folder.resolve().name),
            "style": _asset("report.css"),
            "plotly": get_plotlyjs(),
            "data": script_json(report_data(run_folder)),
            "charts": _asset("report_charts.js"),
            "traces": _asset("report_traces.js"),
        },
    )
    path = run_folder / "report.html"
    write_atomically(path, page)
    return path


def report_data(run_folder: Path) -> Record:
    """All that the page shows, as plain JSON: what report_charts.js and report_traces.js read."""
    lines = _metric_lines(run_folder)
    traces = read_traces(run_folder)
    config, summary = run_folder / "config.yaml", run_folder / "summary.json"
    return {
        "name": run_folder.resolve().name,
        "config": config.read_text(encoding="utf-8") if config.exists() else "",
        "summary": json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None,
        "metrics": _columns(lines),
        "accuracy": {name: vars(curve) for name, curve in accuracy_curves(lines).items()},
        "lengths": [{"step": step, "num_tokens": values} for step, values in traces.lengths],
        "traces": traces.kept,
        "num_traces": traces.num_traces,
    }


def script_json(value: Any) -> str:
    """JSON that may stand inside a <script> element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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


def _means_over_sets(measured: Mapping[str, float | None]) -> dict[str, float]:
    by_measure: dict[str, list[float | None]] = {}
    for name, value in measured.items():
        by_measure.setdefault(name.rpartition("/")[2], []).append(value)
    return {
        f"all/{measure}": sum(value for value in values if value is not None) / len(values)
        for measure, values in by_measure.items()
        if len(values) > 1 and None not in values and f"all/{measure}" not in measured
    }


@dataclass(frozen=True)
class Traces:
    """The trajectories of a run as the page needs them.

    Attributes:
        kept: records of cispo.records with their step, within the bounds of one page.
        num_traces: how many the run wrote.
        lengths: (step, action tokens of each trajectory) of the first and the last step.
    """

    kept: list[Record]
    num_traces: int
    lengths: list[tuple[int, list[int]]]


def read_traces(run_folder: Path, *, max_traces: int = MAX_TRACES, max_tokens: int = MAX_TOKENS) -> Traces:
    """Read rollouts/, keeping of each step no more than its share of the bounds, but at least one record."""
    files = rollout_files(run_folder)
    kept: list[Record] = []
    lengths: list[tuple[int, list[int]]] = []
    num_traces = 0
    for position, (step, path) in enumerate(files):
        records = read_jsonl(path)
        num_traces += len(records)
        kept += _within_share(step, records, max_traces // len(files), max_tokens // len(files))
        if position in (0, len(files) - 1):
            lengths.append((step, [record["num_tokens"] for record in records]))
    return Traces(kept, num_traces, lengths)


def _within_share(step: int, records: Sequence[Record], max_traces: int, max_tokens: int) -> list[Record]:
    share: list[Record] = []
    num_tokens = 0
    for record in records[: max(max_traces, 1)]:
        num_tokens += len(record["tokens"])
        if share and num_tokens > max_tokens:
            break
        share.append(_slim({"step": step, **record}))
    return share


def _slim(record: Record) -> Record:
    """Leave out the text where the tokens give it, and keep the three decimals that a reader can use."""
    if "".join(record["tokens"]) == record["text"]:
        del record["text"]
    for stream in ("logp", "ratio"):
        if record[stream] is not None:
            record[stream] = [None if value is None else round(value, 3) for value in record[stream]]
    return record


def _metric_lines(run_folder: Path) -> list[Record]:
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        raise DataError(f"A report is made of a run's folder, which has metrics.jsonl, and {path} does not exist.")
    return read_jsonl(path)


def _columns(lines: Sequence[Record]) -> dict[str, list[Any]]:
    """One list per metric, aligned with "step"; null where a step did not log it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: [line.get(name) for line in lines] for name in names}


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in the places marked {{name}}, in one pass: what a value holds is never taken for a place."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def curves_svg(run_folder: Path, path: Path) -> Path:
    """Draw held-out sampled accuracy against steps as a static SVG, one line per set; returns `path`.

    Raises DataError when the run logged no `eval/<set>/mean@k`.
    """
    curves = {
        name.split("/")[0]: curve
        for name, curve in accuracy_curves(_metric_lines(run_folder)).items()
        if "/mean@" in name
    }
    if not curves:
        raise DataError(
            f"A picture of accuracy needs eval/<set>/mean@k, and {run_folder / 'metrics.jsonl'} has none: "
            "set eval_every to 1 or more."
        )
    write_atomically(path, accuracy_svg(curves, title=f"Held-out accuracy of {run_folder.resolve().name}"))
    return path
