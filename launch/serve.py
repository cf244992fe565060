"""`cispo serve`: a policy behind the OpenAI API, with weights that can be replaced while it samples.

    GET  /health          /v1/models          /v1/weights
    POST /v1/completions  /v1/chat/completions  /v1/weights

All connections are batched together by one HybridEngine. Every request shows the token. docs/engines.md is the manual.
"""

from __future__ import annotations

import asyncio
import logging
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
from sandbox.http_server import HttpServer, bound_socket, stop_signals, why_not

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
        await _serve(desk, thread, door, where)

    asyncio.run(run())


def _bound(config: ServeConfig) -> socket.socket:
    """A socket with the address of the server, which does not listen yet. Raises CispoError."""
    try:
        return bound_socket(config.host, config.port)
    except OSError as error:
        raise CispoError(
            f"The server cannot listen on {config.host}:{config.port} ({why_not(error)}): choose another serve.port or "
            f"serve.host."
        ) from error


async def _serve(desk: Desk, thread: EngineThread, door: socket.socket, where: str) -> None:
    """Until a signal comes, or the engine breaks down, which is raised."""
    server = HttpServer(
        lambda reader, writer: Connection(reader, writer, desk), desk.config, "the server", fault=fault_response
    )
    await server.listen(door)
    stop, hurry = stop_signals()
    log.info("serving %s on %s, token %s", desk.served.name, server.url, where)
    first: set[asyncio.Future[Any]] = {asyncio.ensure_future(stop.wait()), thread.broken}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if thread.broken.done():
        thread.broken.result()
    desk.is_closing = True
    await server.drain(hurry)
    thread.stop()
    log.info("stopped serving %s", desk.served.name)
