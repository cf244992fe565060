"""One sampled completion -> one trajectory: the streams of tokens, masks and log-probabilities that learning needs."""

from __future__ import annotations

import numpy as np

from cispo.types import Prompt, Trajectory
from rollout.engine import Completion


def single_turn(prompt: Prompt, completion: Completion) -> Trajectory:
    """The trajectory of an episode of one turn.

    Tokens that the engine forced in (the closing of a spent thinking budget) are part of the text and of the context of
    what follows, but not actions: they carry no gradient.
    """
    num_prompt = len(prompt.token_ids)
    actions_T = completion.action_mask.astype(bool)

    def after_prompt(stream: np.ndarray, fill: float, dtype: type[np.generic]) -> np.ndarray:
        return np.concatenate([np.full(num_prompt, fill), stream]).astype(dtype)

    return Trajectory(
        token_ids_T=np.concatenate([np.asarray(prompt.token_ids), completion.token_ids]).astype(np.int64),
        action_mask_T=after_prompt(actions_T, 0, np.bool_),
        behaviour_logp_T=after_prompt(np.where(actions_T, completion.logp, 0.0), 0.0, np.float32),
        version_T=after_prompt(np.where(actions_T, completion.version, -1), -1, np.int64),
        stop_reason=completion.stop_reason,
        experts_TLk=completion.experts_TLk,
    )


def response_text_ids(trajectory: Trajectory, prompt: Prompt) -> list[int]:
    """Ids of everything after the prompt: what the verifier reads, forced tokens included."""
    return trajectory.token_ids_T[len(prompt.token_ids) :].tolist()
