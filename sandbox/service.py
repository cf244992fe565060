"""The HTTP service of the sandbox.

    GET  /health    tier, cells, queue, verdict counts         GET /metrics   the same for Prometheus
    POST /run       one program -> its execution               POST /batch    many -> a stream of executions

sandbox/wire.py has the JSON, docs/sandbox_service.md the manual. Every request shows the token.
"""

from __future__ import annotations

import asyncio
import errno

from sandbox.errors import SandboxError
from sandbox.http_server import HttpServer, bound_socket, why_not
from sandbox.program_pool import ProgramPool
from sandbox.service_config import ServiceConfig
from sandbox.service_connection import Connection
from sandbox.service_desk import Desk
from sandbox.service_jobs import JobLine


class Service(HttpServer):
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
        desk = Desk(self._line, config, pool.limits, token, tier)
        super().__init__(lambda reader, writer: Connection(reader, writer, desk), config, "the sandbox service")

    async def start(self) -> None:
        """Listen. Raises SandboxError when the address cannot be had."""
        host, port = self._config.host, self._config.port
        try:
            await self.listen(bound_socket(host, port))
        except OSError as error:
            raise SandboxError(
                f"the sandbox service cannot listen on {host}:{port} ({why_not(error)}): choose another "
                f"sandbox.service.port{'' if error.errno == errno.EADDRINUSE else ' or sandbox.service.host'}"
            ) from error

    async def stop(self, hurry: asyncio.Event) -> None:
        """Refuse new programs and let those that were accepted end, for drain_seconds or until `hurry` is set."""
        self._line.is_closing = True
        await self.drain(hurry)
