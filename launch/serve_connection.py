"""A connection to `cispo serve`: prompts in, tokens out. A client that goes away frees its slots for others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from cispo.errors import CispoError
from launch.engine_thread import News, Ticket
from launch.serve_desk import Desk
from launch.serve_wire import RequestFault, Wanted, answer, event
from rollout.engine import Completion
from rollout.weight_wire import MEDIA_TYPE
from sandbox.http_connection import JSON, HttpConnection
from sandbox.http_messages import (
    LAST_CHUNK,
    HttpFault,
    RequestHead,
    chunk,
    chunked_head,
    json_bytes,
    response_bytes,
)

_EVENTS = "text/event-stream"
_HEARTBEAT = b": waiting\n\n"


def fault_body(status: int, message: str) -> bytes:
    """What OpenAI's API says of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json_bytes({"error": {"message": message, "type": kind, "code": status}})


def fault_response(fault: HttpFault, *, keep: bool = False) -> bytes:
    """A whole response that tells of a fault."""
    headers = {"Content-Type": JSON, **fault.headers}
    return response_bytes(fault.status, fault_body(fault.status, str(fault)), headers, keep=keep)


class Connection(HttpConnection):
    """The life of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, desk: Desk) -> None:
        super().__init__(reader, writer, desk.config)
        self._desk = desk

    @property
    def _is_closing(self) -> bool:
        return self._desk.is_closing

    def _admit(self, head: RequestHead) -> int:
        self._desk.admit(head, _path(head))
        return self._desk.most_bytes(head)

    def _fault(self, fault: HttpFault, *, keep: bool) -> bytes:
        return fault_response(fault, keep=keep)

    async def _fulfil(self, head: RequestHead, body: bytearray) -> None:
        try:
            await self._answer_to(head, _path(head), body)
        except RequestFault as fault:
            raise HttpFault(fault.status, str(fault)) from fault
        except CispoError as error:
            raise HttpFault(400, str(error)) from error

    async def _answer_to(self, head: RequestHead, path: str, body: bytearray) -> None:
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
        """An answer that takes long begins with line feeds, which JSON ignores. A fault after them takes its place."""
        ended: list[Completion] = []
        is_streaming = False
        try:
            async with aclosing(self._news(ticket)) as news:
                async for each in news:
                    if each is None:
                        start = b"" if is_streaming else chunked_head(JSON, keep=self._is_kept)
                        is_streaming = True
                        await self._send(start + chunk(b"\n"))
                    elif each.ended is not None:
                        ended.append(each.ended)
            data = json_bytes(answer(wanted, ended, self._desk.served.tokenizer))
        except HttpFault as fault:
            if not is_streaming:
                raise
            data = fault_body(fault.status, str(fault))
        if is_streaming:
            await self._send(chunk(data) + LAST_CHUNK)
        else:
            await self._send_whole(data)

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
        seconds = self._desk.config.deadline_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        left = ticket.request.num_samples
        async with aclosing(self._take(ticket.news, is_done=lambda: left == 0)) as all_news:
            async for news in all_news:
                if news is None and ticket.is_broken:
                    raise HttpFault(500, "the engine broke down")
                if asyncio.get_running_loop().time() > deadline:
                    raise HttpFault(504, f"the request had not ended after serve.deadline_seconds={seconds:g}")
                left -= news is not None and news.ended is not None
                yield news

    async def _send_json(self, value: Any) -> None:
        await self._send_whole(json_bytes(value))


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


def _path(head: RequestHead) -> str:
    return head.path.split("?")[0]


def _event(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n"


def _parsed(body: bytearray) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpFault(400, f"the body must be JSON ({error})") from error
