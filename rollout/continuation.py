"""What is left of a sequence after some of its tokens, for engines that keep no state: prompt + tokens is the prompt.

The tokens, log-probabilities and versions that were recorded stay as they are, so what comes of it is a partial rollout
continued, not a new one. Its further tokens are drawn from other random numbers than if it had not been interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cispo.types import Ints, StopReason
from rollout.engine_protocol import Completion, Request
from rollout.sampling import Sampling
from rollout.seeding import stable_rng
from rollout.snapshot import PausedSequence
from rollout.stopping import RuleState, initial_state


@dataclass
class Growing:
    """One member of a request and what it was given so far.

    Attributes:
        token_ids, logp, version: of its new tokens; version is -1 where forced.
        text: what it is so far, at servers that give nothing else.
    """

    request: Request
    member: int
    token_ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    text: str = ""

    @property
    def prompt(self) -> Ints:
        """What a server reads to go on with it: int64."""
        return np.concatenate([np.asarray(self.request.token_ids), self.token_ids]).astype(np.int64)

    @property
    def seed(self) -> int:
        """Of its further tokens: another one after each interruption, or the same chances would come twice."""
        request = self.request
        return stable_rng("continue", request.seed, self.member, len(self.token_ids)).getrandbits(63)

    @property
    def reason(self) -> StopReason | None:
        """Why it has ended, if it can be seen from the tokens that it has."""
        sampling = self.request.sampling
        if self.token_ids and self.token_ids[-1] in sampling.stop_token_ids:
            return StopReason.STOP
        return StopReason.LENGTH if len(self.token_ids) >= sampling.max_new_tokens else None

    @property
    def rules(self) -> RuleState:
        """Where the stop rules stand, counted anew from the tokens."""
        return replayed(self.request, self.token_ids, self.logp, self.version)

    @property
    def sampling(self) -> Sampling:
        """How the rest is sampled: what was used up of limits and budgets is gone.

        A budget that is spent exactly leaves one more token, because 0 would mean no limit. The run of confident tokens
        (the repetition rule) begins again.
        """
        sampling, rules = self.request.sampling, self.rules
        left = replace(sampling, max_new_tokens=sampling.max_new_tokens - rules.num_new)
        if sampling.thinking_budget:
            left = replace(left, thinking_budget=max(1, sampling.thinking_budget - rules.num_thought))
        return left

    def paused(self) -> PausedSequence:
        """What a snapshot keeps of it: no state of a model."""
        token_ids, logp, version = self._arrays()
        return PausedSequence({}, self.rules, token_ids, logp, version)

    def take(self, paused: PausedSequence) -> None:
        """Go on from what a snapshot kept."""
        self.token_ids, self.logp, self.version = (
            paused.token_ids.tolist(),
            paused.logp.tolist(),
            paused.version.tolist(),
        )

    def completion(self, reason: StopReason, failed: str = "") -> Completion:
        """What it is at its end."""
        token_ids, logp, version = self._arrays()
        return Completion(self.request.id, self.member, token_ids, logp, version, version >= 0, reason, failed)

    def _arrays(self) -> tuple[Ints, np.ndarray, Ints]:
        return (
            np.array(self.token_ids, dtype=np.int64),
            np.array(self.logp, dtype=np.float32),
            np.array(self.version, dtype=np.int64),
        )


def replayed(request: Request, token_ids: Sequence[int], logp: Sequence[float], version: Sequence[int]) -> RuleState:
    """The rules' counters after these new tokens, as rollout/stopping.py would have them."""
    sampling = request.sampling
    state = initial_state(request.token_ids, sampling)
    is_thinking, num_thought, run = state.is_thinking, 0, 0
    confident = math.log(sampling.repetition_probability)
    for token, value, of in zip(token_ids, logp, version, strict=True):
        run = run + 1 if value > confident and of >= 0 and sampling.repetition_tokens else 0
        if sampling.thinking_budget:
            closes = token == sampling.think_close_id
            num_thought += is_thinking and not closes
            is_thinking = (is_thinking or token == sampling.think_open_id) and not closes
    return RuleState(len(token_ids), run, num_thought, is_thinking)
