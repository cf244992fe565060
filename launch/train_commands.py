"""`cispo train`, `cispo plan` and `cispo sft`, and what they share: options that print or plan instead of training."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from pathlib import Path
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


def add_train_commands(commands: Any, overrides_help: str) -> None:
    """Add `train`, `plan` and `sft` to those of `cispo`."""
    train = commands.add_parser("train", help="cold start and RL; with no override, the embedded default")
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with runs/<name> from its newest checkpoint")
    _add_train_options(train)
    train.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    train.set_defaults(run=run_train)
    _add_plan(commands, overrides_help)

    sft = commands.add_parser("sft", help="the cold start alone; exports the policy")
    sft.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    sft.set_defaults(run=run_sft)


def _add_train_options(train: argparse.ArgumentParser) -> None:
    """What `cispo train` may do instead of one run."""
    train.add_argument("--cfg", choices=CFG_WORDS, help="print the resolved configuration (job, if left out) and stop")
    train.add_argument("--package", metavar="KEY", default="", help="of --cfg: this part of it alone, e.g. learner")
    train.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values, as in seed=1,2 (a sweep)"
    )
    _show_groups(train)


def _add_plan(commands: Any, overrides_help: str) -> None:
    plan = commands.add_parser("plan", help="what a run would do and need, by arithmetic; starts nothing")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    plan.set_defaults(run=run_plan)
    _show_groups(plan)


def _show_groups(command: argparse.ArgumentParser) -> None:
    command.epilog, command.formatter_class = groups_help(), argparse.RawDescriptionHelpFormatter


def run_train(options: argparse.Namespace) -> int:
    """`cispo train`."""
    check_together(options)
    if options.multirun:
        return run_multirun(options)
    from launch.compose import compose, load_config
    from launch.run_folder import with_free_name
    from launch.train import run_training

    if options.resume:
        config = load_config(options.resume / "config.yaml", options.overrides)
        if (Path(config.runs_folder) / config.name).absolute() != options.resume.absolute():
            # The folder may have been moved or renamed since: where it is now counts.
            config = dataclasses.replace(
                config, name=options.resume.absolute().name, runs_folder=str(options.resume.absolute().parent)
            )
    else:
        config = with_free_name(compose(options.overrides), options.overrides)
    if options.cfg:
        print_config(config, options.package)
        return 0
    folder = run_training(config, resume=bool(options.resume))
    print_whereabouts(folder)
    return 0


def run_sft(options: argparse.Namespace) -> int:
    """`cispo sft`."""
    from launch.compose import compose
    from launch.run_folder import with_free_name
    from launch.train import run_training

    config = with_free_name(compose(options.overrides), options.overrides)
    folder = run_training(config, sft_only=True)
    print(f"cold start done; the policy is in {folder / 'export'}")
    return 0


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
    from launch.plan import table
    from launch.start_checks import plan_here

    plan = plan_here(compose(options.overrides))
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table(plan))
    return 0


def print_whereabouts(folder: Path) -> None:
    """Where a finished run's files are, and the figures that matter."""
    import json

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    first, last = summary["eval"]["first"], summary["eval"]["last"]
    for kind in ("sampled", "greedy"):
        for task, value in last.get(kind, {}).items():
            print(f"  {kind:<8} {task:<10} {first[kind].get(task, float('nan')):.3f} -> {value:.3f}")
    print(f"  {summary['seconds']['total']:.0f} s, {summary['tokens']['generated']} tokens sampled for training")
    files = {"report": "report.html", "summary": "summary.json", "policy": "export", "metrics": "metrics.jsonl"}
    for what, name in files.items():
        print(f"  {what:<8} {folder / name}")
