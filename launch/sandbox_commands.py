"""`cispo sandbox <command>`: what concerns the machine that runs strangers' programs, apart from any training run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

OVERRIDES_HELP = "key=value settings, e.g. sandbox.size=8 sandbox.service.port=8700 sandbox.limits.cpu_seconds=5"


def add_sandbox_commands(commands: Any) -> None:
    """Put `sandbox` and its own commands among those of `cispo`; `commands` is what add_subparsers returned."""
    sandbox = commands.add_parser("sandbox", help="the sandbox of this machine: serve")
    subcommands = sandbox.add_subparsers(metavar="command", required=True)
    serve = subcommands.add_parser("serve", help="run programs for others over HTTP (docs/sandbox_service.md)")
    serve.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    serve.set_defaults(run=run_serve)


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
