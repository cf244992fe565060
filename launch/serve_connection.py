"""One client's connection to `cispo serve`: requests in, answers out, and what happens when the client goes away.

While a request is sampled the next one's head is already being read. That is how the end of a connection is noticed at
once: nobody waits for the tokens any more, so the slots are given to others. HTTP itself is the sandbox service's
(sandbox/http_messages.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from cispo.errors import CispoError
from launch.engine_thread import News, Ticket
from launch.serve_desk import Desk
from launch.serve_wire import RequestFault, Wanted, answer, event
from rollout.engine import Completion
from rollout.weight_wire import MEDIA_TYPE
from sandbox.http_messages import (
    CONTINUE,
    END_OF_HEAD,
    LAST_CHUNK,
    HttpFault,
    RequestHead,
    body_length,
    chunk,
    chunked_head,
    json_bytes,
    parse_request,
    response_bytes,
)

_JSON = "application/json"
_EVENTS = "text/event-stream"
_HEARTBEAT = b": waiting\n\n"
_LINGER_SECONDS = 2.0
_WRITE_SECONDS = 60.0
_READ_BYTES = 1 << 20


class ClientGone(Exception):
    """Nobody is there any more to be answered."""


def fault_body(status: int, message: str) -> bytes:
    """What OpenAI's API says of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json_bytes({"error": {"message": message, "type": kind, "code": status}})


def fault_response(fault: HttpFault, *, keep: bool = False) -> bytes:
    """A whole response that tells of a fault."""
    headers = {"Content-Type": _JSON, **fault.headers}
    return response_bytes(fault.status, fault_body(fault.status, str(fault)), headers, keep=keep)


