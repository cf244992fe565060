"""The procedural tasks by name, and how one that is somebody else's is found.

A new task is a class like its neighbours in chain_task.py and program_task.py: name it in TASKS, give its parameters
a field in TaskParameters; or leave this house alone and say in `task.own` where your class is (docs/data.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cispo.errors import ConfigError
from rollout.calculate_task import CalculateConfig, CalculateTask
from rollout.chain_task import ChainConfig, ChainTask
from rollout.digits_task import CountTask, DigitsConfig, ReverseTask, SortTask
from rollout.gym_datasets import GYM_DATASETS
from rollout.gym_task import PREFIX, GymConfig, GymTask, name_fault
from rollout.own_module import load_module
from rollout.problem import Demonstration, Problem, Task
from rollout.program_task import ProgramConfig, ProgramTask
from rollout.puzzle_tasks import Game24Task, KnightsTask, PathTask, PuzzleConfig, Sudoku4Task
from rollout.symbol_tasks import BracketsTask, CopyTask, MaxTask, ModAddTask, XorTask

__all__ = ["TASKS", "Demonstration", "Problem", "Task", "TaskParameters", "make_task", "unknown_task"]

TASKS: dict[str, Any] = {
    "chain": ChainTask,
    "program": ProgramTask,
    "calculate": CalculateTask,
    "reverse": ReverseTask,
    "sort": SortTask,
    "count": CountTask,
    "copy": CopyTask,
    "xor": XorTask,
    "brackets": BracketsTask,
    "max": MaxTask,
    "modadd": ModAddTask,
    "game24": Game24Task,
    "sudoku4": Sudoku4Task,
    "knights": KnightsTask,
    "path": PathTask,
}
"""Name -> class, each built with the field of TaskParameters that has its name."""


@dataclass(frozen=True)
class TaskParameters:
    """The parameters of every task of this house.

    Attributes:
        chain: sums from left to right modulo 10.
        program: programs from phrases.
        calculate: arithmetic for a policy with tools.
        reverse, sort, count, copy, modadd: what their digit strings look like.
        xor, brackets, max: how many bits, pairs of brackets or numbers there are.
        game24, sudoku4, knights, path: how large the puzzles are.
        gym: the datasets of reasoning-gym, all of them.
    """

    chain: ChainConfig = field(default_factory=ChainConfig)
    program: ProgramConfig = field(default_factory=ProgramConfig)
    calculate: CalculateConfig = field(default_factory=CalculateConfig)
    reverse: DigitsConfig = field(default_factory=DigitsConfig)
    sort: DigitsConfig = field(default_factory=DigitsConfig)
    count: DigitsConfig = field(default_factory=DigitsConfig)
    copy: DigitsConfig = field(default_factory=DigitsConfig)
    modadd: DigitsConfig = field(default_factory=DigitsConfig)
    xor: DigitsConfig = field(default_factory=lambda: DigitsConfig(max_length=9))
    brackets: DigitsConfig = field(default_factory=DigitsConfig)
    max: DigitsConfig = field(default_factory=DigitsConfig)
    game24: PuzzleConfig = field(default_factory=lambda: PuzzleConfig(min_size=6, max_size=9))
    sudoku4: PuzzleConfig = field(default_factory=PuzzleConfig)
    knights: PuzzleConfig = field(default_factory=lambda: PuzzleConfig(min_size=3, max_size=5))
    path: PuzzleConfig = field(default_factory=PuzzleConfig)
    gym: GymConfig = field(default_factory=GymConfig)


def make_task(name: str, parameters: TaskParameters, own: Mapping[str, str]) -> Task:
    """The task `name`: a key of `own`, which says where its class is, or of TASKS, or "gym/" and a dataset's name.

    Raises ConfigError if there is no such task or if the class lacks a part of `Task`.
    """
    if name in own:
        return _own_task(name, own[name])
    if name.startswith(PREFIX):
        return GymTask(name.removeprefix(PREFIX), parameters.gym)
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}: write one of {', '.join((*TASKS, *own))}.")
    return TASKS[name](getattr(parameters, name))


def unknown_task(name: str, known: Iterable[str]) -> str:
    """Why `name` is neither in `known` nor a dataset of reasoning-gym, with the nearest right name; "" if it is."""
    if name in known:
        return ""
    if name.startswith(PREFIX):
        return name_fault(name)
    names = list(known)
    near = difflib.get_close_matches(name, [*names, *GYM_DATASETS], n=1)
    if near and near[0] in GYM_DATASETS and near[0] not in names:
        near = [PREFIX + near[0]]
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}, and gym/<dataset>."
    return f"there is no task {name!r}; {hint}"


def _own_task(name: str, place: str) -> Task:
    """A task from `path/to/file.py:Class` or `package.module:Class`, a class that is built without arguments."""
    module_name, _, class_name = place.partition(":")
    try:
        task = getattr(load_module(module_name), class_name)()
    except Exception as error:  # a stranger's file may raise anything while it is imported
        raise ConfigError(
            f"The task task.own.{name}={place} cannot be built ({type(error).__name__}: {error}); it must be "
            "path/to/file.py:Class or package.module:Class, of a class that takes no arguments."
        ) from error
    missing = [part for part in ("name", "problem", "demonstration", "num_prompts", "words") if not hasattr(task, part)]
    if missing:
        raise ConfigError(f"The task {place} has no {', '.join(missing)}; docs/data.md shows a whole task.")
    if task.name != name:
        raise ConfigError(f"The task {place} calls itself {task.name!r}; write task.own.{task.name}={place}.")
    return task
