"""`cispo serve`: a policy behind the OpenAI API, with weights that can be replaced while it samples.

    GET  /health          /v1/models          /v1/weights
    POST /v1/completions  /v1/chat/completions  /v1/weights

All connections are batched together by one HybridEngine. Every request shows the token. docs/engines.md is the manual.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cispo.errors import CispoError
from configs.fleet import ServeConfig
from configs.schema import RunConfig
from launch import build
from launch.compose import compose
from launch.engine_thread import EngineThread
from launch.inference import run_config_of
from launch.serve_connection import Connection, fault_response
from launch.serve_desk import Desk
from launch.serve_wire import Served
from rollout.engine import HybridEngine
from rollout.server_token import SERVER_TOKEN
from sandbox.http_messages import HttpFault

_BACKLOG = 1024
_READ_BYTES = 1 << 17
log = logging.getLogger(__name__)


def serve_config(policy: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration of the policy's run, or the default one; without a policy, what a run would begin with."""
    return run_config_of(policy, overrides) if policy else compose(overrides)


def serve(policy: Path | None, overrides: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT; accepted requests then end first, unless a second signal comes.

    Raises ConfigError when there can be no token, CispoError when the address is taken, ModelError for a folder that
    holds no policy.
    """
    import torch

    config = serve_config(policy, overrides)
    token, where = SERVER_TOKEN.read_or_make(config.serve.token_file)
    door = _bound(config.serve)  # now: a large model takes minutes to load
    torch.set_num_threads(config.cluster.num_threads)
    tokenizer = build.make_tokenizer(config)
    lm = build.make_policy(config, tokenizer).lm()
    name = policy.absolute().name if policy else config.name
    served = Served(name, tokenizer, config.engine.max_length)

    async def run() -> None:
        thread = EngineThread(HybridEngine(lm, config.engine))
        desk = Desk(thread, lm, config.serve, served, token, config.engine.num_slots)
        await _Service(desk, config.serve).run(thread, door, where)

    asyncio.run(run())


def _bound(config: ServeConfig) -> socket.socket:
    """A socket with the address of the server, which does not listen yet. Raises CispoError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another process listens there" if taken else (error.strerror or str(error))
        raise CispoError(
            f"The server cannot listen on {config.host}:{config.port} ({why}): choose another serve.port or serve.host."
        ) from error
    return door


class _Service:
    """Listens, knows its connections, and stops without losing a request."""

    def __init__(self, desk: Desk, config: ServeConfig) -> None:
        self._desk = desk
        self._config = config
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, thread: EngineThread, door: socket.socket, where: str) -> None:
        """Until a signal comes, or the engine breaks down, which is raised."""
        server = await asyncio.start_server(self._connected, sock=door, limit=_READ_BYTES, backlog=_BACKLOG)
        stop, hurry = asyncio.Event(), asyncio.Event()

        def signalled() -> None:
            if stop.is_set():
                hurry.set()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, signalled)
        host, port = door.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("serving %s on %s, token %s", self._desk.served.name, url, where)
        stopped = asyncio.ensure_future(stop.wait())
        first: set[asyncio.Future[Any]] = {stopped, thread.broken}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if thread.broken.done():
            thread.broken.result()
        await self._stop(server, hurry)
        thread.stop()
        log.info("stopped serving %s", self._desk.served.name)

    async def _stop(self, server: asyncio.Server, hurry: asyncio.Event) -> None:
        """Refuse new requests and let those that were accepted end, for drain_seconds or until `hurry` is set."""
        self._desk.is_closing = True
        server.close()
        for connection in list(self._connections):
            if connection.is_silent:
                connection.drop()
        if self._tasks:
            log.info("stopping: %d connections still have requests", len(self._tasks))
            hurried = asyncio.ensure_future(hurry.wait())
            ended = asyncio.ensure_future(asyncio.wait(self._tasks))
            await asyncio.wait(
                {hurried, ended}, timeout=self._config.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            hurried.cancel()
            for task in self._tasks:
                task.cancel()
            await ended

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if len(self._connections) >= self._config.max_connections:
            writer.write(fault_response(HttpFault(503, "the server has too many connections", Retry_After="1")))
            writer.close()
            return
        connection, task = Connection(reader, writer, self._desk), asyncio.current_task()
        assert task is not None
        self._connections.add(connection)
        self._tasks.add(task)
        try:
            await connection.serve()
        except Exception:
            log.exception("a connection failed")
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                connection.drop()
            self._connections.discard(connection)
            self._tasks.discard(task)