class Connection:
    """The life of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, desk: Desk) -> None:
        self._reader = reader
        self._writer = writer
        self._desk = desk
        self._next_head: asyncio.Task[bytes] | None = None
        self._keeps_open = True
        self.is_silent = True

    async def serve(self) -> None:
        """Answer requests until the client leaves, is silent for too long, or breaks the protocol."""
        try:
            while self._is_kept and (head := await self._head()) is not None:
                self.is_silent = False
                await self._answer(head)
                self.is_silent = True
        except (ClientGone, OSError, EOFError):
            return
        finally:
            if self._next_head is not None:
                self._next_head.cancel()

    def drop(self) -> None:
        """Close it at once, which ends `serve`."""
        self._writer.transport.abort()

    @property
    def _is_kept(self) -> bool:
        return self._keeps_open and not self._desk.is_closing

    async def _head(self) -> RequestHead | None:
        """The next request's head; None when there is none in time, or one that cannot be read, which is told."""
        config = self._desk.config
        seconds = config.request_seconds if self._next_head is None else config.idle_seconds
        head, self._next_head = self._next_head or self._start_reading(), None
        try:
            async with asyncio.timeout(seconds):
                return parse_request(await head)
        except asyncio.LimitOverrunError:
            await self._refuse(HttpFault(431, "the head of a request is too long"))
        except HttpFault as fault:
            await self._refuse(fault)
        except TimeoutError:
            pass
        return None

    def _start_reading(self) -> asyncio.Task[bytes]:
        return asyncio.create_task(self._reader.readuntil(END_OF_HEAD))

    async def _answer(self, head: RequestHead) -> None:
        """One request, from its body to the last byte of its answer."""
        path = head.path.split("?")[0]
        try:
            self._desk.admit(head, path)
            body = await self._body(head, self._desk.most_bytes(head))
        except HttpFault as fault:  # what follows on the connection may be the body, so it cannot be read on
            await self._refuse(fault)
            return
        self._keeps_open = head.headers.get("connection", "").lower() != "close"
        try:
            await self._fulfil(head, path, body)
        except HttpFault as fault:
            await self._send(fault_response(fault, keep=self._is_kept))
        except RequestFault as fault:
            await self._send(fault_response(HttpFault(fault.status, str(fault)), keep=self._is_kept))
        except CispoError as error:
            await self._send(fault_response(HttpFault(400, str(error)), keep=self._is_kept))

    async def _fulfil(self, head: RequestHead, path: str, body: bytearray) -> None:
        desk = self._desk
        if path == "/health":
            await self._send_json(await desk.health())
        elif path == "/v1/models":
            await self._send_json(desk.models())
        elif path == "/v1/weights" and head.method == "GET":
            await self._send_json(desk.weights())
        elif path == "/v1/weights":
            is_package = head.headers.get("content-type", "") == MEDIA_TYPE
            await self._send_json(await (desk.take_package(body) if is_package else desk.take_folder(_parsed(body))))
        else:
            await self._complete(desk.read(_parsed(body), is_chat=path == "/v1/chat/completions"))

    async def _complete(self, wanted: Wanted) -> None:
        async with self._desk.sampling(wanted) as ticket:
            if wanted.is_stream:
                await self._stream(wanted, ticket)
            else:
                await self._answer_whole(wanted, ticket)

    async def _answer_whole(self, wanted: Wanted, ticket: Ticket) -> None:
        """An answer that takes long begins with line feeds, which JSON ignores."""
        ended: list[Completion] = []
        is_streaming = False
        async with aclosing(self._news(ticket)) as news:
            async for each in news:
                if each is None:
                    start = b"" if is_streaming else chunked_head(_JSON, keep=self._is_kept)
                    is_streaming = True
                    await self._send(start + chunk(b"\n"))
                elif each.ended is not None:
                    ended.append(each.ended)
        data = json_bytes(answer(wanted, ended, self._desk.served.tokenizer))
        if is_streaming:
            await self._send(chunk(data) + LAST_CHUNK)
        else:
            await self._send(response_bytes(200, data, {"Content-Type": _JSON}, keep=self._is_kept))

    async def _stream(self, wanted: Wanted, ticket: Ticket) -> None:
        """Events as tokens come. What goes wrong after the first byte is an event too."""
        decode = self._desk.served.tokenizer.decode
        texts = [TextSoFar(decode) for _ in range(wanted.request.num_samples)]
        await self._send(chunked_head(_EVENTS, keep=self._is_kept))
        try:
            async with aclosing(self._news(ticket)) as news:
                async for each in news:
                    if each is None:
                        await self._send(chunk(_HEARTBEAT))
                        continue
                    text = texts[each.member].add(each.token_ids.tolist(), is_last=each.ended is not None)
                    await self._send(chunk(_event(event(wanted, each, text, decode))))
        except HttpFault as fault:
            await self._send(chunk(b"data: " + fault_body(fault.status, str(fault)) + b"\n"))
        await self._send(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    async def _news(self, ticket: Ticket) -> AsyncGenerator[News | None, None]:
        """What comes of a request, and None after every heartbeat_seconds without anything.

        Raises ClientGone when the client leaves, HttpFault 500 when the engine breaks down and 504 after the deadline.
        """
        config = self._desk.config
        deadline = asyncio.get_running_loop().time() + config.deadline_seconds
        left = ticket.request.num_samples
        async with self._watched(ticket):
            while left:
                if asyncio.get_running_loop().time() > deadline:
                    seconds = config.deadline_seconds
                    raise HttpFault(504, f"the request had not ended after serve.deadline_seconds={seconds:g}")
                try:
                    async with asyncio.timeout(config.heartbeat_seconds):
                        news = await ticket.news.get()
                except TimeoutError:
                    yield None
                    continue
                if self._next_head is not None and self._next_head.done() and self._next_head.exception():
                    raise ClientGone
                if news is None:
                    raise HttpFault(500, "the engine broke down")
                if news.member >= 0:
                    left -= news.ended is not None
                    yield news

    @asynccontextmanager
    async def _watched(self, ticket: Ticket) -> AsyncIterator[None]:
        """Meanwhile the end of the connection is news too."""
        head = self._next_head = self._next_head or self._start_reading()

        def client_spoke(_: asyncio.Task[bytes]) -> None:
            ticket.news.put_nowait(_CLIENT_SPOKE)

        head.add_done_callback(client_spoke)
        try:
            yield
        finally:
            head.remove_done_callback(client_spoke)

    async def _body(self, head: RequestHead, most: int) -> bytearray:
        """The body, whole. Raises HttpFault 400, 408, 411 or 413."""
        length = body_length(head, most)
        if length and head.headers.get("expect", "").lower() == "100-continue":
            await self._send(CONTINUE)
        body = bytearray()
        try:
            while len(body) < length:
                async with asyncio.timeout(self._desk.config.request_seconds):
                    data = await self._reader.read(min(_READ_BYTES, length - len(body)))
                if not data:
                    raise ClientGone
                body += data
        except TimeoutError as error:
            seconds = self._desk.config.request_seconds
            raise HttpFault(408, f"the next part of a request must arrive within {seconds:g} seconds") from error
        return body

    async def _send_json(self, value: Any) -> None:
        await self._send(response_bytes(200, json_bytes(value), {"Content-Type": _JSON}, keep=self._is_kept))

    async def _refuse(self, fault: HttpFault) -> None:
        """Tell of a fault and end the connection, but not before the client has had time to read what it did wrong."""
        self._keeps_open = False
        await self._send(fault_response(fault))
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


class TextSoFar:
    """The text of a sequence as its tokens come; half a character waits for its other half."""

    def __init__(self, decode: Any) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._pending: list[int] = []

    def add(self, token_ids: list[int], *, is_last: bool) -> str:
        """What these tokens add to it."""
        self._pending += token_ids
        text: str = self._decode(self._before + self._pending)
        if text.endswith("\ufffd") and not is_last:
            return ""
        new = text[len(self._decode(self._before)) :]
        self._before, self._pending = self._pending, []
        return new


_CLIENT_SPOKE = News(-1, 0, *([None] * 3))  # type: ignore[arg-type]


def _event(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n"


def _parsed(body: bytearray) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpFault(400, f"the body must be JSON ({error})") from error
