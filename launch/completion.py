"""What TAB offers: commands and options by argcomplete, and overrides, keys and run folders by the functions below.

    eval "$(cispo completion bash)"        in ~/.bashrc; docs/configuring.md has the lines of zsh and fish

Each TAB starts `cispo`, so everything here is light: the keys come from configs/keys.txt and not from the dataclasses.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cispo.errors import ConfigError
from launch.config_tree import GROUPS, choices, key_types

SHELLS = ("bash", "zsh", "fish")
RUNS = ("resume", "folder", "folders", "policy")
"""Arguments of commands that name a run."""


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end the process, if it is the shell that asks."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        _offer(parser)
        argcomplete.autocomplete(parser, always_complete_options=False)


def _offer(parser: argparse.ArgumentParser) -> None:
    """Say who answers for the arguments of all commands, by their names, which mean the same everywhere."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _offer(command)
        elif action.dest == "overrides":
            action.completer = overrides_of  # type: ignore[attr-defined]  # where argcomplete looks for it
        elif action.dest in RUNS:
            action.completer = runs_of  # type: ignore[attr-defined]


def add_completion_command(commands: Any) -> None:
    """`cispo completion`."""
    command = commands.add_parser("completion", help='completion of a shell: eval "$(cispo completion bash)"')
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run=_run_completion)


def overrides_of(prefix: str, **_others: Any) -> list[str]:
    """The overrides that begin with `prefix`: groups and keys up to the next dot, and choices behind the =."""
    key, equals, value = prefix.partition("=")
    if equals:
        before, comma, _ = value.rpartition(",")  # another value of a sweep
        return [f"{key}={before}{comma}{choice}" for choice in _values(key)]
    found = _next_words(prefix)
    while len(found) == 1 and found[0].endswith("."):
        found = _next_words(found[0])
    return found


def runs_of(prefix: str, **_others: Any) -> list[str]:
    """Folders of runs that begin with `prefix`, and folders on the way to one; runs/ where nothing was typed."""
    folder = Path(prefix).parent if prefix and not prefix.endswith("/") else Path(prefix or ".")
    found = []
    for path in _folders(folder):
        name = str(path)
        if name.startswith(prefix):
            found.append(name if (path / "config.yaml").is_file() else f"{name}/")
    if not prefix and "runs/" in found:
        return runs_of("runs/")
    return found


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _next_words(prefix: str) -> list[str]:
    """What may follow, as far as the next dot or the =."""
    where = prefix.rpartition(".")[0]
    depth = len(where) + 1 if where else 0
    words: dict[str, None] = {} if where else {f"{group}=": None for group in GROUPS}
    for key in key_types():
        if not where or key.startswith(f"{where}."):
            head, dot, _ = key[depth:].partition(".")
            words[f"{key[:depth]}{head}{dot or '='}"] = None
    return [word for word in words if word.startswith(prefix)]


def _values(key: str) -> Iterable[str]:
    if key in GROUPS:
        return choices(key)
    return ("true", "false") if key_types().get(key) == "bool" else ()


def _run_completion(options: argparse.Namespace) -> int:
    """`cispo completion`."""
    try:
        import argcomplete
    except ImportError as error:
        raise ConfigError("Completion needs argcomplete; run `pip install argcomplete`.") from error
    print(argcomplete.shellcode(["cispo"], shell=options.shell))
    return 0
