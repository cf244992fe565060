"""`cispo sandbox <command>`: what concerns the running of strangers' programs, apart from any training run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def add_sandbox_commands(commands: Any, overrides_help: str) -> None:
    """Add `sandbox` and its own commands to those of `cispo`."""
    sandbox = commands.add_parser(
        "sandbox", help="strangers' programs: check how well this machine isolates them, or serve"
    )
    own = sandbox.add_subparsers(metavar="command", required=True)
    check = own.add_parser(
        "check",
        help="what this machine can do, which escapes each tier holds, what to ask for; status 0 if the tier holds",
    )
    check.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    check.set_defaults(run=run_check)
    serve = own.add_parser("serve", help="run programs for others over HTTP (docs/sandbox_service.md)")
    serve.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    serve.set_defaults(run=run_serve)


def run_check(options: argparse.Namespace) -> int:
    """`cispo sandbox check`: 0 only if the configured tier holds."""
    from launch.compose import compose
    from sandbox.check_report import check_report

    report, holds = check_report(compose(options.overrides).sandbox)
    print(report)
    return 0 if holds else 1


def run_serve(options: argparse.Namespace) -> int:
    """`cispo sandbox serve`: does not return, because the service takes this process over."""
    from configs.strict import to_dict
    from launch.compose import compose

    settings = json.dumps(to_dict(compose(options.overrides).sandbox))
    # A fresh interpreter in this very process: the service then has 25 MB where the configuration brought in 230.
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-P", "-m", "sandbox.serve", settings]
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": path})
