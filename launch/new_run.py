"""What is typed for a run that begins elsewhere: its folder is fixed now, so that a restart finds the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cispo.errors import ConfigError


def check_new(folder: Path, where: str) -> None:
    """Raise ConfigError if there is a run in the folder; `where` is the word behind `cispo launch`."""
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"{folder} holds a run already; go on with it by cispo launch {where} --resume {folder}, or give this one "
            f"another name (name=...)."
        )


def begin_words(overrides: Sequence[str], folder: Path) -> list[str]:
    """The overrides with this folder as the run's."""
    typed = [o for o in overrides if o.partition("=")[0].lstrip("+~") not in ("name", "runs_folder")]
    return [*typed, f"name={quoted(folder.name)}", f"runs_folder={quoted(str(folder.parent))}"]


def quoted(value: str) -> str:
    """A text as the value of an override."""
    if re.fullmatch(r"[A-Za-z_/.][\w/.+-]*", value, flags=re.ASCII):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
