"""What the service checks before it runs anything: who asks, for what, and within which bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox import wire
from sandbox.http_messages import HttpFault, RequestHead, check_token
from sandbox.program import Limits
from sandbox.service_config import ServiceConfig
from sandbox.service_jobs import Job, JobLine

ROUTES = {"/health": "GET", "/metrics": "GET", "/run": "POST", "/batch": "POST"}


class Desk:
    """Judges requests; knows nothing of connections.

    Args:
        line: where accepted programs go.
        config: the bounds.
        limits: of a program whose request names none.
        token: what every request must show.
        tier: the pool's isolation, for /health.
    """

    def __init__(self, line: JobLine, config: ServiceConfig, limits: Limits, token: str, tier: str) -> None:
        self.line = line
        self.config = config
        self._limits = limits
        self._token = token.encode()
        self._tier = tier
        self._most = {"wall_seconds": config.max_wall_seconds, "memory_bytes": config.max_memory_bytes}

    def admit(self, head: RequestHead) -> None:
        """Raise HttpFault 401, 404 or 405 unless the request shows the token and asks for something that is there."""
        check_token(head, self._token)
        if head.path not in ROUTES:
            raise HttpFault(404, f"there is no {head.path}; there are {', '.join(ROUTES)}")
        if head.method != ROUTES[head.path]:
            raise HttpFault(405, f"{head.path} takes {ROUTES[head.path]}", Allow=ROUTES[head.path])

    def read_job(self, body: bytes | bytearray) -> Job:
        """The program of POST /run. Raises HttpFault 400."""
        try:
            request = wire.read_object(body, ("program", "limits"))
            return wire.read_program(request.get("program")), self._granted(request.get("limits"))
        except wire.WireError as error:
            raise HttpFault(400, str(error)) from error

    def read_batch(self, body: bytes | bytearray) -> Sequence[Job]:
        """The programs of POST /batch. Raises HttpFault 400."""
        try:
            request = wire.read_object(body, ("programs", "limits"))
            limits, programs = self._granted(request.get("limits")), request.get("programs")
            if not isinstance(programs, list) or not programs:
                raise wire.WireError("programs must be a list with at least one program")
            return [(wire.read_program(each, f"programs[{at}]"), limits) for at, each in enumerate(programs)]
        except wire.WireError as error:
            raise HttpFault(400, str(error)) from error

    def health(self) -> dict[str, Any]:
        """The answer to GET /health."""
        return {"tier": self._tier, "most": self._most, **self.line.health()}

    def _granted(self, value: Any) -> Limits:
        """The limits that a request asks for, if it may."""
        limits = wire.read_limits(value, self._limits)
        for name, most in self._most.items():
            if getattr(limits, name) > most:
                raise wire.WireError(f"limits.{name} may be at most {most:g} here, got {getattr(limits, name):g}")
        return limits
