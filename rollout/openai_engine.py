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
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cispo.errors import ConfigError, WorkerDied
from cispo.protocols import WeightStream
from cispo.types import StopReason
from rollout.completion_wire import ABORTED, Piece, WireFault, completion_body, has_rules, read_pieces
from rollout.continuation import Growing
from rollout.engine_config import EngineConfig
from rollout.retokenising import Retokeniser, TextTokenizer
from rollout.sampling import Sampling
from rollout.server_check import ServerFacts, check_facts, facts_of
from rollout.server_client import Server, ServerFault, Stream
from rollout.server_token import read_token
from rollout.server_weights import FolderUpdate, send_package
from rollout.stepped_engine import SteppedEngine, UnderWay
from rollout.weight_package import WeightPackage, make_package

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
    """One request to a server, whose choices are these members, in that order.

    Attributes:
        is_first: all members of a request, without tokens, by its own seed; else one that is continued.
        deadline: when its members must have ended.
        num_tries: how often in a row it came to nothing.
        not_before: time of the next try.
        last_site: where it came to nothing.
        site, stream, version: where it is now, by which connection, and the version of the weights when it began.
        was_aborted: the server cut it, to take new weights.
    """

    members: list[Growing]
    is_first: bool
    deadline: float
    num_tries: int = 0
    not_before: float = 0.0
    last_site: _Site | None = None
    site: _Site | None = None
    stream: Stream = field(default_factory=Stream)
    version: int = 0
    was_aborted: bool = False


_News = tuple[_Call, list[Piece] | ServerFault | WireFault | None]
"""A call, and what came: pieces, a fault, or None when the answer ended as it should."""


