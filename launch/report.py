"""One page, report.html, of one run or of several side by side: it opens from a file, without a network.

Python gathers the numbers (report_run.py, report_traces.py) and packs them; the scripts in page/ unpack and draw them.
What a model wrote is hostile: it reaches the page only compressed, in base64, and is shown only as text; a content
security policy forbids every request.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cispo.errors import DataError
from launch.accuracy_chart import accuracy_svg
from launch.local_run import LocalRun
from launch.report_run import ReportRun, accuracy_curves, readable
from launch.run_files import read_jsonl, write_atomically
from launch.runs import differing_settings, results

MAX_RUNS = 8
"""As many as there are colours that can be told apart."""
MAX_TRACES, MAX_TOKENS = 10_000, 2_000_000
"""Bounds of what one page embeds, shared by its runs: about 10 MB. More is thinned evenly over the steps."""
SCRIPTS = (
    "elements.js", "unpack.js", "overview.js", "charts.js", "traces.js", "filters.js", "list.js", "tokens.js",
    "reader.js", "group.js", "start.js",
)  # fmt: skip
"""Of page/, in the order in which they stand in the page: one that runs at once needs those before it."""


def write_report(*run_folders: Path, output: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side, and return its path; a run may still be going on.

    Args:
        run_folders: one or more; what a folder lacks, or has damaged, the page says.
        output: where to. By default report.html in the folder of a single run, and <a>-vs-<b>.html beside the first
            of several.

    Raises:
        DataError: a folder is not one of a run, is named twice, or there are too many.
    """
    _check(run_folders)
    share = len(run_folders)
    labels = run_labels(run_folders)
    runs = [
        ReportRun.read(folder, label, max_traces=MAX_TRACES // share, max_tokens=MAX_TOKENS // share)
        for folder, label in zip(run_folders, labels, strict=True)
    ]
    title = " · ".join(labels)
    packed = {"page": packed_json({"runs": labels, "comparison": comparison(runs)}), "plotly": packed_plotly()}
    for number, run in enumerate(runs):
        packed |= {f"run-{number}": packed_json(run.data()), f"streams-{number}": pack(run.traces.streams)}
    page = _fill(
        _asset("report.html"),
        {
            "title": html.escape(title),
            "style": _asset("report.css"),
            "packed": "\n".join(
                f'<script type="text/plain" id="packed-{name}">{text}</script>' for name, text in packed.items()
            ),
            "scripts": "\n".join(_asset(name) for name in SCRIPTS),
        },
    )
    path = output or default_output(run_folders)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def default_output(run_folders: Sequence[Path]) -> Path:
    """Where a page goes that nobody named a place for."""
    first, *others = (folder.resolve() for folder in run_folders)
    if not others:
        return run_folders[0] / "report.html"
    name = "-vs-".join([first.name, *(other.name for other in others)])
    return run_folders[0].parent / f"{name[:100]}.html"


def run_labels(run_folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, with as many of the folders above as tell it from the others."""
    paths = [folder.resolve() for folder in run_folders]
    return [readable(_shortest_name(path, [other for other in paths if other != path])) for path in paths]


def _shortest_name(path: Path, others: Sequence[Path]) -> str:
    for length in range(1, len(path.parts)):
        end = path.parts[-length:]
        if not any(other.parts[-length:] == end for other in others):
            break
    return "/".join(end)


def comparison(runs: Sequence[ReportRun]) -> dict[str, list[list[str]]] | None:
    """The settings that differ and what each run came to, as rows of name and cells; None for a single run."""
    if len(runs) < 2:
        return None
    local = [run.local for run in runs]
    return {
        "settings": [[name, *cells] for name, cells in differing_settings(local).items()],
        "results": [[name, *cells] for name, cells in results(local).items()],
    }


def packed_json(value: Any) -> str:
    """JSON for the page; lone surrogates and control characters travel as escapes, and NaN is refused."""
    return pack(json.dumps(value, allow_nan=False, separators=(",", ":")))


def pack(content: str | bytes) -> str:
    """Compressed and in base64: no character of the content stands in the page, so none can end an element."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


@cache
def packed_plotly() -> str:
    """plotly.js as pip installed it; to compress it takes most of the time of a page."""
    from plotly.offline import get_plotlyjs

    return pack(get_plotlyjs())


def curves_svg(run_folder: Path, path: Path) -> Path:
    """Draw held-out sampled accuracy against steps as a static SVG, one line per set; returns `path`.

    Raises DataError when the run logged no `eval/<set>/mean@k`.
    """
    metrics = run_folder / "metrics.jsonl"
    if not metrics.exists():
        raise DataError(f"A picture is made of a run's folder, which has metrics.jsonl, and {metrics} does not exist.")
    curves = {
        name.split("/")[0]: curve for name, curve in accuracy_curves(read_jsonl(metrics)).items() if "/mean@" in name
    }
    if not curves:
        raise DataError(
            f"A picture of accuracy needs eval/<set>/mean@k, and {metrics} has none: set eval_every to 1 or more."
        )
    write_atomically(path, accuracy_svg(curves, title=f"Held-out accuracy of {run_folder.resolve().name}"))
    return path


def _check(run_folders: Sequence[Path]) -> None:
    if len(run_folders) > MAX_RUNS:
        raise DataError(
            f"A page shows at most {MAX_RUNS} runs, because more colours cannot be told apart; got {len(run_folders)}: "
            "name fewer."
        )
    paths = [folder.resolve() for folder in run_folders]
    for path in paths:
        if paths.count(path) > 1:
            raise DataError(f"Runs are compared with one another, and {path} is named twice: name it once.")
    for folder in run_folders:
        if not LocalRun(folder).is_one:
            raise DataError(
                f"A report is made of a run's folder, which has config.yaml, metrics.jsonl or rollouts/, and {folder} "
                f"{'has none of them' if folder.is_dir() else 'is no folder'}: name a folder such as runs/<name>."
            )


def _asset(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in the places marked {{name}}, in one pass: what a value holds is never taken for a place."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
