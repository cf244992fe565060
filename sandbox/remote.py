"""The remote tier: a pool whose programs run in `cispo sandbox serve` on other machines.

Every wait has a deadline, and the one for an answer measures silence and not work: a service that has a long line
sends a line feed every few seconds. So a busy service is waited for and a dead one is noticed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from typing import Any

from sandbox import wire
from sandbox.access_token import SERVICE_TOKEN
from sandbox.endings import system_error
from sandbox.errors import IsolationError
from sandbox.http_messages import (
    END_OF_HEAD,
    HttpFault,
    ResponseHead,
    body_length,
    parse_response,
    request_bytes,
)
from sandbox.program import Execution, Limits, Program
from sandbox.service_config import RemoteConfig, split_url
from sandbox.spread import SiteBusy, SiteFault, SpreadPool

_IDLE_SECONDS = 30.0
"""A connection that was idle for longer is not used again; services close theirs after 75 seconds."""
_MORE_BYTES = 1 << 20
_JSON_GROWTH = 6  # a control character of the output is \u0000 in JSON
_log = logging.getLogger(__name__)


class RemotePool(SpreadPool):
    """Runs programs at the services of `config.urls`; otherwise as SandboxPool.

    Args:
        config: the services and the patience with them.
        limits: what a program may use.
        size: programs that are under way at the same time.

    Raises IsolationError, in one sentence, when no service answers, when one refuses the token, or when it would not
    grant these limits; SandboxError when there is no token.
    """

    def __init__(self, config: RemoteConfig, limits: Limits | None = None, *, size: int = 64) -> None:
        if not config.urls:
            raise ValueError("a remote pool needs at least one service: sandbox.remote.urls=[http://host:port,...]")
        token = SERVICE_TOKEN.read(config.token_file)
        self._services = [HttpSite(url, token, config) for url in config.urls]
        super().__init__(
            self._services, limits, size=size, tries=config.tries, deadline_seconds=config.deadline_seconds
        )
        try:
            self._await(self._check())
        except BaseException:
            self.close()
            raise

    async def _check(self) -> None:
        """Ask every service for its health. One that does not answer is rested; if none does, nothing can work."""
        answers = await asyncio.gather(*(site.check(self.limits) for site in self._services), return_exceptions=True)
        faults = []
        for site, answer in zip(self._services, answers, strict=True):
            if isinstance(answer, SiteFault):
                faults.append(f"{site.name}: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
        if len(faults) == len(self._services):
            raise IsolationError(
                f"programs cannot be isolated because no sandbox service answers ({'; '.join(faults)}): start one with "
                "`cispo sandbox serve`, or correct sandbox.remote.urls"
            )
        for fault in faults:
            _log.warning("a sandbox service does not answer, the others go on without it: %s", fault)


class HttpSite:
    """One service, over as many connections as there are programs under way; idle ones are kept."""

    distance = 0

    def __init__(self, url: str, token: str, config: RemoteConfig) -> None:
        self.name = url
        self.num_cells = 1
        self._host, self._port = split_url(url)
        self._token = token
        self._config = config
        self._idle: list[_Connection] = []

    async def check(self, limits: Limits) -> None:
        """See that the service works, takes the token and grants `limits`.

        Raises SiteFault if it does not answer, IsolationError if what it answers cannot be mended by waiting.
        """
        head, body = await self._ask("GET", "/health", b"", _MORE_BYTES)
        if head.status == 401:
            raise IsolationError(
                f"the sandbox service {self.name} refuses the token: sandbox.remote.token_file (or "
                "CISPO_SANDBOX_TOKEN) must hold the one that the service was started with"
            )
        try:
            health = json.loads(body)
            cells, most = int(health["cells"]), health["most"]
            excess = [f"{name}={getattr(limits, name):g}" for name in most if getattr(limits, name) > most[name]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IsolationError(f"{self.name} is not a sandbox service: it answers {body[:80]!r}") from error
        if excess:
            raise IsolationError(
                f"the sandbox service {self.name} grants at most {most}, less than sandbox.limits ({', '.join(excess)})"
            )
        self.num_cells = max(1, cells)

    async def run(self, program: Program, limits: Limits) -> Execution:
        """See Site."""
        most = _MORE_BYTES + 2 * _JSON_GROWTH * limits.output_bytes
        head, body = await self._ask("POST", "/run", wire.job_bytes(program, limits), most)
        if head.status == 200:
            try:
                return wire.read_execution(body)
            except wire.WireError as error:
                raise SiteFault(str(error)) from error
        if head.status in (429, 503):
            raise SiteBusy(_retry_seconds(head))
        reason = f"the service answered {head.status}: {body[:500].decode(errors='replace').strip()}"
        if head.status in (400, 413):  # it will not change its mind
            return system_error(reason)
        raise SiteFault(reason)

    async def close(self) -> None:
        """See Site."""
        while self._idle:
            self._idle.pop().drop()

    async def _ask(self, method: str, path: str, body: bytes, most: int) -> tuple[ResponseHead, bytes]:
        """Send a request and return what is answered, on an idle connection or a new one. Raises SiteFault."""
        request = request_bytes(method, path, f"{self._host}:{self._port}", self._token, body)
        while True:
            connection = self._idle_connection() or await self._connect()
            try:
                head, answer = await connection.exchange(request, most)
            except (OSError, EOFError, HttpFault, asyncio.LimitOverrunError) as error:
                connection.drop()
                if connection.may_be_stale and isinstance(error, ConnectionError | EOFError):
                    continue  # closed by the service while it was idle; nothing was lost
                raise SiteFault(_sentence(error)) from error
            except BaseException:
                connection.drop()  # cancelled: the end of the connection kills the program
                raise
            connection.rest_or_drop(head, self._idle)
            return head, answer

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since + _IDLE_SECONDS > time.monotonic():
                return connection
            connection.drop()
        return None

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._config.connect_seconds):
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 18)
        except TimeoutError as error:
            raise SiteFault(f"no connection within {self._config.connect_seconds:g} seconds") from error
        except OSError as error:
            raise SiteFault(_sentence(error)) from error
        return _Connection(reader, writer, self._config.silence_seconds)


@dataclass
class _Connection:
    """A connection to a service.

    Attributes:
        idle_since: when its last answer was read.
        may_be_stale: it was used before and nothing has been heard of the present request yet.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    silence_seconds: float
    idle_since: float = 0.0
    may_be_stale: bool = False

    async def exchange(self, request: bytes, most: int) -> tuple[ResponseHead, bytes]:
        """One request, one answer of at most `most` bytes.

        Raises OSError (TimeoutError after silence), EOFError, HttpFault or LimitOverrunError.
        """
        self.writer.write(request)
        async with asyncio.timeout(self.silence_seconds):
            await self.writer.drain()
        head = parse_response(await self._until(END_OF_HEAD))
        self.may_be_stale = False
        if head.headers.get("transfer-encoding") == "chunked":
            return head, await self._chunks(most)
        return head, await self._exactly(body_length(head, most))

    def rest_or_drop(self, head: ResponseHead, idle: list[_Connection]) -> None:
        """After an answer: keep it for the next request unless the service wants it closed."""
        if head.headers.get("connection", "").lower() == "close":
            self.drop()
            return
        self.idle_since, self.may_be_stale = time.monotonic(), True
        idle.append(self)

    def drop(self) -> None:
        """Close it at once; what is under way on it is lost."""
        self.writer.transport.abort()

    async def _chunks(self, most: int) -> bytes:
        parts = bytearray()
        while True:
            line = (await self._until(b"\r\n"))[:-2]
            if re.fullmatch(b"[0-9a-fA-F]{1,12}", line) is None:
                raise HttpFault(502, f"a chunk's length must be hexadecimal, got {line[:80]!r}")
            size = int(line, 16)
            if len(parts) + size > most:
                raise HttpFault(502, f"the answer has more than {most} bytes")
            data = await self._exactly(size + 2)
            if size == 0:
                return bytes(parts)
            parts += data[:-2]

    async def _until(self, separator: bytes) -> bytes:
        async with asyncio.timeout(self.silence_seconds):
            return await self.reader.readuntil(separator)

    async def _exactly(self, size: int) -> bytes:
        """`size` bytes; the clock starts anew with each piece that comes."""
        parts = bytearray()
        while len(parts) < size:
            async with asyncio.timeout(self.silence_seconds):
                part = await self.reader.read(size - len(parts))
            if not part:
                raise EOFError("the connection ended within an answer")
            parts += part
        return bytes(parts)


def _retry_seconds(head: ResponseHead) -> float:
    text = head.headers.get("retry-after", "")
    return min(10.0, float(text)) if text.isdigit() else 1.0


def _sentence(error: Any) -> str:
    """What happened to a connection, in words."""
    if isinstance(error, TimeoutError):
        return "it said nothing for too long"
    if isinstance(error, EOFError):
        return "it closed the connection without an answer"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
