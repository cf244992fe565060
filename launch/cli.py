"""`cispo <command>`: what the user types, and how errors reach the user: one clear sentence and a non-zero exit."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.completion import add_completion_command, complete
from launch.launch_commands import add_launch_commands
from launch.messages import is_message
from launch.sandbox_commands import add_sandbox_commands
from launch.train_commands import (
    SettingsParser,
    add_plan,
    add_train_options,
    check_together,
    print_config,
    run_multirun,
)

if TYPE_CHECKING:  # importing it costs seconds that `cispo --help` need not take
    pass

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

    train = commands.add_parser("train", help="cold start and RL; with no override, the embedded default")
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with runs/<name> from its newest checkpoint")
    add_train_options(train)
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    train.set_defaults(run=run_train)
    add_plan(commands, OVERRIDES_HELP)

    sft = commands.add_parser("sft", help="the cold start alone; exports the policy")
    sft.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    sft.set_defaults(run=run_sft)

    evaluate = commands.add_parser("eval", help="held-out accuracy of a policy: greedy, mean@k, pass@k")
    _add_policy(evaluate)
    evaluate.add_argument("--output", type=Path, help="write the figures and every sampled answer here (JSON Lines)")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    evaluate.set_defaults(run=run_eval)

    generate = commands.add_parser("generate", help="a prompt in, text out as it is sampled")
    _add_policy(generate)
    generate.add_argument("prompt", nargs="?", help="the prompt; without it, one prompt per line of standard input")
    generate.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="the prompt is this file's text, of any length"
    )
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    generate.add_argument("--max-new-tokens", type=int, default=256)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--chat", action="store_true", help="put the prompt through the tokenizer's chat template")
    generate.add_argument(
        "--state", type=Path, metavar="FILE", help="save the work there against a kill, and go on from it if it exists"
    )
    generate.add_argument("--save-seconds", type=float, default=60.0, help="time between two saves (default 60)")
    generate.set_defaults(run=run_generate)

    _add_serve(commands)
    _add_rewards(commands)
    _add_workers(commands)

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

    runs = commands.add_parser(
        "runs",
        help="the runs of a folder, or some of them side by side",
        description="One folder of runs is listed; two or more runs are compared: settings that differ, and results.",
    )
    runs.add_argument("folders", nargs="*", type=Path, default=[], help="runs (default), or runs/<a> runs/<b> ...")
    runs.set_defaults(run=run_runs)

    add_launch_commands(commands, OVERRIDES_HELP)
    add_sandbox_commands(commands, OVERRIDES_HELP)
    add_completion_command(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="a policy behind the OpenAI API, whose weights can be replaced (docs/engines.md)",
        description="Without a policy: what `cispo train` would begin with, e.g. for a run that sends its weights.",
    )
    serve.add_argument("policy", nargs="?", help="runs/<name>, its export folder, or any folder in Hugging Face layout")
    serve.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    serve.set_defaults(run=run_serve)


def _add_workers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    workers = commands.add_parser(
        "workers",
        help="give a run under way more rollout workers, or fewer",
        description="New workers begin when they have started; one that leaves first finishes what it has.",
    )
    workers.add_argument("folder", type=Path, help="runs/<name>")
    workers.add_argument("number", type=int, help="of workers that the run is to have from now on")
    workers.set_defaults(run=run_workers)


def _add_rewards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    audit.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    audit.set_defaults(run=run_audit)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        type=Path,
        required=True,
        help="runs/<name>, its export folder, or any folder in Hugging Face layout",
    )


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


def run_eval(options: argparse.Namespace) -> int:
    """`cispo eval`."""
    from launch.inference import evaluate_policy

    for name, value in evaluate_policy(options.policy, options.overrides, options.output).items():
        print(f"{name:<28} {value:.4f}")
    return 0


def run_generate(options: argparse.Namespace) -> int:
    """`cispo generate`."""
    from launch.inference import generate_text, prompt_pieces

    for prompt in prompt_pieces(options, sys.stdin):
        for piece in generate_text(options.policy, prompt, options):
            print(piece, end="", flush=True)
        print()
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """`cispo serve`."""
    from launch.serve import serve

    # A first word like key=value is a setting: the policy may be left out.
    is_setting = options.policy is not None and "=" in options.policy
    policy = None if options.policy is None or is_setting else Path(options.policy)
    serve(policy, [options.policy, *options.overrides] if is_setting else options.overrides)
    return 0


def run_workers(options: argparse.Namespace) -> int:
    """`cispo workers`."""
    from launch.fleet_size import ask_for_workers

    ask_for_workers(options.folder, options.number)
    workers = "1 worker" if options.number == 1 else f"{options.number} workers"
    print(f"{options.folder} is to go on with {workers}; perf/workers in its metrics says when it does.")
    return 0


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


def run_runs(options: argparse.Namespace) -> int:
    """`cispo runs`."""
    from launch.runs import show

    show(options.folders or [Path("runs")])
    return 0


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


def _notes(error: BaseException) -> list[str]:
    """What was added to the error on its way up, such as how to go on with the run."""
    return list(getattr(error, "__notes__", []))


def _laid_out(message: str) -> str:
    return f"\n{message}" if "\n" in message else f" {message}"


if __name__ == "__main__":
    sys.exit(main())
