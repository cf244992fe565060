"""Runs the sandbox service in this process: `cispo sandbox serve`, and the same where only the standard library is.

    python -m sandbox.serve '{"size": 8, "service": {"port": 8700}}'      # the keys below `sandbox`

A machine that runs strangers' programs needs bubblewrap and Python, and neither torch nor anything else of ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
from collections.abc import Sequence

from sandbox import wire
from sandbox.access_token import SERVICE_TOKEN
from sandbox.config import SandboxConfig
from sandbox.errors import IsolationError, SandboxError
from sandbox.http_server import stop_signals
from sandbox.program_pool import ProgramPool, open_pool
from sandbox.service import Service

_NOT_SERVED = ("unsafe", "remote")
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Entry point of `python -m sandbox.serve`; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        values = json.loads(arguments[0]) if arguments else {}
        serve(wire.from_json(SandboxConfig, values, "sandbox"))
    except (SandboxError, ValueError) as error:
        print(f"cispo: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def serve(config: SandboxConfig) -> None:
    """Serve until SIGTERM or SIGINT; accepted programs then end first, unless a second signal comes.

    Raises IsolationError unless this machine isolates programs, SandboxError when there can be no token or the
    address is taken.
    """
    if config.isolation in _NOT_SERVED:
        raise IsolationError(
            f"the sandbox service runs strangers' programs, so it refuses sandbox.isolation={config.isolation}: it "
            "must isolate them itself"
        )
    token, where = SERVICE_TOKEN.read_or_make(config.service.token_file)
    _allow_descriptors()
    with open_pool(config) as pool:
        asyncio.run(_serve(config, pool, token, where))


async def _serve(config: SandboxConfig, pool: ProgramPool, token: str, where: str) -> None:
    service = Service(pool, config.service, token=token, tier=config.isolation, num_cells=config.size)
    await service.start()
    stop, hurry = stop_signals()
    _log.info("sandbox service on %s: %d cells (%s), token %s", service.url, config.size, config.isolation, where)
    await stop.wait()
    await service.stop(hurry)
    _log.info("sandbox service stopped")


def _allow_descriptors() -> None:
    """As many as the system lets us have: a connection is one, and a running program some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
