"""Endless sources of prompts and demonstrations whose cursor is a few numbers.

Every draw is a function of (seed, count): going on from a cursor is exact and takes no time, however far the run was.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cispo.errors import CheckpointError, DataError
from cispo.types import Prompt
from rollout.problem import Demonstration, Graded, Problem, Task
from rollout.prompt_files import PromptLimit, PromptTokenizer, Row
from rollout.seeding import Split, stable_rng, stable_uniform

if TYPE_CHECKING:
    from cispo.protocols import PromptSource, State

MAX_REDRAWS = 10_000
"""Draws in a row on the wrong side of the split before we say that the task has no prompts on the right one."""


class ProceduralSource:
    """Prompts of one task from one side of the split; the k-th depends on (seed, k) alone."""

    def __init__(self, task: Task, split: Split, tokenizer: PromptTokenizer, seed: int, *, limit: PromptLimit) -> None:
        self.task, self.split, self.tokenizer, self.limit = task, split, tokenizer, limit
        self.seed, self.count = seed, 0

    def next(self) -> Prompt:
        """The next training prompt. Raises DataError if it is too long or if every prompt is held out."""
        rng = stable_rng("problem", self.task.name, self.seed, self.count)
        task = at_draw(self.task, self.count)
        problem = next((p for p in redraws(task, rng) if not self.split.holds_out(p.text)), None)
        if problem is None:
            raise DataError(one_sided(self.task, self.split, "training"))
        prompt_id = f"{self.task.name}/train/{self.count:06d}"
        self.count += 1
        return problem_prompt(prompt_id, self.task.name, problem, self.tokenizer, self.limit)

    def state(self) -> State:
        """Seed and count."""
        return {"seed": self.seed, "count": self.count}

    def restore(self, state: State) -> None:
        """Go on with the state's seed at its count."""
        self.seed, self.count = state["seed"], state["count"]


class FileSource:
    """Rows of a file over and over, shuffled anew in each epoch; never empty."""

    def __init__(self, name: str, rows: tuple[Row, ...], tokenizer: PromptTokenizer, seed: int) -> None:
        self.name, self.rows, self.tokenizer = name, rows, tokenizer
        self.seed, self.epoch, self.position = seed, 0, 0
        self._order = self._shuffled()
        self._fingerprint = stable_uniform(*(part for row in rows for part in (row.id, row.text)))

    def next(self) -> Prompt:
        """The next row, as a prompt that is tokenised now."""
        if self.position == len(self.rows):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._shuffled()
        row = self.rows[self._order[self.position]]
        self.position += 1
        return row_prompt(f"{self.name}/train/{self.epoch}/{row.id}", row, self.tokenizer)

    def state(self) -> State:
        """Seed, epoch, position in it, and a fingerprint of the rows that both refer to."""
        cursor = {"seed": self.seed, "epoch": self.epoch, "position": self.position}
        return {**cursor, "num_rows": len(self.rows), "fingerprint": self._fingerprint}

    def restore(self, state: State) -> None:
        """Go on at the state's place; raises CheckpointError if the file has other rows by now."""
        if state["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"The prompts {self.name!r} are not those of the checkpoint (then {state['num_rows']} training rows, "
                f"now {len(self.rows)}), so its place in them means nothing; put the old file back or start a new run."
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(len(self.rows)))
        stable_rng("epoch", self.name, self.seed, self.epoch).shuffle(order)
        return order


class MixtureSource:
    """Several sources by weight; which one gives draw n depends on (seed, n) alone."""

    def __init__(self, sources: Mapping[str, PromptSource], weights: Mapping[str, float], seed: int) -> None:
        self.sources, self.weights = sources, weights
        self.seed, self.drawn = seed, 0

    def next(self) -> Prompt:
        """The next prompt of the source whose turn it is."""
        name = _choice(self.weights, stable_uniform("mixture", self.seed, self.drawn))
        self.drawn += 1
        return self.sources[name].next()

    def state(self) -> State:
        """Seed, number of draws, and every source's cursor."""
        cursors = {name: source.state() for name, source in self.sources.items()}
        return {"seed": self.seed, "drawn": self.drawn, "sources": cursors}

    def restore(self, state: State) -> None:
        """Go on exactly there; raises CheckpointError if the mixture has other tasks by now."""
        if set(state["sources"]) != set(self.sources):
            raise CheckpointError(
                f"The mixture has the tasks {sorted(self.sources)}, but had {sorted(state['sources'])} when the "
                "checkpoint was written; resume with the tasks of the run or start a new one."
            )
        self.seed, self.drawn = state["seed"], state["drawn"]
        for name, source in self.sources.items():
            source.restore(state["sources"][name])


class DemonstrationSource:
    """Examples for the cold start, mixed by weight, from the training side only; the k-th depends on (seed, k)."""

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float], split: Split, seed: int) -> None:
        self.tasks, self.weights, self.split = tasks, weights, split
        self.seed, self.count = seed, 0

    def next(self) -> Demonstration:
        """The next example. Raises DataError if every prompt of its task is held out."""
        name = _choice(self.weights, stable_uniform("demonstration mixture", self.seed, self.count))
        task = at_draw(self.tasks[name], 0)
        rng = stable_rng("demonstration", task.name, self.seed, self.count)
        self.count += 1
        for _ in range(MAX_REDRAWS):
            demonstration = task.demonstration(rng)
            if not self.split.holds_out(demonstration.prompt_text):
                return demonstration
        raise DataError(one_sided(task, self.split, "the cold start"))

    def state(self) -> State:
        """Seed and count."""
        return {"seed": self.seed, "count": self.count}

    def restore(self, state: State) -> None:
        """Go on with the state's seed at its count."""
        self.seed, self.count = state["seed"], state["count"]


