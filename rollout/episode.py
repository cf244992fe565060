"""An episode grows turn by turn into one trajectory: the streams of tokens, masks and log-probabilities to learn from.

What the policy wrote stays the ids that were sampled; an observation is tokenised once. Nothing is ever decoded and
encoded again, for another tokenisation of the same text has other log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cispo.types import Bools, Choices, Floats, Ints, ObservationSpan, Prompt, StopReason, Trajectory
from rollout.engine import Completion


@dataclass(frozen=True)
class EpisodeSoFar:
    """An episode between two turns, or between a turn and the answer to it: plain data, the streams as in Trajectory.

    Attributes:
        num_turns: turns that the policy took.
        num_new: tokens of these turns, forced ones included: what counts against sampling.max_new_tokens.
        memory: what the environment wanted to remember.
        experts_TLk: of an engine that records them, the experts of all tokens up to the end of the last turn.
    """

    token_ids_T: Ints
    action_mask_T: Bools
    behaviour_logp_T: Floats
    version_T: Ints
    observations: tuple[ObservationSpan, ...] = ()
    num_turns: int = 0
    num_new: int = 0
    memory: Any = None
    experts_TLk: Choices | None = None

    @classmethod
    def of(cls, prompt: Prompt) -> EpisodeSoFar:
        """Before the first turn."""
        nothing = cls(np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0, np.float32), np.empty(0, np.int64))
        return nothing._given(prompt.token_ids)

    def after_turn(self, completion: Completion) -> EpisodeSoFar:
        """With what the policy wrote.

        Tokens that the engine forced in (the closing of a spent thinking budget) are part of the text and of the
        context of what follows, but not actions: they carry no gradient.
        """
        actions_T = completion.action_mask.astype(bool)
        return replace(
            self._grown(
                np.asarray(completion.token_ids, dtype=np.int64),
                actions_T,
                np.where(actions_T, completion.logp, 0.0).astype(np.float32),
                np.where(actions_T, completion.version, -1).astype(np.int64),
            ),
            num_turns=self.num_turns + 1,
            num_new=self.num_new + len(completion.token_ids),
            experts_TLk=completion.experts_TLk,
        )

    def after_observation(self, token_ids: Sequence[int], span: ObservationSpan, memory: Any) -> EpisodeSoFar:
        """With what the environment answered: context, and no action. `span` gets its place."""
        start = len(self.token_ids_T)
        placed = replace(span, start=start, stop=start + len(token_ids))
        return replace(self._given(token_ids), observations=(*self.observations, placed), memory=memory)

    @property
    def waits_for_an_answer(self) -> bool:
        """The policy wrote last, and not the environment."""
        return self.num_turns > 0 and not (self.observations and self.observations[-1].stop == len(self.token_ids_T))

    def trajectory(self, stop_reason: StopReason) -> Trajectory:
        """The whole, as it ended."""
        return Trajectory(
            token_ids_T=self.token_ids_T,
            action_mask_T=self.action_mask_T,
            behaviour_logp_T=self.behaviour_logp_T,
            version_T=self.version_T,
            stop_reason=stop_reason,
            observations=self.observations,
            experts_TLk=self.experts_TLk,
        )

    def _given(self, token_ids: Sequence[int]) -> EpisodeSoFar:
        num = len(token_ids)
        return self._grown(
            np.asarray(token_ids, dtype=np.int64),
            np.zeros(num, dtype=np.bool_),
            np.zeros(num, dtype=np.float32),
            np.full(num, -1, dtype=np.int64),
        )

    def _grown(self, token_ids_T: Ints, actions_T: Bools, logp_T: Floats, version_T: Ints) -> EpisodeSoFar:
        return replace(
            self,
            token_ids_T=np.concatenate([self.token_ids_T, token_ids_T]),
            action_mask_T=np.concatenate([self.action_mask_T, actions_T]),
            behaviour_logp_T=np.concatenate([self.behaviour_logp_T, logp_T]),
            version_T=np.concatenate([self.version_T, version_T]),
        )


def single_turn(prompt: Prompt, completion: Completion) -> Trajectory:
    """The trajectory of an episode of one turn."""
    return EpisodeSoFar.of(prompt).after_turn(completion).trajectory(completion.stop_reason)


def response_text_ids(trajectory: Trajectory, prompt: Prompt) -> list[int]:
    """Ids of everything that the policy wrote: what the verifier reads, forced tokens included.

    Observations are left out, or an answer that a program printed would count as the policy's.
    """
    ids: list[int] = []
    start = len(prompt.token_ids)
    for span in trajectory.observations:
        ids += trajectory.token_ids_T[start : span.start].tolist()
        start = span.stop
    return ids + trajectory.token_ids_T[start:].tolist()
