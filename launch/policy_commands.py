"""`cispo eval`, `cispo generate` and `cispo serve`: what is done with a policy outside of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

POLICY_HELP = "runs/<name>, its export folder, or any folder in Hugging Face layout"


def add_policy_commands(commands: Any, overrides_help: str) -> None:
    """Add them to those of `cispo`."""
    _add_eval(commands, overrides_help)
    _add_generate(commands)
    _add_serve(commands, overrides_help)


def _add_eval(commands: Any, overrides_help: str) -> None:
    evaluate = commands.add_parser("eval", help="held-out accuracy of a policy: greedy, mean@k, pass@k")
    _add_policy(evaluate)
    evaluate.add_argument("--output", type=Path, help="write the figures and every sampled answer here (JSON Lines)")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    evaluate.set_defaults(run=run_eval)


def _add_generate(commands: Any) -> None:
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


def _add_serve(commands: Any, overrides_help: str) -> None:
    serve = commands.add_parser(
        "serve",
        help="a policy behind the OpenAI API, whose weights can be replaced (docs/engines.md)",
        description="Without a policy: what `cispo train` would begin with, e.g. for a run that sends its weights.",
    )
    serve.add_argument("policy", nargs="?", help=POLICY_HELP)
    serve.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    serve.set_defaults(run=run_serve)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        type=Path,
        required=True,
        help=POLICY_HELP,
    )


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
