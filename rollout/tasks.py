"""The procedural tasks by name, and how one that is somebody else's is found.

A new task is a class like its neighbours in chain_task.py and program_task.py: name it in TASKS, give its parameters
a field in TaskParameters, or leave this house alone and write `package.module:Class` in the mixture (docs/data.md).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from cispo.errors import ConfigError
from rollout.chain_task import ChainConfig, ChainTask
from rollout.digits_task import CountTask, DigitsConfig, ReverseTask, SortTask
from rollout.problem import Demonstration, Problem, Task
from rollout.program_task import ProgramConfig, ProgramTask

__all__ = ["TASKS", "Demonstration", "Problem", "Task", "TaskParameters", "make_task"]

TASKS: dict[str, Any] = {
    "chain": ChainTask,
    "program": ProgramTask,
    "reverse": ReverseTask,
    "sort": SortTask,
    "count": CountTask,
}
"""Name -> class, each built with the field of TaskParameters that has its name."""


@dataclass(frozen=True)
class TaskParameters:
    """The parameters of every task of this house.

    Attributes:
        chain: sums from left to right modulo 10.
        program: programs from phrases.
        reverse, sort, count: what their digit strings look like.
    """

    chain: ChainConfig = field(default_factory=ChainConfig)
    program: ProgramConfig = field(default_factory=ProgramConfig)
    reverse: DigitsConfig = field(default_factory=DigitsConfig)
    sort: DigitsConfig = field(default_factory=DigitsConfig)
    count: DigitsConfig = field(default_factory=DigitsConfig)


def make_task(name: str, parameters: TaskParameters) -> Task:
    """The task `name`: a key of TASKS, or `package.module:Class`, a class that is built without arguments.

    Raises ConfigError if there is no such task or if the class lacks a part of `Task`.
    """
    if name in TASKS:
        return TASKS[name](getattr(parameters, name))
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ConfigError(f"There is no task {name!r}: write one of {', '.join(TASKS)}, or package.module:Class.")
    try:
        task = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The task {name!r} cannot be built ({error}): {module_name!r} must be a module that Python finds and "
            f"{class_name!r} a class in it that takes no arguments."
        ) from error
    missing = [part for part in _PARTS if not hasattr(task, part)]
    if missing:
        raise ConfigError(f"The task {name!r} has no {', '.join(missing)}; docs/data.md shows a whole task.")
    return task


_PARTS = ("name", "problem", "demonstration", "num_prompts", "words")
