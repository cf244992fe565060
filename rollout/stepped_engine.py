"""What engines have in common whose sampling happens elsewhere: who is under way, and with which tokens so far.

Such an engine keeps tokens and no state of a model, so to save a request is to write its tokens down, and to go on is
to read prompt + tokens anew (rollout/continuation.py). A subclass says how sampling begins, goes on and is given up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cispo.errors import InvalidRequest
from cispo.protocols import ModelState
from cispo.types import Ints, StopReason
from rollout.continuation import Growing
from rollout.engine_calls import EngineCalls
from rollout.engine_protocol import Request
from rollout.sampling import Sampling
from rollout.snapshot import PausedRequest


@dataclass(eq=False)
class UnderWay:
    """A request with those of its members that have not ended."""

    request: Request
    members: dict[int, Growing]


class SteppedEngine(EngineCalls):
    """The methods of `Engine`, but for `load_weights`.

    Args:
        vocab_size: ids that a request may hold.
        max_length: tokens of the longest sequence.
        version: of the weights that sample first.
    """

    def __init__(self, vocab_size: int, max_length: int, version: int) -> None:
        super().__init__()
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._version = version
        self._requests: dict[str, UnderWay] = {}

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

    def is_under_way(self, request_id: str) -> bool:
        """Some member of the request has not ended."""
        return request_id in self._requests

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
    def _go_on(self) -> None:
        """Add new tokens to their sequences, and `_end` those that have ended."""

    @abstractmethod
    def _drop(self, gone: Sequence[UnderWay]) -> None:
        """Stop sampling what was cancelled."""

    def _give_up(self, request_ids: set[str]) -> None:
        self._drop([gone for id in request_ids if (gone := self._requests.pop(id, None)) is not None])

    def _tokens_since(self, request_id: str, first: int) -> Ints:
        return np.asarray(self._requests[request_id].members[0].token_ids[first:], dtype=np.int64)

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
