"""`cispo rewards <command>`: the rewards, tried before a run does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_reward_commands(commands: Any, overrides_help: str) -> None:
    """Add `rewards` and its own commands to those of `cispo`."""
    rewards = commands.add_parser("rewards", help="try the rewards before a run does")
    actions = rewards.add_subparsers(metavar="action", required=True)
    audit = actions.add_parser(
        "audit",
        help="right answers, nonsense and known tricks through the configured rewards",
        description="Exit status 1 if a right answer fails, a wrong one passes, or one is not judged.",
    )
    audit.add_argument("prompts", help="a file of prompts (docs/data.md) or the name of a procedural task")
    audit.add_argument("--max-prompts", type=int, default=200, help="prompts that are tried (default 200)")
    audit.add_argument("--max-false-negatives", type=float, default=0.0, help="share of right answers that may fail")
    audit.add_argument("--max-false-positives", type=float, default=0.0, help="share of the rest that may pass")
    audit.add_argument("--json", type=Path, metavar="FILE", help="write figures and faults there")
    audit.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    audit.set_defaults(run=run_audit)


def run_audit(options: argparse.Namespace) -> int:
    """`cispo rewards audit`."""
    from launch.audit import AuditOptions, audit
    from launch.audit_table import table, write_json

    limits = AuditOptions(options.max_prompts, options.max_false_negatives, options.max_false_positives)
    result = audit(options.prompts, options.overrides, limits)
    print(table(result))
    if options.json:
        write_json(result, limits, options.json)
    return 0 if result.passes(limits) else 1