def at_draw(task: Task, draw: int) -> Task:
    """The task as it is at its `draw`-th training prompt; most never change."""
    return task.at(draw) if isinstance(task, Graded) else task


def redraws(task: Task, rng: random.Random) -> Iterator[Problem]:
    """Draws of one task, up to the number that shows that the wanted side of the split is empty."""
    return (task.problem(rng) for _ in itertools.repeat(None, MAX_REDRAWS))


def one_sided(task: Task, split: Split, side: str) -> str:
    """The message of a task whose draws all fall on one side of the split."""
    return (
        f"Task {task.name!r} has no prompt for {side} in {MAX_REDRAWS} draws: it knows {task.num_prompts()} prompts, "
        f"and task.eval_fraction={split.eval_fraction} of them are held out; widen the task or change the fraction."
    )


def _choice(weights: Mapping[str, float], uniform: float) -> str:
    """The name on whose stretch of the weights' line `uniform` in [0, 1) falls."""
    edges = list(itertools.accumulate(weights.values()))
    at = bisect.bisect_right(edges, uniform * edges[-1], hi=len(edges) - 1)
    return list(weights)[at]


def problem_prompt(
    prompt_id: str, task: str, problem: Problem, tokenizer: PromptTokenizer, limit: PromptLimit
) -> Prompt:
    """A problem with its tokens. Raises DataError if it has none or too many."""
    token_ids = tuple(tokenizer.encode(problem.text))
    fault = limit.fault(len(token_ids))
    if fault:
        raise DataError(over_long(task, problem, fault))
    return Prompt(prompt_id, task, problem.text, token_ids, problem.reference)


def over_long(task: str, problem: Problem, fault: str) -> str:
    """The message of a task whose problem is too long a prompt, or none."""
    return (
        f"Task {task!r} drew the prompt {problem.text!r}, which {fault}; change that or make the task's problems "
        "shorter."
    )


def row_prompt(prompt_id: str, row: Row, tokenizer: PromptTokenizer) -> Prompt:
    """A row, whose length was checked when it was read, with its tokens."""
    return Prompt(prompt_id, row.task, row.text, tuple(tokenizer.encode(row.text)), row.reference)
