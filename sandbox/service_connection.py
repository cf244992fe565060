"""One client's connection to the service: requests in, answers out, and what happens when the client goes away.

While a program runs, the next request's head is already being read. That is how the end of a connection is noticed at
once: nobody waits for the verdict any more, so the program is killed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from sandbox import wire
from sandbox.http_messages import (
    CONTINUE,
    END_OF_HEAD,
    LAST_CHUNK,
    MAX_HEAD_BYTES,
    HttpFault,
    RequestHead,
    body_length,
    chunk,
    chunked_head,
    fault_bytes,
    json_bytes,
    parse_request,
    response_bytes,
)
from sandbox.program import Execution
from sandbox.service_desk import Desk
from sandbox.service_jobs import Job, metrics_text

_LINGER_SECONDS = 2.0
_WRITE_SECONDS = 60.0
_READ_BYTES = 1 << 18
_JSON = {"Content-Type": "application/json"}
_STREAM = "application/x-ndjson"

Finished = asyncio.Task[Execution]


class ClientGone(Exception):
    """Nobody is there any more to be answered."""


class Connection:
    """The life of one connection.

    Attributes:
        silent_since: when it began to wait for a request.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, desk: Desk) -> None:
        self._reader = reader
        self._writer = writer
        self._desk = desk
        self._next_head: asyncio.Task[bytes] | None = None
        self._keeps_open = True
        self.is_silent = True
        self.silent_since = time.monotonic()

    async def serve(self) -> None:
        """Answer requests until the client leaves, is silent for too long, or breaks the protocol."""
        try:
            while self._is_kept and (head := await self._head()) is not None:
                self.is_silent = False
                await self._answer(head)
                self.is_silent, self.silent_since = True, time.monotonic()
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
        """The connection stays open for another request."""
        return self._keeps_open and not self._desk.line.is_closing

    async def _head(self) -> RequestHead | None:
        """The next request's head; None when there is none in time, or one that cannot be read, which is told."""
        config = self._desk.config
        seconds = config.request_seconds if self._next_head is None else config.idle_seconds
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
            self._desk.admit(head)
            body = await self._body(head)
        except HttpFault as fault:  # what follows on the connection may be the body, so it cannot be read on
            await self._refuse(fault)
            return
        self._keeps_open = head.headers.get("connection", "").lower() != "close"
        try:
            await self._fulfil(head.path, body)
        except HttpFault as fault:
            await self._send(fault_bytes(fault, keep=self._is_kept))

    async def _fulfil(self, path: str, body: bytes) -> None:
        if path == "/run":
            await self._run(self._desk.read_job(body))
        elif path == "/batch":
            await self._run_batch(self._desk.read_batch(body))
        elif path == "/health":
            await self._send(response_bytes(200, json_bytes(self._desk.health()), _JSON, keep=self._is_kept))
        else:
            text = metrics_text(self._desk.health()).encode()
            kind = {"Content-Type": "text/plain; version=0.0.4"}
            await self._send(response_bytes(200, text, kind, keep=self._is_kept))

    async def _body(self, head: RequestHead) -> bytes:
        """The body, whole. Raises HttpFault 400, 408, 411 or 413."""
        length = body_length(head, self._desk.config.max_request_bytes)
        if length and head.headers.get("expect", "").lower() == "100-continue":
            await self._send(CONTINUE)
        try:
            async with asyncio.timeout(self._desk.config.request_seconds):
                return await self._reader.readexactly(length)
        except TimeoutError as error:
            raise HttpFault(
                408, f"a request must arrive within {self._desk.config.request_seconds:g} seconds"
            ) from error

    async def _run(self, job: Job) -> None:
        """POST /run. An answer that takes long begins with line feeds, which JSON ignores."""
        tasks = self._desk.line.start([job])
        is_streaming = False
        async with aclosing(self._ends(tasks)) as ends:
            async for task in ends:
                if task is not None:
                    answer = json_bytes(wire.to_json(task.result()))
                    break
                start = b"" if is_streaming else chunked_head(_JSON["Content-Type"], keep=self._is_kept)
                is_streaming = True
                await self._send(start + chunk(b"\n"))
        if is_streaming:
            await self._send(chunk(answer) + LAST_CHUNK)
        else:
            await self._send(response_bytes(200, answer, _JSON, keep=self._is_kept))

    async def _run_batch(self, jobs: Sequence[Job]) -> None:
        """POST /batch: a line of JSON for each program as it ends, and empty lines meanwhile."""
        tasks = self._desk.line.start(jobs)
        index_of = {task: index for index, task in enumerate(tasks)}
        async with aclosing(self._ends(tasks)) as ends:
            await self._send(chunked_head(_STREAM, keep=self._is_kept))
            async for task in ends:
                line = b"\n"
                if task is not None:
                    line = json_bytes({"index": index_of[task], "execution": wire.to_json(task.result())})
                await self._send(chunk(line))
        await self._send(LAST_CHUNK)

    async def _ends(self, tasks: Sequence[Finished]) -> AsyncGenerator[Finished | None, None]:
        """Each task as it ends, and None after every heartbeat_seconds without one.

        Whatever ends this early cancels the tasks that are left. Raises ClientGone when the client leaves.
        """
        news: asyncio.Queue[Finished | None] = asyncio.Queue()
        for task in tasks:
            task.add_done_callback(news.put_nowait)
        next_head = self._next_head = self._next_head or self._start_reading()

        def client_spoke(_: asyncio.Task[bytes]) -> None:
            news.put_nowait(None)

        next_head.add_done_callback(client_spoke)
        num_left = len(tasks)
        try:
            while num_left:
                try:
                    async with asyncio.timeout(self._desk.config.heartbeat_seconds):
                        ended = await news.get()
                except TimeoutError:
                    yield None
                    continue
                if ended is not None:
                    num_left -= 1
                    yield ended
                elif isinstance(next_head.exception(), EOFError | OSError):
                    raise ClientGone
                # else it has sent its next request already
        finally:
            next_head.remove_done_callback(client_spoke)
            for task in tasks:
                task.cancel()

    async def _refuse(self, fault: HttpFault) -> None:
        """Tell of a fault and end the connection, but not before the client has had time to read what it did wrong.

        Closing while it still sends would reset the connection and take the answer away from it.
        """
        self._keeps_open = False
        await self._send(fault_bytes(fault, keep=False))
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
