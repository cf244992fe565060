"""An environment of one's own: guess a digit, and be told whether it is higher or lower.

    prompt       guess:417=
    first turn   5<eos>
    observation  lower
    second turn  2<eos>             right: the episode is over

The task, the environment and the reward are in this one file:

    cispo train task.own.guess=examples/guessing_environment.py:GuessTask task.mixture='{guess: 1.0}' \\
        episode.environment=examples/guessing_environment.py:make episode.max_turns=4 \\
        rewards.custom=examples/guessing_environment.py:reward rewards.verifiers.guess=custom

The cold start guesses at random. Four guesses of ten digits are enough for whoever halves what is left.
"""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import Future

from rollout.environment import Observation, Turn, answered
from rollout.problem import Demonstration, Problem

HIGHER, LOWER = "higher", "lower"


class GuessTask:
    """Prompts whose number says nothing about the digit behind it."""

    name = "guess"

    def problem(self, rng: random.Random) -> Problem:
        """One prompt; its digit is a hash of its text, so that a text has one answer and nobody can learn it."""
        text = f"guess:{rng.randrange(self.num_prompts())}="
        return Problem(text, str(hashlib.sha256(text.encode()).digest()[0] % 10))

    def demonstration(self, rng: random.Random) -> Demonstration:
        """One to four guesses at random, with the answers that they get."""
        problem = self.problem(rng)
        guesses = [str(digit) for digit in rng.sample(range(10), rng.randint(1, 4))]
        if problem.reference in guesses:
            guesses = guesses[: guesses.index(problem.reference) + 1]
        answers = [told(guess, problem.reference) for guess in guesses[:-1]]
        return Demonstration(problem.text, guesses[0], tuple(zip(answers, guesses[1:], strict=True)))

    def num_prompts(self) -> int:
        """Numbers of up to three digits."""
        return 1000

    def words(self) -> tuple[str, ...]:
        """The task's mark."""
        return ("guess:",)


class Guessing:
    """Tells higher or lower. It remembers nothing: the digit is in the prompt's reference."""

    words = (HIGHER, LOWER)
    stop_words = ()  # a guess ends with the end of the text

    def observe(self, turn: Turn) -> Future[Observation | None]:
        """What one guess is told; whatever is no digit is a guess, too, and a bad one."""
        guess = turn.text.strip()
        if guess == turn.prompt.reference:
            return answered(Observation(done=True, verdict="right"))
        if not (len(guess) == 1 and guess.isascii() and guess.isdigit()):
            return answered(Observation(done=True, verdict="no digit", is_error=True, note=f"guessed {guess[:20]!r}"))
        return answered(told(guess, turn.prompt.reference))

    def close(self) -> None:
        """Nothing was opened."""


def told(guess: str, digit: str) -> Observation:
    """The answer to a wrong guess; it is the environment's own word, so it may be a token of its own."""
    return Observation(before=HIGHER if int(guess) < int(digit) else LOWER, verdict="wrong")


def make(open_pool: object) -> Guessing:
    """What `episode.environment` names; `open_pool()` would give the sandbox of the worker."""
    return Guessing()


def reward(prompt: str, text: str, reference: str, **info: object) -> float:
    """1 if the last guess was right. `text` is what the policy wrote in all turns, without the answers."""
    return float(text.strip()[-1:] == reference)
