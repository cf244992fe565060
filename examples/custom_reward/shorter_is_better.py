"""A reward of one's own: right answers count, and of two right answers the shorter one counts more.

    cispo train task=chain rewards.custom=examples/custom_reward/shorter_is_better.py:reward

The function is called once for each answer, in the workers and in several threads at once, so it keeps no state. A
number that it returns is one part of the reward; a dictionary gives several, each logged as reward/<name>/mean and
weighed by `rewards.weights` (docs/rewards.md). What the task's own verifier found is in `info`.
"""

from __future__ import annotations

FREE_TOKENS = 4
"""An answer of so many tokens costs nothing."""


def reward(prompt: str, text: str, reference: str, *, correct: bool, num_actions: int, **info: object) -> float:
    """0 for a wrong answer; for a right one 0.5, falling to 0.25 as it grows longer."""
    if not correct:
        return 0.0
    return 0.25 + 0.25 * min(1.0, FREE_TOKENS / max(num_actions, 1))
