"""What the rollout service asks of whatever samples: a request in, completions out, and the methods between them.

It stands apart from `HybridEngine`, so that another engine is written against this file alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from cispo.protocols import ModelState, WeightStream
from cispo.types import Bools, Choices, Floats, Ints, StopReason
from rollout.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

TokenIds = Sequence[int] | Ints


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt to be sampled `num_samples` times.

    Attributes:
        id: unique among the requests under way, e.g. "chain/train/000417".
        token_ids: the prompt: a tuple or, for a long one, an integer array that nobody changes, because a tuple of
            a million ids takes up to 40 MB and a second to copy, and an array 8 MB.
        num_samples: members of the group.
        seed: with the member's number it fixes the random numbers, whatever else is in the batch.
        sampling: how to sample and when to stop.
        keep_state_after: stop tokens after which the completion carries the model's state, because somebody will go
            on from there.
        state: such a state, after the first part of `token_ids`; only the rest is read then. An engine that cannot
            use it reads everything.
    """

    id: str
    token_ids: TokenIds
    num_samples: int = 1
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    keep_state_after: tuple[int, ...] = ()
    state: Mapping[str, Tensor] | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Request)
            and (self.id, self.num_samples, self.seed, self.sampling, self.keep_state_after)
            == (other.id, other.num_samples, other.seed, other.sampling, other.keep_state_after)
            and np.array_equal(self.token_ids, other.token_ids)
        )

    def __hash__(self) -> int:
        return hash(self.id)

    def faults(self, vocab_size: int, max_length: int) -> list[str]:
        """Everything for which an engine of that vocabulary and length refuses the request, one sentence each."""
        sampling, prompt = self.sampling, np.asarray(self.token_ids)
        faults = sampling.faults(vocab_size)
        if prompt.size == 0:
            faults.append("the prompt must hold at least one token")
        elif prompt.ndim != 1 or prompt.dtype.kind not in "iu":
            faults.append(f"the prompt must be a flat sequence of integers, got {prompt.dtype} {prompt.shape}")
        elif not 0 <= prompt.min() <= prompt.max() < vocab_size:
            faults.append(f"prompt ids must lie in [0, {vocab_size}), got {prompt.min()} to {prompt.max()}")
        if prompt.size + sampling.max_new_tokens > max_length:
            faults.append(
                f"prompt ({prompt.size}) plus max_new_tokens ({sampling.max_new_tokens}) must not exceed the engine's "
                f"max_length {max_length}"
            )
        if self.num_samples < 1:
            faults.append(f"num_samples must be at least 1, got {self.num_samples}")
        if self.state is not None and not 0 < int(self.state["length"]) < prompt.size:
            faults.append(
                f"a state must be that after a part of the {prompt.size} prompt tokens, got {int(self.state['length'])}"
            )
        return faults


@dataclass(frozen=True)
class Completion:
    """The new tokens of one member of a request; all arrays but the last have one entry per new token.

    Attributes:
        request_id, member: whose it is; member counts from 0.
        token_ids: int64, the stop token included.
        logp: float32, log-probability under the distribution sampled from (see `Drawing.draw`); 0 where forced.
        version: int64, version of the weights that sampled the token; -1 where forced.
        action_mask: False where the engine forced the token in.
        stop_reason: why it ended; LENGTH when it failed, for it was cut short.
        failed: why the sequence could not go on, e.g. NaN logits, or "". What came before is kept, but do not learn
            from it.
        state: the model's state after prompt and new tokens but for the last one, where the request asked to keep it
            and the engine can; None otherwise.
        experts_TLk: of an engine that records them, the experts that each token of prompt and answer visited (see
            `cispo.types.Choices`).
    """

    request_id: str
    member: int
    token_ids: Ints
    logp: Floats
    version: Ints
    action_mask: Bools
    stop_reason: StopReason
    failed: str = ""
    state: Mapping[str, Tensor] | None = None
    experts_TLk: Choices | None = None


class Engine(Protocol):
    """What the rollout service asks of whatever samples. All calls come from one thread."""

    @property
    def version(self) -> int:
        """Version of the weights that sample now."""

    @property
    def has_work(self) -> bool:
        """Some sequence is running or waiting."""

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests in order. Raises InvalidRequest, and then queues none of them."""

    def step(self) -> list[Completion]:
        """Give every running sequence a token; returns the sequences that ended."""

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Forget these requests, running or waiting; unknown ids are ignored."""

    def generate(
        self, prompts: Sequence[TokenIds], sampling: Sampling, seed: int = 0, num_samples: int = 1
    ) -> list[list[Completion]]:
        """Sample every prompt `num_samples` times and wait; `result[prompt][member]`. Prompt i has seed `seed + i`."""

    def stream(self, request: Request) -> Iterator[int]:
        """The new token ids of a request with one sample, each as soon as it is there."""

    def load_weights(self, weights: WeightStream, version: int) -> None:
        """Replace the weights between two steps; sequences under way go on with the new ones."""

    def snapshot(self, request_id: str) -> ModelState:
        """All that `resume` needs to go on with a request; the request itself goes on here unless cancelled."""

    def resume(self, state: ModelState) -> None:
        """Queue a request exactly where `snapshot` saw it."""


@runtime_checkable
class ComputesLogp(Protocol):
    """An engine that can also be asked what it thinks of a given text: so learner and worker can be compared."""

    def logp(self, token_ids: Ints) -> Floats:
        """float32 [T]: log-probability at temperature 1 of each token given those before it, NaN for the first.

        By the code that samples, and without touching any request. Optional: an engine that cannot say so lacks the
        method, and a weight sync then cannot compare what it computes with the learner.
        """
