"""A connection to the sandbox service: programs in, executions out. A client that goes away has its programs killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from sandbox import wire
from sandbox.http_connection import JSON, HttpConnection
from sandbox.http_messages import LAST_CHUNK, RequestHead, chunk, chunked_head, json_bytes
from sandbox.program import Execution
from sandbox.service_desk import Desk
from sandbox.service_jobs import Job, metrics_text

_STREAM = "application/x-ndjson"
_METRICS = "text/plain; version=0.0.4"

Finished = asyncio.Task[Execution]


class Connection(HttpConnection):
    """The life of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, desk: Desk) -> None:
        super().__init__(reader, writer, desk.config)
        self._desk = desk

    @property
    def _is_closing(self) -> bool:
        return self._desk.line.is_closing

    def _admit(self, head: RequestHead) -> int:
        self._desk.admit(head)
        return self._desk.config.max_request_bytes

    async def _fulfil(self, head: RequestHead, body: bytearray) -> None:
        if head.path == "/run":
            await self._run(self._desk.read_job(body))
        elif head.path == "/batch":
            await self._run_batch(self._desk.read_batch(body))
        elif head.path == "/health":
            await self._send_whole(json_bytes(self._desk.health()))
        else:
            await self._send_whole(metrics_text(self._desk.health()).encode(), _METRICS)

    async def _run(self, job: Job) -> None:
        """POST /run. An answer that takes long begins with line feeds, which JSON ignores."""
        tasks = self._desk.line.start([job])
        is_streaming = False
        async with aclosing(self._ends(tasks)) as ends:
            async for task in ends:
                if task is not None:
                    answer = json_bytes(wire.to_json(task.result()))
                    break
                start = b"" if is_streaming else chunked_head(JSON, keep=self._is_kept)
                is_streaming = True
                await self._send(start + chunk(b"\n"))
        if is_streaming:
            await self._send(chunk(answer) + LAST_CHUNK)
        else:
            await self._send_whole(answer)

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
        num_ended = 0
        try:
            async with aclosing(self._take(news, is_done=lambda: num_ended == len(tasks))) as ends:
                async for ended in ends:
                    num_ended += ended is not None
                    yield ended
        finally:
            for task in tasks:
                task.cancel()
