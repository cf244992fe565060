"""Tasks that depend on each other."""

from errands.durations import parse_duration, show_duration
from errands.graph import CycleError, Graph
from errands.plan import Plan, UnknownTask
from errands.schedule import Job, Schedule

__all__ = [
    "CycleError",
    "Graph",
    "Job",
    "Plan",
    "Schedule",
    "UnknownTask",
    "parse_duration",
    "show_duration",
]
