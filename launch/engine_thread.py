"""The engine of a server in a thread of its own, and an asyncio loop that asks it for sequences.

Only this thread touches the engine. Whatever the loop wants is done between two steps, so weights never change within
one; what the steps bring goes to the loop in one message a step, however many requests it is for.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cispo.types import Floats, Ints
from rollout.engine import Completion, HybridEngine, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class News:
    """What is new of one member of a request.

    Attributes:
        first: number of its first new token.
        token_ids, logp, version: of the new tokens; version is -1 where forced.
        ended: the whole of it, if these are its last.
    """

    member: int
    first: int
    token_ids: Ints
    logp: Floats
    version: Ints
    ended: Completion | None = None


@dataclass(eq=False)
class Ticket:
    """A request under way.

    Attributes:
        news: of its members; None when the engine broke down.
        is_broken: it did.
        interval: tokens between two news of a member; 0 tells its end only.
        seen: of each member that runs, the tokens told.
    """

    request: Request
    interval: int
    news: asyncio.Queue[News | None] = field(default_factory=asyncio.Queue)
    seen: dict[int, int] = field(default_factory=dict)
    is_broken: bool = False

    def __post_init__(self) -> None:
        self.seen = dict.fromkeys(range(self.request.num_samples), 0)


class EngineThread:
    """Runs `engine` until it is stopped. Its methods are for the loop that it was made in."""

    def __init__(self, engine: HybridEngine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._actions: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._num_steps = 0
        self._is_stopping = False
        self.broken: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def call(self, action: Callable[[HybridEngine], Any]) -> Any:
        """`action(engine)` between two steps; gives what it returns and raises what it raises."""
        done: asyncio.Future[Any] = self._loop.create_future()

        def settle(method: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                method(value)

        def act() -> None:
            try:
                result = action(self._engine)
            except Exception as error:
                self._loop.call_soon_threadsafe(settle, done.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(settle, done.set_result, result)

        self._actions.put(act)
        # An engine that broke down answers nobody any more.
        await asyncio.wait({done, self.broken}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise RuntimeError("the engine broke down")
        return done.result()

    async def submit(self, request: Request, interval: int) -> Ticket:
        """Queue a request. Raises InvalidRequest."""
        ticket = Ticket(request, interval)

        def begin(engine: HybridEngine) -> None:
            engine.submit([request])
            self._tickets[request.id] = ticket

        await self.call(begin)
        return ticket

    def cancel(self, request_id: str) -> None:
        """Forget a request; nobody waits for that."""

        def end() -> None:
            self._engine.cancel([request_id])
            self._tickets.pop(request_id, None)

        self._actions.put(end)

    def stop(self) -> None:
        """End the thread after the step that it is in."""
        self._is_stopping = True
        self._actions.put(lambda: None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._act()
                if self._engine.has_work:
                    self._tell(self._engine.step())
        except Exception as error:
            log.exception("the engine broke down")
            self._loop.call_soon_threadsafe(self._break_down, error)

    def _act(self) -> None:
        """Do what was asked; waits for that if there is nothing to sample."""
        if not self._engine.has_work and not self._is_stopping:
            self._actions.get()()
        while True:
            try:
                self._actions.get_nowait()()
            except queue.Empty:
                return

    def _tell(self, ended: Sequence[Completion]) -> None:
        self._num_steps += 1
        news = [*self._ends(ended), *self._progress()]
        if news:
            self._loop.call_soon_threadsafe(_hand_out, news)

    def _ends(self, ended: Sequence[Completion]) -> Iterator[tuple[Ticket, News]]:
        for completion in ended:
            ticket = self._tickets.get(completion.request_id)
            if ticket is None:
                continue
            first = ticket.seen.pop(completion.member)
            streams = completion.token_ids[first:], completion.logp[first:], completion.version[first:]
            yield ticket, News(completion.member, first, *streams, completion)
            if not ticket.seen:
                del self._tickets[completion.request_id]

    def _progress(self) -> Iterator[tuple[Ticket, News]]:
        """Of each running sequence a step makes one token, so that steps need only be counted."""
        due = [t for t in self._tickets.values() if t.interval and self._num_steps % t.interval == 0]
        if not due:
            return
        seen = {(ticket.request.id, member): num for ticket in due for member, num in ticket.seen.items()}
        for (id, member), streams in self._engine.since(seen).items():
            if len(streams[0]):
                ticket = self._tickets[id]
                yield ticket, News(member, ticket.seen[member], *streams)
                ticket.seen[member] += len(streams[0])

    def _break_down(self, error: Exception) -> None:
        for ticket in self._tickets.values():
            ticket.is_broken = True
            ticket.news.put_nowait(None)
        self.broken.set_exception(error)


def _hand_out(news: Sequence[tuple[Ticket, News]]) -> None:
    for ticket, each in news:
        ticket.news.put_nowait(each)