class OpenAIEngine(SteppedEngine):
    """Samples at the servers of `config.server`; see `Engine` for the methods.

    Args:
        config: sizes and servers.
        vocab_size: ids that a request may hold.
        tokenizer: of the policy, for `retokenise` alone.

    Raises ConfigError, in one sentence, when a server does not answer, or cannot be learnt from: one that returns no
    token ids, or no log-probabilities.
    """

    def __init__(self, config: EngineConfig, vocab_size: int, tokenizer: TextTokenizer | None = None) -> None:
        settings = self._settings = config.server
        token = read_token(settings.token_file)
        patience = {"connect_seconds": settings.connect_seconds, "silence_seconds": settings.silence_seconds}
        servers = [Server(url, token, **patience) for url in settings.urls]
        self._sites = [_Site(server, facts_of(server, settings.model)) for server in servers]
        self._retokeniser = Retokeniser(tokenizer) if settings.retokenise and tokenizer else None
        for site in self._sites:
            check_facts(site.facts, site.server.url, may_retokenise=self._retokeniser is not None)
        lengths = [site.facts.max_length for site in self._sites if site.facts.max_length]
        versions = [site.facts.version for site in self._sites]
        super().__init__(vocab_size, min([config.max_length, *lengths]), max(versions))
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._waiting: deque[_Call] = deque()
        self._calls: set[_Call] = set()
        self._is_paused = False  # no call begins
        self._wrote = ""  # the version of the weights that servers were given through a folder

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

    def close(self) -> None:
        """Give up what is under way, here and at the servers."""
        self.cancel(list(self._requests))

    def _update_by_folder(self, sites: list[_Site], package: WeightPackage) -> None:
        update = FolderUpdate([site.server for site in sites], self._settings, package.manifest.version)
        update.write(package)
        self._is_paused = True
        try:
            with update.paused(self._wrote):
                self._cut(sites)
                update.reload()
                self._wrote = str(package.manifest.version)
        finally:
            self._is_paused = False

    def _cut(self, sites: list[_Site]) -> None:
        """Take in what paused servers have sent, and end the calls to them: what comes later is of other weights."""
        end = time.monotonic() + _CUT_SECONDS
        while any(call.site in sites for call in self._calls) and time.monotonic() < end:
            self._go_on()
        for call in [call for call in self._calls if call.site in sites]:
            call.was_aborted = True
            call.stream.close()
            self._take_in(call, None)

    # --- what SteppedEngine asks for ----------------------------------------------------------------------------------

    def _refuse(self, sampling: Sampling) -> None:
        is_plain = sampling.temperature in (0.0, 1.0) and not sampling.is_truncated
        for site in self._sites:
            url, facts = site.server.url, site.facts
            if has_rules(sampling) and not facts.is_ours:
                raise ConfigError(
                    f"sampling.thinking_budget and sampling.repetition_tokens are rules of `cispo serve`, which {url} "
                    f"does not know; got {sampling.thinking_budget} and {sampling.repetition_tokens}: set both to 0."
                )
            if facts.has_token_ids and not facts.is_of_sampling and not is_plain:
                raise ConfigError(
                    f"{url} must return the log-probabilities of the distribution sampled from, because ratios divide "
                    f"by them, but it returns those before temperature and truncation, and this is "
                    f"temperature={sampling.temperature:g} top_p={sampling.top_p:g} top_k={sampling.top_k}: start vLLM "
                    f"with --logprobs-mode processed_logprobs, or sample at temperature 1 without truncation."
                )

    def _begin(self, under_way: UnderWay) -> None:
        deadline = time.monotonic() + self._settings.deadline_seconds
        members = list(under_way.members.values())
        is_whole = len(members) == under_way.request.num_samples
        if is_whole and not any(growing.token_ids for growing in members):
            self._waiting.append(_Call(members, is_first=True, deadline=deadline))
        else:
            self._waiting.extend(_Call([growing], is_first=False, deadline=deadline) for growing in members)
        self._start_calls()

    def _drop(self, gone: Sequence[UnderWay]) -> None:
        self._waiting = deque(call for call in self._waiting if any(self._open_members(call)))
        for call in self._calls:
            if not any(self._open_members(call)):
                call.stream.close()

    def _go_on(self) -> None:
        """Take in all news, after waiting for some if nothing has ended yet."""
        self._start_calls()
        may_wait = bool(self._requests) and not self._ended
        try:
            self._take_in(*(self._news.get(timeout=_STEP_SECONDS) if may_wait else self._news.get_nowait()))
            while True:
                self._take_in(*self._news.get_nowait())
        except queue.Empty:
            pass
        self._end_the_late()
        self._start_calls()

    # --- calls --------------------------------------------------------------------------------------------------------

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
            site = min(self._sites, key=lambda site: (site is call.last_site, site.num_calls))
            site.num_calls += 1
            call.site, call.version, call.stream = site, self._version, Stream()
            self._calls.add(call)
            # A daemon: a process that ends does not wait for servers.
            arguments = call, site, self._body(call, site.facts)
            threading.Thread(target=self._run, args=arguments, name="openai-call", daemon=True).start()

    def _body(self, call: _Call, facts: ServerFacts) -> dict[str, Any]:
        growing = call.members[0]
        request = growing.request
        if call.is_first:
            prompt, sampling, seed = request.token_ids, request.sampling, request.seed
        else:
            prompt, sampling, seed = growing.prompt, growing.sampling, growing.seed
        body = completion_body(facts.model, prompt, sampling, seed, len(call.members), is_ours=facts.is_ours)
        if not facts.has_token_ids:
            assert self._retokeniser is not None
            body = self._retokeniser.body(body, call.members)
        else:
            body["stream_interval"] = self._settings.stream_interval
        return body | {"stream": True}

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

    def _open_members(self, call: _Call) -> Iterator[Growing]:
        return (growing for growing in call.members if self._is_open(growing))

    # --- what came ----------------------------------------------------------------------------------------------------

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
        url, left = call.site.server.url, list(self._open_members(call))
        if isinstance(came, WireFault):
            self._fail(left, f"{url} gave {came}")
        elif isinstance(came, ServerFault) and not came.may_pass:
            self._fail(left, str(came))
        elif left:
            self._try_again(call, left, came or ServerFault(f"{url} left choices without an end"))

    def _add(self, call: _Call, site: _Site, piece: Piece) -> None:
        """Tokens of one choice, and its end if that is it."""
        growing = call.members[piece.index]
        if not self._is_open(growing):
            return
        if not site.facts.has_token_ids:
            assert self._retokeniser is not None
            piece = self._retokeniser.piece(piece, growing, self._version)
        if len(piece.logp) != len(piece.token_ids):
            self._fail([growing], f"{site.server.url} returned token ids without log-probabilities")
            return
        oldest = min((version for version in piece.version if version >= 0), default=call.version)  # -1: not sampled
        if oldest < call.version:
            raise WorkerDied(
                f"{site.server.url} sampled with the weights of version {oldest} after it was given version "
                f"{call.version}: it was started again, or somebody else gave it others. This worker starts again and "
                f"gives it the present ones."
            )
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
            self._fail([growing], f"{site.server.url} ended it: {piece.note or piece.finish}")

    def _try_again(self, call: _Call, left: Sequence[Growing], fault: ServerFault) -> None:
        """Make the call anew for the members that are left: as it was if nothing came, else each by itself."""
        num_tries = call.num_tries + (not fault.is_busy and not call.was_aborted)
        if num_tries >= self._settings.tries:
            self._fail(left, f"{num_tries} tries came to nothing, the last because {fault}")
            return
        wait = min(self._settings.backoff_seconds * 2 ** max(0, num_tries - 1), _LONGEST_BACKOFF)
        not_before = time.monotonic() + (0.0 if call.was_aborted else max(wait, fault.retry_seconds))
        if call.is_first and len(left) == len(call.members) and not any(growing.token_ids for growing in left):
            again = [_Call(call.members, is_first=True, deadline=call.deadline)]
        else:
            unfinished = self._without_lost_ends(left)
            again = [_Call([growing], is_first=False, deadline=call.deadline) for growing in unfinished]
        for each in again:
            each.num_tries, each.not_before = num_tries, not_before
            each.last_site = None if call.was_aborted else call.site
        self._waiting.extend(again)

    def _without_lost_ends(self, left: Sequence[Growing]) -> list[Growing]:
        """Those that need more tokens; the others' end was lost on the way, and they end here."""
        for growing in left:
            if growing.reason is not None:
                self._end(growing, growing.reason)
        return [growing for growing in left if self._is_open(growing)]

    def _fail(self, members: Sequence[Growing], why: str) -> None:
        for growing in members:
            self._end(growing, StopReason.LENGTH, why)

    def _end_the_late(self) -> None:
        now = time.monotonic()
        for call in [*self._calls, *self._waiting]:
            if call.deadline < now:
                why = f"it had not ended after engine.server.deadline_seconds={self._settings.deadline_seconds:g}"
                self._fail(list(self._open_members(call)), why)
                call.stream.close()
        self._waiting = deque(call for call in self._waiting if call.deadline >= now)
