"""`cispo <command>`: what the user types, and how errors reach the user: one clear sentence and a non-zero exit."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from launch.completion import add_completion_command, complete
from launch.launch_commands import add_launch_commands
from launch.messages import is_message
from launch.policy_commands import add_policy_commands
from launch.reward_commands import add_reward_commands
from launch.run_commands import add_run_commands
from launch.sandbox_commands import add_sandbox_commands
from launch.train_commands import SettingsParser, add_train_commands

OVERRIDES_HELP = (
    "key=value settings, e.g. steps=20 seed=2 learner.lr=1e-4 task=program cluster=inline; "
    "`cispo train --cfg job` prints them all"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `cispo` command; returns the exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = make_parser()
    complete(parser)
    options = parse(parser, arguments)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.debug:
        return int(options.run(options))
    try:
        return int(options.run(options))
    except KeyboardInterrupt as error:
        print(" ".join(["cispo: interrupted.", *_notes(error)]), file=sys.stderr)
        return 130
    except Exception as error:
        if not is_message(error):
            raise
        told = f"cispo: {type(error).__name__}:{_laid_out(str(error))}"
        print(" ".join([told, *_notes(error)]), file=sys.stderr)
        return int(getattr(error, "exit_status", 1))


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Settings may stand before and behind options: argparse by itself leaves those behind unread."""
    options, unread = parser.parse_known_args(arguments)
    if unread and (not hasattr(options, "overrides") or any(word.startswith("-") for word in unread)):
        parser.error(f"unrecognized arguments: {' '.join(unread)}")
    if unread:
        options.overrides += unread
    return options


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser: argparse.ArgumentParser = SettingsParser(
        prog="cispo",
        description="Train reasoning models by reinforcement learning with CISPO, from a laptop to a cluster.",
        epilog="`cispo <command> --help` tells more of each.",
    )
    parser.add_argument("--debug", action="store_true", help="verbose logging, and tracebacks instead of sentences")
    commands = parser.add_subparsers(metavar="command", required=True)

    add_train_commands(commands, OVERRIDES_HELP)
    add_policy_commands(commands, OVERRIDES_HELP)
    add_reward_commands(commands, OVERRIDES_HELP)
    add_run_commands(commands)
    add_launch_commands(commands, OVERRIDES_HELP)
    add_sandbox_commands(commands, OVERRIDES_HELP)
    add_completion_command(commands)
    return parser


def _notes(error: BaseException) -> list[str]:
    """What was added to the error on its way up, such as how to go on with the run."""
    return list(getattr(error, "__notes__", []))


def _laid_out(message: str) -> str:
    return f"\n{message}" if "\n" in message else f" {message}"


if __name__ == "__main__":
    sys.exit(main())
