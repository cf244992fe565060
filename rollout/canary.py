"""A prompt on which learner and worker must agree before a version is sampled with.

Checksums show that the bytes arrived. They say nothing of a tensor that was gathered into the wrong place, of a layout
that the other side reads differently, or of something derived from old weights: there the bytes are right and the
policy is not. So the learner computes the log-probabilities of a few fixed tokens with every publish, and the worker
computes them again by the code that samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cispo.errors import WeightSyncError
from cispo.types import Floats, Ints

NUM_PROMPTS = 2
"""Rounding alone can send a token to another expert where two are tied, with a difference far above any tolerance.
That happens in one prompt; what is wrong with the weights shows in both."""


@dataclass(frozen=True)
class Canary:
    """What the learner computes with one version.

    Attributes:
        prompts: token ids.
        logp: float32 [T] of each prompt: of each token given those before it, NaN for the first.
        tolerance: how far a worker may be from that, in nats.
    """

    prompts: tuple[Ints, ...]
    logp: tuple[Floats, ...]
    tolerance: float


def canary_prompts(vocab_size: int, seed: int, num_tokens: int) -> tuple[Ints, ...]:
    """NUM_PROMPTS prompts of `num_tokens` tokens together, the same throughout a run; none for fewer than 4."""
    rng = np.random.default_rng([seed, vocab_size])
    length = num_tokens // NUM_PROMPTS
    if length < 2:
        return ()
    return tuple(rng.integers(0, vocab_size, length, dtype=np.int64) for _ in range(NUM_PROMPTS))


def check_canary(canary: Canary, logp_of: Callable[[Ints], Floats], version: int) -> float:
    """The largest difference in nats, of the prompt in which it is smaller.

    Args:
        canary: what the learner computed.
        logp_of: the worker's own computation.
        version: of the weights on both sides.

    Raises WeightSyncError if it is above the tolerance, or if anything is not finite.
    """
    differences = []
    for prompt, expected_T in zip(canary.prompts, canary.logp, strict=True):
        found_T = logp_of(prompt)
        if not (np.isfinite(found_T[1:]).all() and np.isfinite(expected_T[1:]).all()):
            whose = "the learner" if not np.isfinite(expected_T[1:]).all() else "the worker"
            raise WeightSyncError(
                f"the weights of version {version} arrived as they were sent, but {whose} computes log-probabilities "
                f"of the canary prompt with them that are not finite; resume from a checkpoint with a lower learner.lr."
            )
        differences.append(float(np.abs(found_T[1:] - expected_T[1:]).max()))
    if min(differences) > canary.tolerance:
        raise WeightSyncError(
            f"the weights of version {version} arrived as they were sent, but learner and worker do not compute the "
            f"same policy with them: log-probabilities of the canary prompts differ by up to {max(differences):.3g} "
            f"nats, and {canary.tolerance:g} is allowed. A tensor is in the wrong place, or something was derived from "
            f"other weights; docs/weight_sync.md says how to look for it, and sync.canary_tolerance is the bound."
        )
    return min(differences)
