"""An engine whose sampling happens at servers that speak the OpenAI API: `cispo serve`, vLLM, or another like them.

Token ids go in and out and are never made of text, because a text has many tokenisations and only one of them was
sampled. Each request is one streamed call in a thread of its own; all that the threads bring lands in one queue, and
only `step` and its kin, in the caller's thread, change what is known of a sequence. So nothing here has a lock.

A call that breaks is made again for the members that have not ended, each from prompt + tokens so far: recorded tokens,
log-probabilities and versions are kept. The same happens to sequences that vLLM aborts when it takes new weights.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cispo.errors import CispoError, ConfigError, InvalidRequest
from cispo.protocols import ModelState, WeightStream
from cispo.types import StopReason
from rollout.completion_wire import ABORTED, Piece, WireFault, completion_body, has_rules, read_pieces
from rollout.continuation import Growing
from rollout.engine_config import EngineConfig
from rollout.engine_protocol import Completion, Request, TokenIds
from rollout.receiver import WeightPackage, make_package
from rollout.retokenising import Retokeniser, TextTokenizer
from rollout.sampling import Sampling
from rollout.server_check import ServerFacts, facts_of
from rollout.server_client import Server, ServerFault, Stream
from rollout.server_token import read_token
from rollout.server_weights import FolderUpdate, send_package
from rollout.snapshot import PausedRequest

_STEP_SECONDS = 0.05
"""How long `step` waits for news: its caller has scores to look after."""
_LONGEST_BACKOFF = 30.0
_CUT_SECONDS = 2.0
"""How long a paused server's last tokens are waited for; what has not come by then is sampled again."""
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Site:
    """A server with what is known of it."""

    server: Server
    facts: ServerFacts
    num_calls: int = 0


@dataclass(eq=False)
class _Call:
    """One request to a server, for members of one request of ours, which are its choices in that order.

    Attributes:
        is_first: members without tokens, all with the request's own seed; else one that is continued.
        num_tries: how often in a row it came to nothing.
        not_before: time of the next try.
        last_site: where it came to nothing.
        version: of the weights when it began.
        was_aborted: the server cut it, to take new weights.
    """

    request: Request
    members: list[int]
    is_first: bool
    num_tries: int = 0
    not_before: float = 0.0
    site: _Site | None = None
    last_site: _Site | None = None
    stream: Stream = field(default_factory=Stream)
    version: int = 0
    was_aborted: bool = False


@dataclass(eq=False)
class _UnderWay:
    """A request with the members that have not ended."""

    request: Request
    members: dict[int, Growing]
    deadline: float


_News = tuple[_Call, list[Piece] | ServerFault | WireFault | None]
"""A call, and what came: pieces, a fault, or None when the answer ended as it should."""


