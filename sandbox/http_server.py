"""Listens, knows its connections, and stops without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from sandbox.http_connection import HttpConnection
from sandbox.http_messages import HttpFault, fault_bytes

_BACKLOG = 1024  # the default of 100 drops connections when 128 clients come at once, each of which then waits 1 s
_READ_BYTES = 1 << 17
_log = logging.getLogger(__name__)

Connect = Callable[[asyncio.StreamReader, asyncio.StreamWriter], HttpConnection]


class Bounds(Protocol):
    """What a server allows."""

    @property
    def max_connections(self) -> int:
        """Connections that are open at a time."""

    @property
    def drain_seconds(self) -> float:
        """How long accepted requests may take when it stops."""


class HttpServer:
    """One listening server. Lives on one event loop.

    Args:
        connect: makes the connection of a client.
        bounds: see there.
        name: in the log.
        fault: the response that tells of a fault.
    """

    def __init__(
        self, connect: Connect, bounds: Bounds, name: str, *, fault: Callable[[HttpFault], bytes] = fault_bytes
    ) -> None:
        self._connect = connect
        self._bounds = bounds
        self._name = name
        self._fault = fault
        self._connections: set[HttpConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def listen(self, door: socket.socket) -> None:
        """Take connections at a socket that has its address."""
        self._server = await asyncio.start_server(self._connected, sock=door, limit=_READ_BYTES, backlog=_BACKLOG)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Listen no more and let what was accepted end, for drain_seconds or until `hurry` is set."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            if connection.is_silent:
                connection.drop()
        tasks = set(self._tasks)  # of its own, because each leaves the other as it ends
        if tasks:
            _log.info("%s is stopping: %d connections still have requests", self._name, len(tasks))
            hurried = asyncio.ensure_future(hurry.wait())
            ended = asyncio.ensure_future(asyncio.wait(tasks))
            await asyncio.wait(
                {hurried, ended}, timeout=self._bounds.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            hurried.cancel()
            for task in tasks:
                task.cancel()
            await ended

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not self._has_room():
            writer.write(self._fault(HttpFault(503, f"{self._name} has too many connections", Retry_After="1")))
            writer.close()
            return
        connection, task = self._connect(reader, writer), asyncio.current_task()
        assert task is not None
        self._connections.add(connection)
        self._tasks.add(task)
        try:
            await connection.serve()
            await connection.leave()
        except Exception:
            _log.exception("a connection to %s failed", self._name)
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                connection.drop()
            self._connections.discard(connection)
            self._tasks.discard(task)

    def _has_room(self) -> bool:
        """At the bound the connection goes that has been silent for longest: it may be one that will never speak."""
        if len(self._connections) < self._bounds.max_connections:
            return True
        silent = [connection for connection in self._connections if connection.is_silent]
        if silent:
            oldest = min(silent, key=lambda connection: connection.silent_since)
            oldest.drop()
            self._connections.discard(oldest)
        return bool(silent)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket with that address, which does not listen yet. Raises OSError; `why_not` says it in words."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    door = socket.socket(family, kind, protocol)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(address)
    except OSError:
        door.close()
        raise
    return door


def why_not(error: OSError) -> str:
    """Why an address cannot be had."""
    return "another process listens there" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))


def stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """(stop, hurry): set by the first and by the second SIGTERM or SIGINT of this process."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    return stop, hurry
