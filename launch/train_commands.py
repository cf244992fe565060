"""`cispo train` beyond one run, `cispo plan`, and what they share: options that print or plan instead of training."""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import TYPE_CHECKING, Any

from launch.config_tree import groups_help

if TYPE_CHECKING:
    from configs.schema import RunConfig

CFG_WORDS = ("job",)
"""What --cfg prints. Hydra's own settings, its `hydra` and `all`, are not used here."""


class SettingsParser(argparse.ArgumentParser):
    """`--cfg` alone means `--cfg job`: argparse would take the setting behind it for its value."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # its own overloads are many
        """As argparse's."""
        words = list(sys.argv[1:] if args is None else args)
        spelled = [
            f"--cfg={CFG_WORDS[0]}" if word == "--cfg" and _is_setting_or_option(follows) else word
            for word, follows in itertools.zip_longest(words, words[1:])
        ]
        return super().parse_known_args(spelled, namespace)


def _is_setting_or_option(word: str | None) -> bool:
    return word is None or "=" in word or word.startswith("-")


def add_train_options(train: argparse.ArgumentParser) -> None:
    """What `cispo train` may do instead of one run."""
    train.add_argument("--cfg", choices=CFG_WORDS, help="print the resolved configuration (job, if left out) and stop")
    train.add_argument("--package", metavar="KEY", default="", help="of --cfg: this part of it alone, e.g. learner")
    train.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values, as in seed=1,2 (a sweep)"
    )
    _show_groups(train)


def add_plan(commands: Any, overrides_help: str) -> None:
    """`cispo plan`."""
    plan = commands.add_parser("plan", help="what a run would do and need, by arithmetic; starts nothing")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    plan.set_defaults(run=run_plan)
    _show_groups(plan)


def _show_groups(command: argparse.ArgumentParser) -> None:
    command.epilog, command.formatter_class = groups_help(), argparse.RawDescriptionHelpFormatter


def check_together(options: argparse.Namespace) -> None:
    """Options of `cispo train` that exclude each other. Raises ConfigError."""
    from cispo.errors import ConfigError

    faults = []
    if options.multirun and (options.resume or options.cfg):
        faults.append("-m makes new runs, so it goes with neither --resume nor --cfg; take one of them at a time.")
    if options.package and not options.cfg:
        faults.append(f"--package says what --cfg prints; write --cfg job --package {options.package}.")
    if faults:
        raise ConfigError(*faults)


def print_config(config: RunConfig, package: str) -> None:
    """`cispo train --cfg job --package <package>`: YAML."""
    import yaml

    from launch.compose import section

    # A plain value alone would end in YAML's mark of the end of a document.
    print(yaml.safe_dump(section(config, package), sort_keys=False).removesuffix("...\n"), end="")


def run_multirun(options: argparse.Namespace) -> int:
    """`cispo train -m`: all runs, then what they came to side by side, even if some failed."""
    from launch.multirun import plan_sweep, run_sweep
    from launch.runs import show

    jobs = plan_sweep(options.overrides)
    try:
        run_sweep(jobs, lambda line: print(f"cispo: {line}", file=sys.stderr, flush=True), debug=options.debug)
    finally:
        show([job.folder for job in jobs if (job.folder / "config.yaml").is_file()])
    return 0


def run_plan(options: argparse.Namespace) -> int:
    """`cispo plan`."""
    from rich.console import Console

    from launch.compose import compose
    from launch.explain import table
    from launch.start_checks import plan_here

    plan = plan_here(compose(options.overrides))
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table(plan))
    return 0
