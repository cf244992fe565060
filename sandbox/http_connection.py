"""One client's connection to a server of ours: requests in, answers out, and what happens when the client goes away.

While a request is worked on, the next one's head is already being read. That is how the end of a connection is noticed
at once: nobody waits for the answer any more, so the work is given up.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar

from sandbox.http_messages import (
    CONTINUE,
    END_OF_HEAD,
    MAX_HEAD_BYTES,
    HttpFault,
    RequestHead,
    body_length,
    fault_bytes,
    parse_request,
    response_bytes,
)

JSON = "application/json"

_LINGER_SECONDS = 2.0
_WRITE_SECONDS = 60.0
_READ_BYTES = 1 << 20

News = TypeVar("News")


class ClientGone(Exception):
    """Nobody is there any more to be answered."""


class Patience(Protocol):
    """How long a connection waits."""

    @property
    def request_seconds(self) -> float:
        """For a request; a second more for each MiB of its body."""

    @property
    def idle_seconds(self) -> float:
        """For the next request."""

    @property
    def heartbeat_seconds(self) -> float:
        """Between two signs of life to a client that waits for its answer."""


class HttpConnection(ABC):
    """The life of one connection; a subclass says what is admitted and how it is answered.

    Attributes:
        is_silent: it waits for a request.
        silent_since: when it began to.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: Patience) -> None:
        self._reader = reader
        self._writer = writer
        self._patience = patience
        self._next_head: asyncio.Task[bytes] | None = None
        self._keeps_open = True
        self._has_answered = False
        self.is_silent = True
        self.silent_since = time.monotonic()

    async def serve(self) -> None:
        """Answer requests until the client leaves, is silent for too long, or breaks the protocol."""
        try:
            while self._is_kept and (head := await self._head()) is not None:
                self.is_silent = False
                await self._answer(head)
                self._has_answered, self.is_silent, self.silent_since = True, True, time.monotonic()
        except (ClientGone, OSError, EOFError):
            return
        finally:
            if self._next_head is not None:
                self._next_head.cancel()

    async def leave(self) -> None:
        """Close it when everything that was sent is out, for which the client has a minute."""
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._writer.wait_closed()

    def drop(self) -> None:
        """Close it at once, which ends `serve`."""
        self._writer.transport.abort()

    @property
    @abstractmethod
    def _is_closing(self) -> bool:
        """The server takes no further requests."""

    @abstractmethod
    def _admit(self, head: RequestHead) -> int:
        """How long the body of this request may be. Raises HttpFault if it may not ask for that at all."""

    @abstractmethod
    async def _fulfil(self, head: RequestHead, body: bytearray) -> None:
        """Send the answer. Raises HttpFault if nothing of it was sent yet."""

    def _fault(self, fault: HttpFault, *, keep: bool) -> bytes:
        """The response that tells of a fault."""
        return fault_bytes(fault, keep=keep)

    @property
    def _is_kept(self) -> bool:
        """The connection stays open for another request."""
        return self._keeps_open and not self._is_closing

    async def _head(self) -> RequestHead | None:
        """The next request's head; None when there is none in time, or one that cannot be read, which is told."""
        seconds = self._patience.idle_seconds if self._has_answered else self._patience.request_seconds
        head, self._next_head = self._next_head or self._start_reading(), None
        try:
            async with asyncio.timeout(seconds):
                text = await head
            if len(text) > MAX_HEAD_BYTES:
                raise HttpFault(431, f"the head of a request may have {MAX_HEAD_BYTES} bytes, got {len(text)}")
            return parse_request(text)
        except asyncio.LimitOverrunError:
            await self._refuse(HttpFault(431, f"the head of a request may have {MAX_HEAD_BYTES} bytes"))
        except HttpFault as fault:
            await self._refuse(fault)
        except TimeoutError:
            pass
        return None

    def _start_reading(self) -> asyncio.Task[bytes]:
        return asyncio.create_task(self._reader.readuntil(END_OF_HEAD))

    async def _answer(self, head: RequestHead) -> None:
        """One request, from its body to the last byte of its answer."""
        try:
            body = await self._body(head, self._admit(head))
        except HttpFault as fault:  # what follows on the connection may be the body, so it cannot be read on
            await self._refuse(fault)
            return
        self._keeps_open = head.headers.get("connection", "").lower() != "close"
        try:
            await self._fulfil(head, body)
        except HttpFault as fault:
            await self._send(self._fault(fault, keep=self._is_kept))

    async def _body(self, head: RequestHead, most: int) -> bytearray:
        """The body, whole. Raises HttpFault 400, 408, 411 or 413."""
        length = body_length(head, most)
        if length and head.headers.get("expect", "").lower() == "100-continue":
            await self._send(CONTINUE)
        body = bytearray()
        seconds = self._patience.request_seconds + length / 2**20
        try:
            async with asyncio.timeout(seconds):
                while len(body) < length:
                    data = await self._reader.read(min(_READ_BYTES, length - len(body)))
                    if not data:
                        raise ClientGone
                    body += data
        except TimeoutError as error:
            raise HttpFault(408, f"a request of {length} bytes must arrive within {seconds:.3g} seconds") from error
        return body

    async def _take(
        self, news: asyncio.Queue[News], *, is_done: Callable[[], bool]
    ) -> AsyncGenerator[News | None, None]:
        """What comes into the queue until all is done, and None after every heartbeat_seconds without anything.

        Raises ClientGone when the client leaves.
        """
        async with self._watched(news) as client_spoke:
            while not is_done():
                try:
                    async with asyncio.timeout(self._patience.heartbeat_seconds):
                        each = await news.get()
                except TimeoutError:
                    yield None
                    continue
                if each is not client_spoke:
                    yield each
                elif self._next_head is not None and isinstance(self._next_head.exception(), EOFError | OSError):
                    raise ClientGone
                # else it has sent its next request already

    @asynccontextmanager
    async def _watched(self, news: asyncio.Queue[News]) -> AsyncIterator[News]:
        """Meanwhile the end of the connection, or its next request, is news, too: the object that this gives."""
        client_spoke: News = object()  # type: ignore[assignment]
        head = self._next_head = self._next_head or self._start_reading()

        def tell(_: asyncio.Task[bytes]) -> None:
            news.put_nowait(client_spoke)

        head.add_done_callback(tell)
        try:
            yield client_spoke
        finally:
            head.remove_done_callback(tell)

    async def _send_whole(self, body: bytes, content_type: str = JSON) -> None:
        await self._send(response_bytes(200, body, {"Content-Type": content_type}, keep=self._is_kept))

    async def _refuse(self, fault: HttpFault) -> None:
        """Tell of a fault and end the connection, but not before the client has had time to read what it did wrong.

        Closing while it still sends would reset the connection and take the answer away from it.
        """
        self._keeps_open = False
        await self._send(self._fault(fault, keep=False))
        if self._writer.can_write_eof():
            self._writer.write_eof()
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self._reader.read(_READ_BYTES):
                    pass
        except (TimeoutError, OSError):
            pass

    async def _send(self, data: bytes) -> None:
        """Write; waits only for a client that reads too slowly. Raises ClientGone."""
        if self._writer.is_closing():
            raise ClientGone
        self._writer.write(data)
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._writer.drain()
        except OSError as error:
            raise ClientGone from error
