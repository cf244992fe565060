r"""Tasks `gym/<dataset>`: the datasets of reasoning-gym as sources of prompts, with a difficulty.

    prompt      Find the Greatest Common Divisor (GCD) of these numbers: 38, 95. Give only the GCD as your final answer.
    reference   {"task": "gym/gcd", "answer": "19", "metadata": {}}, for the logic verifier

Problem k of a dataset is a function of (level, k) in the library and k is drawn by our generator, so the stream goes on
exactly from a cursor. The library's curricula have levels by name and number; here difficulty 0 is a dataset's first
level and 1 its last (rollout/gym_datasets.py), and between two levels problems are drawn from both.
"""

from __future__ import annotations

import dataclasses
import decimal
import difflib
import functools
import json
import os.path
import random
from dataclasses import dataclass
from typing import Any

from cispo.errors import ConfigError, DataError
from cispo.schedule import Schedule, check_schedule, value_at
from rollout.gym_datasets import DENIED, GYM_DATASETS, GymDataset
from rollout.problem import Demonstration, Problem

PREFIX = "gym/"
"""What the names of these tasks begin with."""

NUM_TRIES = 1000
"""Problems in a row that are too long before we say that all are."""

_NUM_SAMPLES = 8
"""Problems that are compared to find what is the same in all prompts of a dataset."""


@dataclass(frozen=True)
class GymConfig:
    """What the problems of all gym tasks are like.

    Attributes:
        difficulty: from 0, a dataset's easiest level, to 1, its hardest; a number, or knots
            [[prompts drawn of the task, difficulty], ...].
        eval_difficulty: of the held-out prompts; null is the highest value of `difficulty`.
        max_prompt_bytes: a longer problem is drawn again; no tokenizer makes more tokens than bytes.
        instruction: text that is put after every question, such as how an answer is marked.
        random_fraction: share of demonstrations that show the answer to another problem.
    """

    difficulty: Schedule = 0.0
    eval_difficulty: float | None = None
    max_prompt_bytes: int = 1000
    instruction: str = ""
    random_fraction: float = 0.5

    def __post_init__(self) -> None:
        faults: list[str] = []
        try:
            check_schedule("task.parameters.gym.difficulty", self.difficulty, least=0.0)
        except ConfigError as error:
            faults += error.faults
        else:
            highest = max(self._values)
            if highest > 1:
                faults.append(f"task.parameters.gym.difficulty must be at most 1 throughout; got {highest:g}.")
        if self.eval_difficulty is not None and not 0 <= self.eval_difficulty <= 1:
            faults.append(f"task.parameters.gym.eval_difficulty is a number from 0 to 1, got {self.eval_difficulty}.")
        if self.max_prompt_bytes < 1:
            faults.append(f"task.parameters.gym.max_prompt_bytes must be at least 1, got {self.max_prompt_bytes}.")
        if not 0 <= self.random_fraction <= 1:
            faults.append(f"task.parameters.gym.random_fraction is a share from 0 to 1, got {self.random_fraction}.")
        if faults:
            raise ConfigError(*faults)

    @property
    def _values(self) -> list[float]:
        return [self.difficulty] if isinstance(self.difficulty, int | float) else [v for _, v in self.difficulty]

    @property
    def held_out_difficulty(self) -> float:
        """The difficulty of the prompts that evaluation sees."""
        return max(self._values) if self.eval_difficulty is None else self.eval_difficulty


