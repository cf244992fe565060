"""The report with 10,000 traces: size of the page, seconds until it can be read and searched, memory of the browser.

    python benchmarks/report.py [runs/embedded]

Without a run it makes a short one first. The traces of the run are repeated, with ids, answers and numbers of their
own, until there are 10,000; the page is opened in a headless Chromium, several times, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine

from launch.report import write_report
from launch.run_files import json_lines, read_jsonl, rollout_files

RESULTS = Path(__file__).parent / "results" / "report.json"
NUM_TRACES, REPEATS = 10_000, 3


def enlarge(run_folder: Path, folder: Path, *, copies: int, rng: random.Random) -> None:
    """A run like `run_folder` with NUM_TRACES traces, each response `copies` times as long."""
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        shutil.copy(run_folder / name, folder / name)
    (folder / "rollouts").mkdir()
    files = rollout_files(run_folder)
    per_step = -(-NUM_TRACES // len(files))
    for _, path in files:
        real = read_jsonl(path)
        records = [perturbed(real[i % len(real)], i, copies, rng) for i in range(per_step)]
        (folder / "rollouts" / path.name).write_text(json_lines(records), encoding="utf-8")


def perturbed(record: dict[str, Any], number: int, copies: int, rng: random.Random) -> dict[str, Any]:
    """A trace with other numbers and another place; tokens are shuffled beyond the first copy."""
    order = [i for _ in range(copies) for i in range(len(record["tokens"]))]
    if copies > 1:
        rng.shuffle(order)
    tokens = [record["tokens"][i] for i in order]
    noise = [rng.gauss(0, 0.05) for _ in order]
    logp = [record["logp"][i] for i in order]
    ratio = [record["ratio"][i] if record["ratio"] else None for i in order]
    return record | {
        "group": record["group"] + 1000 * number, "tokens": tokens, "text": "".join(tokens),
        "ids": [record["ids"][i] for i in order], "num_tokens": len(tokens), "observations": [],
        "logp": [value if value is None else min(0.0, value + shift) for value, shift in zip(logp, noise, strict=True)],
        "ratio": [value if value is None else value * (1 + shift) for value, shift in zip(ratio, noise, strict=True)],
        "prompt_id": f"{record['prompt_id']}/{number}",
    }  # fmt: skip


def opened(path: Path) -> dict[str, float]:
    """One visit of the page: seconds until traces and curves are there, of searches and of a move, and memory."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        begin = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-reader=ready]", state="attached")
        readable = time.perf_counter() - begin
        page.wait_for_selector("body[data-charts=ready]", state="attached")
        drawn = time.perf_counter() - begin
        timed: Callable[[str], float] = lambda js: page.evaluate(  # noqa: E731
            f"async () => {{ const begin = performance.now(); {js}; return (performance.now() - begin) / 1000; }}"
        )
        found = {
            "traces_seconds": readable,
            "curves_seconds": drawn,
            "first_search_seconds": timed("at('filter-text').value = 'boxed{7'; await applyFilters()"),
            "search_seconds": timed("at('filter-text').value = 'boxed{3'; await applyFilters()"),
            "filter_seconds": timed(
                "at('filters').reset(); at('filter-verdict').value = 'correct'; await applyFilters()"
            ),
            "open_trace_seconds": timed("choose(filtering.matches[50])"),
            "heap_mb": page.evaluate("performance.memory.usedJSHeapSize") / 1e6,
        }
        browser.close()
    return found


def measured(run_folder: Path, copies: int) -> dict[str, Any]:
    """Figures of one shape of run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        enlarge(run_folder, folder, copies=copies, rng=random.Random(0))
        written_mb = sum(path.stat().st_size for _, path in rollout_files(folder)) / 1e6
        begin = time.perf_counter()
        path = write_report(folder)
        seconds = time.perf_counter() - begin
        visits = [opened(path.resolve()) for _ in range(REPEATS)]
        return {
            "traces": NUM_TRACES, "times_as_long": copies, "rollouts_mb": round(written_mb, 1),
            "page_mb": round(path.stat().st_size / 1e6, 2), "write_seconds": round(seconds, 2),
            **{key: round(statistics.median(visit[key] for visit in visits), 3) for key in visits[0]},
        }  # fmt: skip


def short_run(folder: Path) -> Path:
    """A real run of a few steps."""
    command = [sys.executable, "-m", "launch.cli", "train", "experiment=short", "name=short", f"runs_folder={folder}"]
    subprocess.run([*command, "cluster=inline", "steps=5"], check=True, cwd=Path(__file__).parents[1])
    return folder / "short"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="a finished run, e.g. runs/embedded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = options.run or short_run(Path(name))
        pages = [measured(run, copies) for copies in (1, 10)]
    result = {"machine": machine("plotly", "playwright"), "pages": pages}
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
