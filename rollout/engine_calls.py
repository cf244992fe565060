"""What every engine offers beside `submit` and `step`, made of these: sampling at once, and token by token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from cispo.errors import CispoError, InvalidRequest
from cispo.types import Ints
from rollout.engine_protocol import Completion, Request, TokenIds
from rollout.sampling import Sampling


class EngineCalls(ABC):
    """Base of an engine, which says how requests are queued, go on, and are given up."""

    def __init__(self) -> None:
        self._ended: list[Completion] = []  # and not returned by `step` yet
        self._num_generate_calls = 0

    @abstractmethod
    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests in order. Raises InvalidRequest, and then queues none of them."""

    @abstractmethod
    def is_under_way(self, request_id: str) -> bool:
        """Some member of the request has not ended."""

    @abstractmethod
    def _go_on(self) -> None:
        """Sample for a moment, and add what ends to `_ended`."""

    @abstractmethod
    def _give_up(self, request_ids: set[str]) -> None:
        """Forget requests under way; unknown ids are ignored."""

    @abstractmethod
    def _tokens_since(self, request_id: str, first: int) -> Ints:
        """New token ids, from number `first` on, of a request under way with one sample; empty while it waits."""

    def step(self) -> list[Completion]:
        """Sample for a moment: one token for every running sequence, where the engine counts in tokens.

        Returns the sequences that ended. One that cannot go on, e.g. because its logits are not finite, ends with
        `failed` set; the others do not notice.
        """
        self._go_on()
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Forget these requests, running or waiting; unknown ids are ignored."""
        gone = set(request_ids)
        self._give_up(gone)
        self._ended = [completion for completion in self._ended if completion.request_id not in gone]

    def generate(
        self, prompts: Sequence[TokenIds], sampling: Sampling, seed: int = 0, num_samples: int = 1
    ) -> list[list[Completion]]:
        """Sample every prompt `num_samples` times and wait; `result[prompt][member]`. Prompt i has seed `seed + i`.

        Requests submitted before go on meanwhile; the next `step` returns those that ended.
        """
        self._num_generate_calls += 1
        ids = [f"generate/{self._num_generate_calls}/{i}" for i in range(len(prompts))]
        self.submit(
            Request(id, prompt if isinstance(prompt, np.ndarray) else tuple(prompt), num_samples, seed + i, sampling)
            for i, (id, prompt) in enumerate(zip(ids, prompts, strict=True))
        )
        mine: dict[str, list[Completion]] = {id: [] for id in ids}
        others: list[Completion] = []
        while any(len(members) < num_samples for members in mine.values()):
            for completion in self.step():
                mine.get(completion.request_id, others).append(completion)
        self._ended = others + self._ended
        return [sorted(members, key=lambda completion: completion.member) for members in mine.values()]

    def stream(self, request: Request) -> Iterator[int]:
        """The new token ids of a request with one sample, each as soon as it is there.

        Requests submitted before go on meanwhile; the next `step` returns those that ended. Closing the iterator
        early cancels the request. Raises InvalidRequest as `submit` does, and CispoError when the request fails.
        """
        if request.num_samples != 1:
            raise InvalidRequest(f"A streamed request has one sample, got num_samples={request.num_samples}.")
        self.submit([request])
        with closing(self.follow(request.id)) as steps:
            for token_ids in steps:
                yield from token_ids

    def follow(self, request_id: str) -> Generator[list[int], None, None]:
        """After each step what is new of a request under way with one sample: nothing while its prompt is read.

        Tokens that it had before come with the first. Otherwise as `stream`.
        """
        num_sent = 0
        try:
            while (ended := self._go_on_to(request_id)) is None:
                token_ids = self._tokens_since(request_id, num_sent).tolist()
                yield token_ids
                num_sent += len(token_ids)
            yield ended.token_ids[num_sent:].tolist()
            if ended.failed:
                raise CispoError(f"Request {request_id!r} could not go on: {ended.failed}.")
        finally:
            self.cancel([request_id])

    def _go_on_to(self, request_id: str) -> Completion | None:
        """One step; the request's completion if it has ended."""
        self._go_on()
        return next((completion for completion in self._ended if completion.request_id == request_id), None)
