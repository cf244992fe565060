"""Chance that survives restarts: random numbers and the held-out split as pure functions of what they are for.

A stream keeps no generator. Its k-th draw comes from the hash of (seed, name, k), so a cursor is a count, and going
on from it costs nothing. Python's own `hash` differs from process to process, hence SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass


def stable_rng(*parts: str | int) -> random.Random:
    """A generator that depends on `parts` alone, on every machine and in every process."""
    return random.Random(int.from_bytes(_digest(parts), "big"))


def stable_uniform(*parts: str | int) -> float:
    """A number in [0, 1) that depends on `parts` alone; 53 bits, so that it never rounds up to 1."""
    return (int.from_bytes(_digest(parts)[:8], "big") >> 11) / 2**53


@dataclass(frozen=True)
class Split:
    """Which prompts only evaluation sees: a share `eval_fraction` of all texts, others for another `seed`."""

    eval_fraction: float
    seed: int = 0

    def holds_out(self, text: str) -> bool:
        """True if the prompt `text` belongs to evaluation.

        The text alone decides, so the same prompt is on the same side wherever, and however often, it is drawn.
        """
        return self.place(text) < self.eval_fraction

    def place(self, text: str) -> float:
        """Where the prompt stands in [0, 1); those below `eval_fraction` are held out."""
        return stable_uniform("split", self.seed, text)


def _digest(parts: tuple[str | int, ...]) -> bytes:
    # JSON tells ("a", "bc") from ("ab", "c") and "1" from 1; its ASCII form takes any string.
    return hashlib.sha256(json.dumps(parts).encode()).digest()