class GymTask:
    """One dataset. `problem` draws at one difficulty; `at` gives the task at that of another moment of the run."""

    def __init__(self, dataset: str, config: GymConfig | None = None, *, difficulty: float | None = None) -> None:
        """The dataset by the library's name; `difficulty` None is that of the held-out prompts.

        Raises ConfigError if the dataset is not enabled, or if reasoning-gym is not installed.
        """
        fault = name_fault(PREFIX + dataset)
        if fault:
            raise ConfigError(fault)
        self.name = PREFIX + dataset
        self.dataset, self.config = dataset, config or GymConfig()
        self.difficulty = self.config.held_out_difficulty if difficulty is None else difficulty
        _library()

    def at(self, draw: int) -> GymTask:
        """The task at its `draw`-th training prompt."""
        return GymTask(self.dataset, self.config, difficulty=value_at(self.config.difficulty, draw))

    def problem(self, rng: random.Random) -> Problem:
        """One problem whose prompt is short enough and whose answer is not empty.

        Raises DataError if none of many draws is.
        """
        settings = GYM_DATASETS[self.dataset]
        for _ in range(NUM_TRIES):
            entry = make_entry(self.dataset, self._level(rng, settings), rng.getrandbits(31))
            text = str(entry["question"]) + self.config.instruction
            if str(entry["answer"]).strip() and len(text.encode()) <= self.config.max_prompt_bytes:
                return Problem(text, reference_of(self.dataset, entry))
        raise DataError(
            f"Task {self.name!r} made {NUM_TRIES} problems at difficulty {self.difficulty:g}, and none fits into "
            f"task.parameters.gym.max_prompt_bytes={self.config.max_prompt_bytes}; raise it together with "
            "task.max_prompt_tokens and engine.max_length, or lower the difficulty."
        )

    def demonstration(self, rng: random.Random) -> Demonstration:
        """A problem with its answer or with that of another one, without a thought before it."""
        problem = self.problem(rng)
        shown = self.problem(rng) if rng.random() < self.config.random_fraction else problem
        return Demonstration(problem.text, f"<think></think>{marked(shown.reference['answer'])}")

    def num_prompts(self) -> int:
        """How many problems can be asked of the library; nobody knows how many of them are the same."""
        return 2**31

    def words(self) -> tuple[str, ...]:
        """The form of an answer, and what is the same at the beginning of all prompts of the dataset."""
        return ("<think>", "</think>", "\\boxed{", *_same_beginning(self.dataset))

    def _level(self, rng: random.Random, settings: GymDataset) -> int:
        place = settings.first + self.difficulty * (settings.last - settings.first)
        return int(place) + (rng.random() < place - int(place))


def name_fault(name: str) -> str:
    """Why there is no task `name`, which begins with "gym/", with the nearest right name; "" if there is one."""
    dataset = name.removeprefix(PREFIX)
    if dataset in GYM_DATASETS:
        return ""
    if dataset in DENIED:
        return f"there is no task {name!r}, because {dataset} {DENIED[dataset]}."
    near = difflib.get_close_matches(dataset, GYM_DATASETS, n=1)
    hint = f"did you mean {PREFIX + near[0]!r}?" if near else "docs/logic.md lists the datasets."
    return f"there is no task {name!r}; {hint}"


def make_entry(dataset: str, level: int, index: int) -> dict[str, Any]:
    """Problem `index` of a dataset at one of the library's levels, as it comes through JSON."""
    # decimal_arithmetic sets the precision of this thread's decimals, and decimal_chain_sum depends on it.
    with decimal.localcontext(decimal.Context()):
        entry = _dataset(dataset, level)[index]
    facts = {key: entry["metadata"][key] for key in GYM_DATASETS[dataset].facts if key in entry["metadata"]}
    plain = {"question": entry["question"], "answer": entry["answer"], "metadata": facts}
    made: dict[str, Any] = json.loads(json.dumps(plain))
    return made


def reference_of(dataset: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the logic verifier needs of an entry."""
    return {"task": PREFIX + dataset, "answer": entry["answer"], "metadata": entry["metadata"]}


def marked(answer: str) -> str:
    r"""The answer in a box, or, where its braces would end the box early, in `<answer>` tags."""
    depth = 0
    for character in answer.replace("\\{", "").replace("\\}", ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
    return f"\\boxed{{{answer}}}" if depth == 0 else f"<answer>{answer}</answer>"


@functools.cache
def _dataset(name: str, level: int) -> Any:
    """The library's generator at one level; problems are made when they are asked for."""
    library = _library()
    dataset_class, config_class = library.DATASETS[name]
    if name not in library.CURRICULA:
        return dataset_class(config_class(seed=0, size=1))
    curriculum = library.create_curriculum(name)
    curriculum.set_global_level(level)
    return dataset_class(dataclasses.replace(curriculum.generate_configuration(), seed=0, size=1))


@functools.cache
def _same_beginning(dataset: str) -> tuple[str, ...]:
    """The whole words with which the prompts of the first and the last level begin; none if they are few."""
    settings = GYM_DATASETS[dataset]
    levels = (settings.first, settings.last)
    texts = [make_entry(dataset, level, index)["question"] for level in levels for index in range(_NUM_SAMPLES)]
    begin = os.path.commonprefix(texts)
    begin = begin[: begin.rfind(" ") + 1]
    return (begin,) if len(begin) >= 16 else ()


@functools.cache
def _library() -> Any:
    """reasoning_gym.factory; raises ConfigError if it is not installed."""
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise ConfigError(
            f"The tasks {PREFIX}* need reasoning-gym, which cannot be imported ({error}); run pip install "
            "'cispo[logic]', or leave them out of task.mixture."
        ) from error
    return factory
