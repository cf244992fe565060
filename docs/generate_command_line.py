"""Writes docs/command_line.md from the parser of `cispo`, so that the page cannot drift from the code.

python docs/generate_command_line.py
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from launch.cli import make_parser

PAGE = Path(__file__).with_name("command_line.md")
HEAD = """# Command line

Generated from the parser by `docs/generate_command_line.py`. Settings, `key=value`, are in
[the reference](configs.md#reference); they may stand before and behind options. A wrong one is answered with the
nearest right one, and the exit status is 1.
"""


def main() -> None:
    """Write the page of the present parser."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(text for path, parser in leaves(make_parser()) for text in section(path, parser))])


def leaves(
    parser: argparse.ArgumentParser, path: str = "cispo", about: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, with what is typed to get there."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        parser.epilog = about
        yield path, parser
    for group in groups:
        helps = {action.dest: action.help or "" for action in group._choices_actions}
        for name, command in group.choices.items():
            yield from leaves(command, f"{path} {name}", helps.get(name, ""))


def section(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """Heading, what it does, and a table of its words."""
    about = " ".join(filter(None, [sentence(parser.epilog or ""), parser.description]))
    rows = [
        f"| {spelled(action)} | {linked(action.help or '')} |" for action in parser._actions if action.dest != "help"
    ]
    return [f"## {path}", "", linked(about), "", "| | |", "|---|---|", *rows, ""]


def sentence(text: str) -> str:
    """With a capital at the beginning and a full stop at the end."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def linked(text: str) -> str:
    """Mentions of pages as links."""
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text.replace("<", "&lt;"))


def spelled(action: argparse.Action) -> str:
    """An option or a word as it is typed."""
    value = action.metavar if isinstance(action.metavar, str) else action.dest
    if not action.option_strings:
        return f"`{f'[{value} ...]' if action.nargs == '*' else f'[{value}]' if action.nargs == '?' else value}`"
    takes = "" if action.nargs == 0 else f" {value if action.metavar else value.upper()}"
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings) + (
        " (needed)" if action.required else ""
    )


if __name__ == "__main__":
    main()
