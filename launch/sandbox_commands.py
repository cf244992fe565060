"""`cispo sandbox <command>`: what concerns the running of strangers' programs alone."""

from __future__ import annotations

import argparse
from typing import Any


def add_sandbox_commands(commands: Any, overrides_help: str) -> None:
    """Add `sandbox` and its own commands to those of `cispo`."""
    sandbox = commands.add_parser("sandbox", help="strangers' programs: check how well this machine isolates them")
    own = sandbox.add_subparsers(metavar="command", required=True)
    check = own.add_parser(
        "check",
        help="what this machine can do, which escapes each tier holds, what to ask for; status 0 if the tier holds",
    )
    check.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    check.set_defaults(run=run_check)


def run_check(options: argparse.Namespace) -> int:
    """`cispo sandbox check`: 0 only if the configured tier holds."""
    from launch.compose import compose
    from sandbox.check_report import check_report

    report, holds = check_report(compose(options.overrides).sandbox)
    print(report)
    return 0 if holds else 1
