"""What a run will do, as text for the log and runs/<name>/plan.txt, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Plan:
    """Sections of (what, how much) by title, and warnings."""

    sections: Mapping[str, Sequence[tuple[str, str]]]
    warnings: Sequence[str]


def lines(plan: Plan) -> list[str]:
    """The plan as text, a line for each pair and each warning."""
    width = max(len(what) for pairs in plan.sections.values() for what, _ in pairs)
    told = []
    for title, pairs in plan.sections.items():
        told += [title, *(f"  {what:<{width}}  {how_much}" for what, how_much in pairs)]
    return [*told, *(f"warning: {warning}" for warning in plan.warnings)]


def table(plan: Plan) -> Table:
    """The plan for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for title, pairs in plan.sections.items():
        for number, (what, how_much) in enumerate(pairs):
            shown.add_row(Text("" if number else title, style="bold"), Text(what), Text(how_much))
        shown.add_section()
    for warning in plan.warnings:
        shown.add_row(Text("warning", style="bold yellow"), "", Text(warning, style="yellow"))
    return shown
