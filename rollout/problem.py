"""What a procedural task is: it invents problems, and shows examples of the answer's form.

A task is pure: all chance comes from the generator that it is handed. It knows nothing of tokens, of the held-out
split or of rewards; rollout/prompts.py draws from it and keeps training and evaluation apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rollout.environment import Observation


@dataclass(frozen=True)
class Problem:
    """One question and what its verifier needs, JSON-like: Problem("0-2+2-1=", "9")."""

    text: str
    reference: Any


@dataclass(frozen=True)
class Demonstration:
    """One example for the cold start. It teaches the form of an answer and need not be right.

    Example: Demonstration("0-2+2-1=", "<think>0-2=8;8+2=0;0-1=9</think>\\\\boxed{9}").

    Attributes:
        prompt_text: what is asked.
        completion_text: the first turn, and the only one of most tasks.
        later: further turns: what the environment answers, which is not learnt, and what is written then.
    """

    prompt_text: str
    completion_text: str
    later: tuple[tuple[Observation, str], ...] = ()


class Task(Protocol):
    """A source of problems without end and without files."""

    @property
    def name(self) -> str:
        """Names the task in metrics, and its verifier in the rewards' configuration."""

    def problem(self, rng: random.Random) -> Problem:
        """One problem; the same text always has the same reference."""

    def demonstration(self, rng: random.Random) -> Demonstration:
        """One example for the cold start."""

    def num_prompts(self) -> int:
        """How many distinct texts `problem` can give."""

    def words(self) -> tuple[str, ...]:
        """Strings that deserve a token of their own, such as "<think>"."""


@runtime_checkable
class Graded(Protocol):
    """A task whose problems get harder. What `Task.problem` gives is what evaluation sees."""

    def at(self, draw: int) -> Task:
        """The task as it is at the `draw`-th training prompt, from 0."""
