"""Counts, sizes and schedules in the words of the plan of a run."""

from __future__ import annotations

from collections.abc import Sequence

from cispo.schedule import Schedule


def count(number: int, noun: str) -> str:
    """1 shard, 2 shards."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def num_due(every: int, steps: int) -> int:
    """How often something happens that happens before the first step, after the last, and `every` so many."""
    return 1 + len({steps, *range(every, steps + 1, every)} - {0}) if every else 1 + (steps > 0)


def schedule_text(schedule: Schedule) -> str:
    """A number, or the knots with arrows: 0 (step 0) -> 5e-07 (step 100)."""
    if isinstance(schedule, int | float):
        return f"{schedule:g}"
    return " -> ".join(f"{value:g} (step {step:g})" for step, value in schedule)


def short(number: float) -> str:
    """A count with three digits: 1.05M."""
    return _scaled(number, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")), "")


def size(num_bytes: float) -> str:
    """Bytes, decimal: 19.9 GB."""
    return _scaled(num_bytes, ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB")), " B")


def _scaled(number: float, units: Sequence[tuple[float, str]], plain: str) -> str:
    for unit, name in units:
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.4g}{plain}"
