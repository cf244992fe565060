"""Values as functions of progress: learning rate, ratio cap, gradient clip, length window.

A schedule is a number, or knots [[step, value], ...] joined by straight lines and held flat before the first and after
the last. So warm-up, hold, decay and a staircase (two knots one step apart) are one mechanism:

    learner.lr=3e-4                                              constant
    learner.lr=[[0,0],[3,3e-4],[20,3e-4],[40,3e-5]]              warm up, hold, decay
    engine.max_new_tokens=[[0,40960],[999,40960],[1000,49152]]   a length window that opens at step 1000
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cispo.errors import ConfigError

Schedule = float | tuple[tuple[float, float], ...]


def check_schedule(name: str, schedule: Schedule, *, least: float = -math.inf) -> None:
    """Raise ConfigError unless the steps of the knots increase and no value is below `least`."""
    values = [schedule] if isinstance(schedule, int | float) else [knot[-1] for knot in schedule if knot]
    if values and min(values) < least:
        raise ConfigError(f"{name} must be at least {least:g} throughout; got {min(values):g}.")
    if isinstance(schedule, int | float):
        return
    steps = [knot[0] for knot in schedule if len(knot) == 2]
    if len(steps) != len(schedule) or not steps or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
        raise ConfigError(
            f"{name} must be a number or knots [[step, value], ...] with increasing steps; got {_shown(schedule)}."
        )


def value_at(schedule: Schedule, step: float) -> float:
    """The schedule's value at `step` (steps finished so far; the first step of a run is made at 0)."""
    if isinstance(schedule, int | float):
        return float(schedule)
    if step <= schedule[0][0]:
        return float(schedule[0][1])
    for (left, low), (right, high) in zip(schedule, schedule[1:], strict=False):
        if step <= right:
            return low + (high - low) * (step - left) / (right - left)
    return float(schedule[-1][1])


def largest(schedule: Schedule, last_step: float) -> float:
    """The largest value from step 0 to `last_step`: between knots the lines are straight."""
    knots = () if isinstance(schedule, int | float) else (knot[0] for knot in schedule)
    return max(value_at(schedule, step) for step in (0, last_step, *(k for k in knots if 0 < k < last_step)))


def _shown(schedule: Sequence[Sequence[float]]) -> str:
    return "[" + ", ".join("[" + ", ".join(f"{x:g}" for x in knot) + "]" for knot in schedule) + "]"
