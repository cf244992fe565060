"""When a sequence ends, and when a token is forced into it: the rules of N sequences as one vectorised update.

All state is one column per engine slot, kept on the device, so that no step waits for the host to decide.
The rules, in order of precedence: failed logits, a stop token, the repetition rule, the length limit.

Shape suffixes: S slots, N of them that got a token, K stop tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cispo.types import Ints, StopReason
from rollout.sampling import Sampling

RUNNING, STOP, REPETITION, LENGTH, FAILED = range(5)
"""What a step found for one sequence, as the device says it."""

REASONS = {STOP: StopReason.STOP, REPETITION: StopReason.REPETITION, LENGTH: StopReason.LENGTH}


@dataclass(frozen=True)
class RuleState:
    """Where one sequence stands in the rules; what a snapshot keeps and a restart gives back.

    Attributes:
        num_new: new tokens so far, forced ones included.
        confident_run: how many of the last tokens, without a gap, were above the repetition probability.
        num_thought: new tokens spent inside think blocks.
        is_thinking: the sequence is inside a think block.
    """

    num_new: int = 0
    confident_run: int = 0
    num_thought: int = 0
    is_thinking: bool = False


def initial_state(token_ids: Sequence[int] | Ints, sampling: Sampling) -> RuleState:
    """The state after a prompt: a chat template may leave the think block open; its own tokens are not charged."""
    if sampling.thinking_budget == 0:
        return RuleState()
    prompt_T = np.asarray(token_ids)
    marks = np.flatnonzero((prompt_T == sampling.think_open_id) | (prompt_T == sampling.think_close_id))
    return RuleState(is_thinking=bool(marks.size and prompt_T[marks[-1]] == sampling.think_open_id))


@dataclass(frozen=True)
class Ruling:
    """What the rules made of one step.

    Attributes:
        token_N: int64, the tokens that count: forced ones replace drawn ones.
        logp_N: float32, 0 for forced tokens.
        forced_N: bool.
        verdict_N: int64, one of RUNNING, STOP, REPETITION, LENGTH, FAILED.
    """

    token_N: Tensor
    logp_N: Tensor
    forced_N: Tensor
    verdict_N: Tensor


@dataclass
class StopRules:
    """The rules and counters of every slot.

    A rule that no request ever asked for costs nothing: `_uses_*` are switched on by the first that does.
    """

    num_slots: int
    device: torch.device | str
    num_new_S: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.num_new_S = self._column()
        self._limit_S = self._column()
        self._stop_SK = torch.full((self.num_slots, 1), -1, device=self.device)
        self._repetition_S = self._column()
        self._confident_logp_S = self._column(torch.float32)
        self._run_S = self._column()
        self._open_S = self._column()
        self._close_S = self._column()
        self._budget_S = self._column()
        self._thought_S = self._column()
        self._thinking_S = self._column(torch.bool)
        self._uses_repetition = False
        self._uses_thinking = False

    def _column(self, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(self.num_slots, dtype=dtype, device=self.device)

    def assign(self, slots_N: Tensor, samplings: Sequence[Sampling], states: Sequence[RuleState]) -> None:
        """Begin sequences in `slots_N`, or go on with them where `states` says they stood."""
        self._uses_repetition |= any(s.repetition_tokens > 0 for s in samplings)
        self._uses_thinking |= any(s.thinking_budget > 0 for s in samplings)
        self._assign_stop_tokens(slots_N, samplings)
        columns = [
            (self._limit_S, [s.max_new_tokens for s in samplings]),
            (self._repetition_S, [s.repetition_tokens for s in samplings]),
            (self._confident_logp_S, [math.log(s.repetition_probability) for s in samplings]),
            (self._open_S, [s.think_open_id for s in samplings]),
            (self._close_S, [s.think_close_id for s in samplings]),
            (self._budget_S, [s.thinking_budget for s in samplings]),
            (self.num_new_S, [s.num_new for s in states]),
            (self._run_S, [s.confident_run for s in states]),
            (self._thought_S, [s.num_thought for s in states]),
            (self._thinking_S, [s.is_thinking for s in states]),
        ]
        for column_S, values in columns:
            column_S[slots_N] = torch.tensor(values, dtype=column_S.dtype, device=self.device)

    def _assign_stop_tokens(self, slots_N: Tensor, samplings: Sequence[Sampling]) -> None:
        """Stop tokens padded with -1, which no token is; the table widens for a request with more of them."""
        missing = max(len(s.stop_token_ids) for s in samplings) - self._stop_SK.shape[1]
        if missing > 0:
            self._stop_SK = torch.nn.functional.pad(self._stop_SK, (0, missing), value=-1)
        width = self._stop_SK.shape[1]
        rows = [s.stop_token_ids + (-1,) * (width - len(s.stop_token_ids)) for s in samplings]
        self._stop_SK[slots_N] = torch.tensor(rows, device=self.device)

    def state(self, slot: int) -> RuleState:
        """Where the sequence in `slot` stands."""
        return RuleState(
            num_new=int(self.num_new_S[slot]),
            confident_run=int(self._run_S[slot]),
            num_thought=int(self._thought_S[slot]),
            is_thinking=bool(self._thinking_S[slot]),
        )

    def apply(self, slots_N: Tensor, token_N: Tensor, logp_N: Tensor) -> Ruling:
        """Count the drawn tokens in, force the closing token where the thinking budget is spent, and judge.

        Args:
            slots_N: int64, distinct.
            token_N, logp_N: what `Drawing.draw` gave for these slots; a NaN logp marks logits that failed.
        """
        failed_N = ~logp_N.isfinite()
        forced_N = torch.zeros_like(failed_N)
        if self._uses_thinking:
            forced_N = self._think(slots_N, token_N)
            token_N = torch.where(forced_N, self._close_S[slots_N], token_N)
            logp_N = logp_N.masked_fill(forced_N, 0)
        num_new_N = self.num_new_S[slots_N] + 1
        self.num_new_S[slots_N] = num_new_N
        verdict_N = torch.where(num_new_N >= self._limit_S[slots_N], LENGTH, RUNNING)
        if self._uses_repetition:
            verdict_N.masked_fill_(self._repeats(slots_N, logp_N, forced_N), REPETITION)
        verdict_N.masked_fill_((token_N[:, None] == self._stop_SK[slots_N]).any(dim=1), STOP)
        verdict_N.masked_fill_(failed_N, FAILED)
        return Ruling(token_N, logp_N, forced_N, verdict_N)

    def _repeats(self, slots_N: Tensor, logp_N: Tensor, forced_N: Tensor) -> Tensor:
        """Whether the run of confident tokens is now long enough. Source: the MiniMax-M1 report's repetition stop."""
        confident_N = (logp_N > self._confident_logp_S[slots_N]) & ~forced_N
        run_N = (self._run_S[slots_N] + 1) * confident_N
        self._run_S[slots_N] = run_N
        limit_N = self._repetition_S[slots_N]
        return (limit_N > 0) & (run_N >= limit_N)

    def _think(self, slots_N: Tensor, token_N: Tensor) -> Tensor:
        """Where the budget is spent, so that the closing token must come now; and count what is thought.

        The budget is for all think blocks together, so that a block opened again is closed at once.
        """
        budget_N, thinking_N, thought_N = self._budget_S[slots_N], self._thinking_S[slots_N], self._thought_S[slots_N]
        forced_N = thinking_N & (budget_N > 0) & (thought_N >= budget_N)
        closes_N = forced_N | (token_N == self._close_S[slots_N])
        self._thought_S[slots_N] = thought_N + (thinking_N & ~closes_N)
        self._thinking_S[slots_N] = (thinking_N | (token_N == self._open_S[slots_N])) & ~closes_N
        return forced_N
