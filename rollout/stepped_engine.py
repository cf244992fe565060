"""What engines have in common whose sampling happens elsewhere: who is under way, and with which tokens so far.

Such an engine keeps tokens and no state of a model, so to save a request is to write its tokens down, and to go on is
to read prompt + tokens anew (rollout/continuation.py). A subclass says how sampling begins, goes on and is given up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cispo.errors import CispoError, InvalidRequest
from cispo.protocols import ModelState
from cispo.types import StopReason
from rollout.continuation import Growing
from rollout.engine_protocol import Completion, Request, TokenIds
from rollout.sampling import Sampling
from rollout.snapshot import PausedRequest


@dataclass(eq=False)
class UnderWay:
    """A request with those of its members that have not ended."""

    request: Request
    members: dict[int, Growing]


class SteppedEngine(ABC):
    """The methods of `Engine`, but for `load_weights`.

    Args:
        vocab_size: ids that a request may hold.
        max_length: tokens of the longest sequence.
        version: of the weights that sample first.
    """

    def __init__(self, vocab_size: int, max_length: int, version: int) -> None:
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._version = version
        self._requests: dict[str, UnderWay] = {}
        self._ended: list[Completion] = []
        self._num_generate_calls = 0

    @property
    def version(self) -> int:
        """Version of the weights that sample now."""
        return self._version

    @property
    def has_work(self) -> bool:
        """Some sequence is running or waiting, or has ended and was not yet returned by `step`."""
        return bool(self._requests or self._ended)

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests in order. Raises InvalidRequest, and then queues none of them.

        Raises ConfigError for a way of sampling that this engine does not have.
        """
        accepted: dict[str, Request] = {}
        for request in requests:
            self._check(request, {*self._requests, *accepted})
            accepted[request.id] = request
        for request in accepted.values():
            self._queue(request, {member: Growing(request, member) for member in range(request.num_samples)})

    def step(self) -> list[Completion]:
        """Go on for a moment; returns the sequences that ended."""
        self._gather()
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Forget these requests, running or waiting; unknown ids are ignored."""
        gone = set(request_ids)
        self._give_up([under_way for id in gone if (under_way := self._requests.pop(id, None)) is not None])
        self._ended = [completion for completion in self._ended if completion.request_id not in gone]

    def generate(
        self, prompts: Sequence[TokenIds], sampling: Sampling, seed: int = 0, num_samples: int = 1
    ) -> list[list[Completion]]:
        """Sample every prompt `num_samples` times and wait; result [prompt][member]. Prompt i has seed `seed + i`.

        Requests submitted before go on meanwhile; the next `step` returns those that ended.
        """
        self._num_generate_calls += 1
        ids = [f"generate/{self._num_generate_calls}/{i}" for i in range(len(prompts))]
        self.submit(
            Request(id, prompt if isinstance(prompt, np.ndarray) else tuple(prompt), num_samples, seed + i, sampling)
            for i, (id, prompt) in enumerate(zip(ids, prompts, strict=True))
        )
        found: dict[str, list[Completion]] = {id: [] for id in ids}
        others: list[Completion] = []
        while any(len(members) < num_samples for members in found.values()):
            for completion in self.step():
                found.get(completion.request_id, others).append(completion)
        self._ended = others + self._ended
        return [sorted(members, key=lambda completion: completion.member) for members in found.values()]

    def stream(self, request: Request) -> Iterator[int]:
        """The new token ids of a request with one sample, as they come. Closing the iterator early cancels it.

        Raises InvalidRequest as `submit` does, and CispoError when the request fails.
        """
        if request.num_samples != 1:
            raise InvalidRequest(f"A streamed request has one sample, got num_samples={request.num_samples}.")
        self.submit([request])
        num_sent = 0
        try:
            while (under_way := self._requests.get(request.id)) is not None:
                token_ids = under_way.members[0].token_ids[num_sent:]
                yield from token_ids
                num_sent += len(token_ids)
                self._gather()
            ended = next(completion for completion in self._ended if completion.request_id == request.id)
            yield from ended.token_ids[num_sent:].tolist()
            if ended.failed:
                raise CispoError(f"Request {request.id!r} could not go on: {ended.failed}.")
        finally:
            self.cancel([request.id])

    def snapshot(self, request_id: str) -> ModelState:
        """All that `resume` needs, here or in another such engine, to go on with a request: its tokens so far.

        The request goes on here unless it is cancelled. Raises InvalidRequest for a request that is not under way.
        """
        if request_id not in self._requests:
            raise InvalidRequest(f"Only a request under way can be saved, and {request_id!r} is not.")
        under_way = self._requests[request_id]
        fresh = [member for member, growing in under_way.members.items() if not growing.token_ids]
        begun = {member: growing.paused() for member, growing in under_way.members.items() if growing.token_ids}
        return PausedRequest(under_way.request, fresh, begun).to_state()

    def resume(self, state: ModelState) -> None:
        """Queue what is left of a request; a state of HybridEngine does too, without its model's part."""
        paused = PausedRequest.from_state(state)
        self._check(paused.request, self._requests)
        members = {member: Growing(paused.request, member) for member in sorted([*paused.fresh, *paused.members])}
        for member, sequence in paused.members.items():
            members[member].take(sequence)
        self._queue(paused.request, members)

    @abstractmethod
    def _refuse(self, sampling: Sampling) -> None:
        """Raise ConfigError for a way of sampling that this engine does not have."""

    @abstractmethod
    def _begin(self, under_way: UnderWay) -> None:
        """Begin to sample its members, or to go on with them."""

    @abstractmethod
    def _gather(self) -> None:
        """Go on for a moment: add new tokens to their sequences, and `_end` those that have ended."""

    @abstractmethod
    def _give_up(self, gone: Sequence[UnderWay]) -> None:
        """Stop sampling what was cancelled."""

    def _check(self, request: Request, under_way: Iterable[str]) -> None:
        faults = request.faults(self._vocab_size, self._max_length)
        if request.id in set(under_way):
            faults.append("its id must differ from those of the requests under way")
        if faults:
            raise InvalidRequest(f"Request {request.id!r} cannot be sampled: {'; '.join(faults)}.")
        self._refuse(request.sampling)

    def _queue(self, request: Request, members: dict[int, Growing]) -> None:
        self._requests[request.id] = UnderWay(request, members)
        self._begin(self._requests[request.id])

    def _is_open(self, growing: Growing) -> bool:
        """It has not ended, and its request was neither cancelled nor made anew under the same id."""
        under_way = self._requests.get(growing.request.id)
        return under_way is not None and under_way.members.get(growing.member) is growing

    def _end(self, growing: Growing, reason: StopReason, failed: str = "") -> None:
        self._ended.append(growing.completion(reason, failed))
        members = self._requests[growing.request.id].members
        del members[growing.member]
        if not members:
            del self._requests[growing.request.id]
