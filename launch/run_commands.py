"""`cispo report`, `cispo runs` and `cispo workers`: what is done with runs that are over, or under way elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_run_commands(commands: Any) -> None:
    """Add them to those of `cispo`."""
    _add_report(commands)
    _add_runs(commands)
    _add_workers(commands)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="one page of a run, or of several side by side (docs/report.md)",
        description="One run: its report.html anew. Several: one page with all of them. The path is printed.",
    )
    report.add_argument("folders", nargs="+", type=Path, metavar="folder", help="runs/<name>, or several")
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page; default runs/<name>/report.html, or runs/<a>-vs-<b>.html for several",
    )
    report.add_argument(
        "--svg", type=Path, metavar="FILE", help="draw only the accuracy curves of one run, into this file"
    )
    report.set_defaults(run=run_report)


def _add_runs(commands: Any) -> None:
    runs = commands.add_parser(
        "runs",
        help="the runs of a folder, or some of them side by side",
        description="One folder of runs is listed; two or more runs are compared: settings that differ, and results.",
        epilog="cispo runs --sort greedy --where learner.lr=1e-4",
    )
    runs.add_argument("folders", nargs="*", type=Path, default=[], help="runs (default), or runs/<a> runs/<b> ...")
    runs.add_argument(
        "--sort",
        default="change",
        metavar="WHAT",
        help="change (default), name, step, sampled, greedy, or the last value of any metric; the largest first",
    )
    runs.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this setting; may be repeated"
    )
    runs.add_argument("--limit", type=int, default=0, metavar="N", help="this many at most; 0 (default) is all")
    runs.add_argument("--json", action="store_true", help="all that is known of each, for programs")
    runs.set_defaults(run=run_runs)


def _add_workers(commands: Any) -> None:
    workers = commands.add_parser(
        "workers",
        help="give a run under way more rollout workers, or fewer",
        description="New workers begin when they have started; one that leaves first finishes what it has.",
    )
    workers.add_argument("folder", type=Path, help="runs/<name>")
    workers.add_argument("number", type=int, help="of workers that the run is to have from now on")
    workers.set_defaults(run=run_workers)


def run_report(options: argparse.Namespace) -> int:
    """`cispo report`."""
    from cispo.errors import DataError
    from launch.report import curves_svg, write_report

    if options.svg and (options.output or len(options.folders) > 1):
        raise DataError("--svg draws the curves of one run and nothing else: name one run, and leave --output out.")
    print(
        curves_svg(options.folders[0], options.svg)
        if options.svg
        else write_report(*options.folders, output=options.output)
    )
    return 0


def run_runs(options: argparse.Namespace) -> int:
    """`cispo runs`."""
    from cispo.errors import ConfigError
    from launch.runs import Choice, show

    if options.limit < 0:
        raise ConfigError(f"--limit must be 0 (all) or more; got {options.limit}.")
    choice = Choice(options.where, options.sort, options.limit)
    show(options.folders or [Path("runs")], choice, as_json=options.json)
    return 0


def run_workers(options: argparse.Namespace) -> int:
    """`cispo workers`."""
    from launch.fleet_size import ask_for_workers

    ask_for_workers(options.folder, options.number)
    workers = "1 worker" if options.number == 1 else f"{options.number} workers"
    print(f"{options.folder} is to go on with {workers}; perf/workers in its metrics says when it does.")
    return 0
