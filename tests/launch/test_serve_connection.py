"""A connection to `cispo serve` whose engine never answers: what the client is told, and when."""

import asyncio
import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from configs.fleet import ServeConfig
from launch.engine_thread import Ticket
from launch.serve_connection import Connection
from rollout.engine import Request

HEAD = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"


class StuckDesk:
    """Takes any request and gives nothing for it."""

    is_closing = False
    served = SimpleNamespace(tokenizer=None)

    def __init__(self, **seconds):
        self.config = ServeConfig(deadline_seconds=0.2, **seconds)

    def admit(self, head, path):
        pass

    def most_bytes(self, head):
        return 1 << 20

    def read(self, body, *, is_chat):
        return SimpleNamespace(request=Request("r", (1,), 1), is_stream=False)

    @asynccontextmanager
    async def sampling(self, wanted):
        yield Ticket(wanted.request, 0)


async def asked(desk):
    """The head and the body of the answer, chunks put together."""
    async with await asyncio.start_server(lambda r, w: Connection(r, w, desk).serve(), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(HEAD)
        head = await reader.readuntil(b"\r\n\r\n")
        if b"chunked" not in head:
            body = await reader.read(1 << 16)
        else:
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
        writer.close()
        return head, body


@pytest.mark.parametrize("heartbeat, status", [(5.0, 504), (0.02, 200)], ids=["before", "after the first sign of life"])
def test_a_deadline_is_told_before_and_after_the_first_sign_of_life(heartbeat, status):
    async def run():
        async with asyncio.timeout(20):
            return await asked(StuckDesk(heartbeat_seconds=heartbeat))

    head, body = asyncio.run(run())
    assert head.startswith(b"HTTP/1.1 %d " % status)
    fault = json.loads(body)["error"]  # one JSON value, and nothing that is not of it
    assert fault["code"] == 504 and "serve.deadline_seconds=0.2" in fault["message"]