class OpenAIEngine:
    """Samples at the servers of `config.server`; see `Engine` for the methods.

    Args:
        config: sizes and servers.
        vocab_size: ids that a request may hold.
        tokenizer: of the policy, for `retokenise` alone.

    Raises ConfigError, in one sentence, when a server does not answer, or cannot be learnt from: one that returns no
    token ids, or no log-probabilities.
    """

    def __init__(self, config: EngineConfig, vocab_size: int, tokenizer: TextTokenizer | None = None) -> None:
        self.config = config
        settings = self._settings = config.server
        token = read_token(settings.token_file)
        servers = [
            Server(url, token, connect_seconds=settings.connect_seconds, silence_seconds=settings.silence_seconds)
            for url in settings.urls
        ]
        self._sites = [_Site(server, facts_of(server, settings.model)) for server in servers]
        self._retokeniser = Retokeniser(tokenizer) if settings.retokenise and tokenizer else None
        for site in self._sites:
            self._check_server(site)
        self._vocab_size = vocab_size
        self._max_length = min([config.max_length, *(s.facts.max_length for s in self._sites if s.facts.max_length)])
        self._version = max(site.facts.version for site in self._sites)
        self._threads = ThreadPoolExecutor(settings.max_in_flight, thread_name_prefix="openai-engine")
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._requests: dict[str, _UnderWay] = {}
        self._waiting: deque[_Call] = deque()
        self._calls: set[_Call] = set()
        self._ended: list[Completion] = []
        self._num_generate_calls = 0
        self._is_paused = False  # no call begins
        self._wrote = ""  # the version of the weights that servers were given through a folder

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

        Raises ConfigError for a way of sampling whose log-probabilities the servers do not return.
        """
        accepted: dict[str, Request] = {}
        for request in requests:
            self._check(request, {*self._requests, *accepted})
            accepted[request.id] = request
        for request in accepted.values():
            self._queue(request, {member: Growing(request, member) for member in range(request.num_samples)})
        self._start_calls()

    def step(self) -> list[Completion]:
        """What ended since the last time; waits a moment for news if nothing did."""
        self._gather(_STEP_SECONDS)
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Forget these requests, at the servers too; unknown ids are ignored."""
        gone = set(request_ids)
        for id in gone:
            self._requests.pop(id, None)
        self._waiting = deque(call for call in self._waiting if call.request.id not in gone)
        self._ended = [completion for completion in self._ended if completion.request_id not in gone]
        for call in self._calls:
            if call.request.id in gone:
                call.stream.close()

    def generate(
        self, prompts: Sequence[TokenIds], sampling: Sampling, seed: int = 0, num_samples: int = 1
    ) -> list[list[Completion]]:
        """Sample every prompt `num_samples` times and wait; result [prompt][member]. Prompt i has seed `seed + i`."""
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
        """The new token ids of a request with one sample, as the server sends them. Closing it early cancels."""
        if request.num_samples != 1:
            raise InvalidRequest(f"A streamed request has one sample, got num_samples={request.num_samples}.")
        self.submit([request])
        num_sent = 0
        try:
            while (under_way := self._requests.get(request.id)) is not None:
                growing = under_way.members[0]
                yield from growing.token_ids[num_sent:]
                num_sent = len(growing.token_ids)
                self._gather(_STEP_SECONDS)
            ended = next(completion for completion in self._ended if completion.request_id == request.id)
            yield from ended.token_ids[num_sent:].tolist()
            if ended.failed:
                raise CispoError(f"Request {request.id!r} could not go on: {ended.failed}.")
        finally:
            self.cancel([request.id])

    def load_weights(self, weights: WeightStream, version: int) -> None:
        """Give every server the weights; sequences under way go on with them. Raises WeightSyncError.

        `cispo serve` takes them between two steps and says which version sampled each token. Any other server is taken
        for vLLM (rollout/server_weights.py): its sequences are cut, and go on as prompt + tokens so far.
        """
        package = make_package(weights, version)
        for site in self._sites:
            if site.facts.is_ours:
                send_package(site.server, package, self._settings.update_seconds)
        others = [site for site in self._sites if not site.facts.is_ours]
        if others:
            self._update_by_folder(others, package)
        self._version = version

    def _update_by_folder(self, sites: list[_Site], package: WeightPackage) -> None:
        update = FolderUpdate([site.server for site in sites], self._settings, package.version)
        update.write(package)
        self._is_paused = True
        try:
            with update.paused(self._wrote):
                self._cut(sites)
                update.reload()
                self._wrote = str(package.version)
        finally:
            self._is_paused = False

    def _cut(self, sites: list[_Site]) -> None:
        """Take in what paused servers have sent, and end the calls to them: what comes later is of other weights."""
        end = time.monotonic() + _CUT_SECONDS
        while any(call.site in sites for call in self._calls) and time.monotonic() < end:
            self._gather(_STEP_SECONDS)
        for call in [call for call in self._calls if call.site in sites]:
            call.was_aborted = True
            call.stream.close()
            self._take_in(call, None)

    def snapshot(self, request_id: str) -> ModelState:
        """All that `resume` needs, here or elsewhere, to go on with a request: the tokens that came so far.

        The request goes on here unless it is cancelled. Raises InvalidRequest for a request that is not under way.
        """
        self._gather(0.0)
        if request_id not in self._requests:
            raise InvalidRequest(f"Only a request under way can be saved, and {request_id!r} is not.")
        members = self._requests[request_id].members
        fresh = [member for member, growing in members.items() if not growing.token_ids]
        begun = {member: growing.paused() for member, growing in members.items() if growing.token_ids}
        return PausedRequest(self._requests[request_id].request, fresh, begun).to_state()

    def resume(self, state: ModelState) -> None:
        """Queue what is left of a request; a state of HybridEngine does too, without its model's part."""
        paused = PausedRequest.from_state(state)
        self._check(paused.request, self._requests)
        members = {member: Growing(paused.request, member) for member in sorted([*paused.fresh, *paused.members])}
        for member, sequence in paused.members.items():
            members[member].take(sequence)
        self._queue(paused.request, members)
        self._start_calls()

    def close(self) -> None:
        """Give up what is under way and end the threads."""
        self.cancel(list(self._requests))
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_server(self, site: _Site) -> None:
        if not site.facts.has_token_ids and self._retokeniser is None:
            raise ConfigError(
                f"{site.server.url} returns no token ids with log-probabilities (return_token_ids, logprobs), and a "
                f"policy learns from the tokens that were sampled, not from a tokenisation of their text: use "
                f"`cispo serve` or vLLM, or engine.server.retokenise=true to evaluate only."
            )
        if site.facts.has_token_ids and site.facts.is_of_sampling is None:
            log.warning(
                "%s: its most likely tokens are too close to tell whether it returns the log-probabilities of the "
                "distribution sampled from; it is taken to do so at temperature 1 only.",
                site.server.url,
            )

    def _check(self, request: Request, under_way: Iterable[str]) -> None:
        faults = request.faults(self._vocab_size, self._max_length)
        if request.id in set(under_way):
            faults.append("its id must differ from those of the requests under way")
        if faults:
            raise InvalidRequest(f"Request {request.id!r} cannot be sampled: {'; '.join(faults)}.")
        sampling = request.sampling
        for site in self._sites:
            if has_rules(sampling) and not site.facts.is_ours:
                raise ConfigError(
                    f"sampling.thinking_budget and sampling.repetition_tokens are rules of `cispo serve`, which "
                    f"{site.server.url} does not know; got {sampling.thinking_budget} and "
                    f"{sampling.repetition_tokens}: set both to 0."
                )
            is_plain = sampling.temperature in (0.0, 1.0) and not sampling.is_truncated
            if not site.facts.is_of_sampling and not is_plain and self._retokeniser is None:
                raise ConfigError(
                    f"{site.server.url} must return the log-probabilities of the distribution sampled from, because "
                    f"ratios divide by them, but it returns those before temperature and truncation, and this is "
                    f"temperature={sampling.temperature:g} top_p={sampling.top_p:g} top_k={sampling.top_k}: start vLLM "
                    f"with --logprobs-mode processed_logprobs, or sample at temperature 1 without truncation."
                )

    # --- calls --------------------------------------------------------------------------------------------------------

    def _queue(self, request: Request, members: dict[int, Growing]) -> None:
        deadline = time.monotonic() + self._settings.deadline_seconds
        self._requests[request.id] = _UnderWay(request, members, deadline)
        if len(members) == request.num_samples and not any(growing.token_ids for growing in members.values()):
            self._waiting.append(_Call(request, list(members), is_first=True))
        else:
            self._waiting.extend(_Call(request, [member], is_first=False) for member in members)

    def _start_calls(self) -> None:
        """Begin what may begin, in order."""
        now = time.monotonic()
        for _ in range(len(self._waiting)):
            if self._is_paused or len(self._calls) >= self._settings.max_in_flight:
                return
            call = self._waiting.popleft()
            if call.not_before > now:
                self._waiting.append(call)
                continue
            # After a fault another server comes first, if there is one.
            call.site = min(self._sites, key=lambda site: (site is call.last_site, site.num_calls))
            call.site.num_calls += 1
            call.version, call.stream = self._version, Stream()
            self._calls.add(call)
            self._threads.submit(self._run, call, call.site, self._body(call, call.site))

    def _body(self, call: _Call, site: _Site) -> dict[str, Any]:
        request, facts = call.request, site.facts
        if call.is_first:
            prompt, sampling, seed = request.token_ids, request.sampling, request.seed
        else:
            growing = self._requests[request.id].members[call.members[0]]
            prompt, sampling, seed = growing.prompt, growing.sampling, growing.seed
        body = completion_body(facts.model, prompt, sampling, seed, len(call.members), is_ours=facts.is_ours)
        if not facts.has_token_ids:
            assert self._retokeniser is not None
            body = self._retokeniser.body(body)
            for member in call.members:
                self._requests[request.id].members[member].text = ""
        return body | {"stream": True, "stream_interval": self._settings.stream_interval}

    def _run(self, call: _Call, site: _Site, body: dict[str, Any]) -> None:
        """In a thread: everything that comes of a call goes into the queue, its end last."""
        try:
            for event in site.server.events("/v1/completions", body, call.stream):
                self._news.put((call, read_pieces(event, len(call.members))))
        except (ServerFault, WireFault) as fault:
            self._news.put((call, fault))
        except Exception as error:  # a defect must not leave the call under way for ever
            log.exception("a call to %s failed", site.server.url)
            self._news.put((call, WireFault(f"{type(error).__name__}: {error}")))
        else:
            self._news.put((call, None))

    # --- what came ----------------------------------------------------------------------------------------------------

    def _gather(self, seconds: float) -> None:
        """Take in all news, after waiting for some if nothing has ended yet."""
        self._start_calls()
        seconds = 0.0 if self._ended or not self._requests else seconds
        try:
            self._take_in(*(self._news.get(timeout=seconds) if seconds else self._news.get_nowait()))
            while True:
                self._take_in(*self._news.get_nowait())
        except queue.Empty:
            pass
        self._end_the_late()
        self._start_calls()

    def _take_in(self, call: _Call, came: list[Piece] | ServerFault | WireFault | None) -> None:
        if call not in self._calls:
            return  # it was cut
        assert call.site is not None
        if isinstance(came, list):
            for piece in came:
                self._add(call, call.site, piece)
            return
        self._calls.discard(call)
        call.site.num_calls -= 1
        left = [member for member in call.members if self._is_open(call, member)]
        url = call.site.server.url
        if isinstance(came, WireFault):
            self._fail(call, left, f"{url} gave {came}")
        elif isinstance(came, ServerFault) and not came.may_pass:
            self._fail(call, left, str(came))
        elif left:
            self._try_again(call, left, came or ServerFault(f"{url} left choices without an end"))

    def _is_open(self, call: _Call, member: int) -> bool:
        """The member has not ended, and its request was neither cancelled nor made anew under the same id."""
        under_way = self._requests.get(call.request.id)
        return under_way is not None and under_way.request is call.request and member in under_way.members

    def _add(self, call: _Call, site: _Site, piece: Piece) -> None:
        """Tokens of one choice, and its end if that is it."""
        member = call.members[piece.index]
        if not self._is_open(call, member):
            return
        growing = self._requests[call.request.id].members[member]
        if not site.facts.has_token_ids:
            assert self._retokeniser is not None
            piece = self._retokeniser.piece(piece, growing, self._version)
        if len(piece.logp) != len(piece.token_ids):
            self._fail(call, [member], f"{site.server.url} returned token ids without log-probabilities")
            return
        if piece.token_ids:
            call.num_tries = 0
        growing.token_ids += piece.token_ids
        growing.logp += piece.logp
        growing.version += piece.version or [call.version] * len(piece.token_ids)
        if piece.reason is not None:
            self._end(growing, piece.reason)
        elif piece.finish == ABORTED:
            call.was_aborted = True
        elif piece.finish:
            self._fail(call, [member], f"{site.server.url} ended it: {piece.note or piece.finish}")

    def _try_again(self, call: _Call, left: Sequence[int], fault: ServerFault) -> None:
        """Make the call anew for the members that are left: as it was if nothing came, else each by itself."""
        num_tries = call.num_tries + (not fault.is_busy and not call.was_aborted)
        if num_tries >= self._settings.tries:
            self._fail(call, left, f"{num_tries} tries came to nothing, the last because {fault}")
            return
        wait = min(self._settings.backoff_seconds * 2 ** max(0, num_tries - 1), _LONGEST_BACKOFF)
        not_before = time.monotonic() + (0.0 if call.was_aborted else max(wait, fault.retry_seconds))
        members = self._requests[call.request.id].members
        is_untouched = len(left) == len(call.members) and not any(members[member].token_ids for member in left)
        if call.is_first and is_untouched:
            again = [_Call(call.request, list(left), is_first=True)]
        else:
            again = [_Call(call.request, [member], is_first=False) for member in self._unfinished(call, left)]
        for each in again:
            each.num_tries, each.not_before = num_tries, not_before
            each.last_site = None if call.was_aborted else call.site
        self._waiting.extend(again)

    def _unfinished(self, call: _Call, left: Sequence[int]) -> list[int]:
        """Of these members those that need more tokens; the others' end was lost on the way, and they end here."""
        members = self._requests[call.request.id].members
        for growing in [members[member] for member in left]:
            if growing.reason is not None:
                self._end(growing, growing.reason)
        return [member for member in left if member in members]

    def _end(self, growing: Growing, reason: StopReason, failed: str = "") -> None:
        self._ended.append(growing.completion(reason, failed))
        members = self._requests[growing.request.id].members
        del members[growing.member]
        if not members:
            del self._requests[growing.request.id]

    def _fail(self, call: _Call, members: Sequence[int], why: str) -> None:
        for member in members:
            self._end(self._requests[call.request.id].members[member], StopReason.LENGTH, why)

    def _end_the_late(self) -> None:
        now = time.monotonic()
        late = [under_way for under_way in self._requests.values() if under_way.deadline < now]
        for under_way in late:
            why = (
                f"it had not ended after engine.server.deadline_seconds={self._settings.deadline_seconds:g} "
                f"({', '.join(site.server.url for site in self._sites)})"
            )
            for growing in list(under_way.members.values()):
                self._end(growing, StopReason.LENGTH, why)
            self._waiting = deque(call for call in self._waiting if call.request is not under_way.request)
            for call in self._calls:
                if call.request is under_way.request:
                    call.stream.close()
