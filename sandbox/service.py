"""The HTTP service of the sandbox: listens, knows its connections, and stops without losing a program.

    GET  /health    tier, cells, queue, verdict counts         GET /metrics   the same for Prometheus
    POST /run       one program -> its execution               POST /batch    many -> a stream of executions

sandbox/wire.py has the JSON, docs/sandbox_service.md the manual. Every request shows the token.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket

from sandbox.errors import SandboxError
from sandbox.http_messages import HttpFault, fault_bytes
from sandbox.program_pool import ProgramPool
from sandbox.service_config import ServiceConfig
from sandbox.service_connection import Connection
from sandbox.service_desk import Desk
from sandbox.service_jobs import JobLine

_BACKLOG = 1024  # the default of 100 drops connections when 128 clients come at once, each of which then waits 1 s
_READ_BYTES = 1 << 17
_log = logging.getLogger(__name__)


class Service:
    """One listening service. Lives on one event loop.

    Args:
        pool: runs the programs; stays the caller's to close.
        config: where to listen and what to take.
        token: what every request must show.
        tier: the pool's isolation, for /health.
        num_cells: programs that the pool runs at the same time.
    """

    def __init__(self, pool: ProgramPool, config: ServiceConfig, *, token: str, tier: str, num_cells: int) -> None:
        self._config = config
        self._line = JobLine(pool, num_cells=num_cells, max_queue=config.max_queue)
        self._desk = Desk(self._line, config, pool.limits, token, tier)
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Listen. Raises SandboxError when the address cannot be had."""
        host, port = self._config.host, self._config.port
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=_READ_BYTES, backlog=_BACKLOG)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "another process listens there" if taken else (error.strerror or str(error))
            raise SandboxError(
                f"the sandbox service cannot listen on {host}:{port} ({why}): choose another sandbox.service.port"
                f"{'' if taken else ' or sandbox.service.host'}"
            ) from error

    async def stop(self, hurry: asyncio.Event) -> None:
        """Refuse new programs and let those that were accepted end, for drain_seconds or until `hurry` is set."""
        assert self._server is not None
        self._line.is_closing = True
        self._server.close()
        for connection in list(self._connections):
            if connection.is_silent:
                connection.drop()
        if self._tasks:
            _log.info("stopping: %d connections still have programs", len(self._tasks))
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
        connection = Connection(reader, writer, self._desk)
        task = asyncio.current_task()
        assert task is not None
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not self._has_room():
            writer.write(fault_bytes(HttpFault(503, "the service has too many connections", Retry_After="1")))
            writer.close()
            return
        self._connections.add(connection)
        self._tasks.add(task)
        try:
            await connection.serve()
        except Exception:
            _log.exception("a connection of the sandbox service failed")
        finally:
            connection.drop()
            self._connections.discard(connection)
            self._tasks.discard(task)

    def _has_room(self) -> bool:
        """At the bound the connection goes that has been silent for longest: it may be one that will never speak."""
        if len(self._connections) < self._config.max_connections:
            return True
        silent = [connection for connection in self._connections if connection.is_silent]
        if silent:
            oldest = min(silent, key=lambda connection: connection.silent_since)
            oldest.drop()
            self._connections.discard(oldest)
        return bool(silent)
