"""What `cispo serve` checks and keeps: who asks, for what, whether there is room, and which weights it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cispo.errors import WeightSyncError
from configs.fleet import ServeConfig
from launch.engine_thread import EngineThread, Ticket
from launch.serve_wire import RequestFault, Served, Wanted, read_request
from model import HybridLM, ModelError
from model.checkpoint import stream_folder
from rollout.completion_wire import OUR_OWNER
from rollout.engine import HybridEngine
from rollout.weight_package import WeightPackage, check_arrays
from rollout.weight_wire import MEDIA_TYPE, digest_of, from_bytes
from sandbox.http_messages import HttpFault, RequestHead, check_token

ROUTES = {
    "/health": ("GET",),
    "/v1/models": ("GET",),
    "/v1/weights": ("GET", "POST"),
    "/v1/completions": ("POST",),
    "/v1/chat/completions": ("POST",),
}


class Desk:
    """Judges requests; knows nothing of connections.

    Args:
        thread: the engine.
        lm: its model.
        config: the bounds.
        served: the name, the tokenizer and the longest sequence.
        token: what every request must show.
        num_slots: sequences that the engine samples at the same time.
    """

    def __init__(
        self, thread: EngineThread, lm: HybridLM, config: ServeConfig, served: Served, token: str, num_slots: int
    ) -> None:
        self.config = config
        self.served = served
        self.is_closing = False
        self._thread = thread
        self._lm = lm
        self._token = token.encode()
        self._room = num_slots + config.max_queue
        self._num_open = 0
        self._version, self._weights = 0, ""
        weight_bytes = sum(p.numel() * max(4, p.element_size()) for p in lm.parameters())
        self._most_weight_bytes = 2 * weight_bytes + (64 << 20)

    def admit(self, head: RequestHead, path: str) -> None:
        """Raise HttpFault 401, 404 or 405 unless the request shows the token and asks for something that is there."""
        check_token(head, self._token)
        if path not in ROUTES:
            raise HttpFault(404, f"there is no {path}; there are {', '.join(ROUTES)}")
        if head.method not in ROUTES[path]:
            raise HttpFault(405, f"{path} takes {' or '.join(ROUTES[path])}", Allow=", ".join(ROUTES[path]))

    def most_bytes(self, head: RequestHead) -> int:
        """The largest body that the request may have."""
        is_package = head.headers.get("content-type", "") == MEDIA_TYPE
        return self._most_weight_bytes if is_package else self.config.max_request_bytes

    def read(self, body: Any, *, is_chat: bool) -> Wanted:
        """A request for completions. Raises RequestFault, HttpFault 429 when there is no room, 503 when it ends."""
        wanted = read_request(body, self.served, is_chat=is_chat)
        if self.is_closing:
            raise HttpFault(503, "the server is stopping", Retry_After="1")
        if wanted.request.num_samples > self._room:
            raise RequestFault(f"n={wanted.request.num_samples} is more than the {self._room} that have room here")
        if self._num_open + wanted.request.num_samples > self._room:
            raise HttpFault(
                429, f"{self._num_open} sequences run or wait and {self._room} have room: ask later", Retry_After="1"
            )
        return wanted

    @asynccontextmanager
    async def sampling(self, wanted: Wanted) -> AsyncIterator[Ticket]:
        """The request under way; leaving early cancels it. Raises InvalidRequest."""
        self._num_open += wanted.request.num_samples
        try:
            yield await self._thread.submit(wanted.request, wanted.interval if wanted.is_stream else 0)
        finally:
            self._thread.cancel(wanted.request.id)
            self._num_open -= wanted.request.num_samples

    async def health(self) -> dict[str, Any]:
        """The answer to GET /health, once the engine has ended the step that it is in."""
        running, waiting = await self._thread.call(lambda engine: (engine.num_running, engine.num_waiting))
        return {
            "status": "stopping" if self.is_closing else "ok",
            **self.weights(),
            "running": running,
            "waiting": waiting,
            "room": self._room - self._num_open,
        }

    def models(self) -> dict[str, Any]:
        """The answer to GET /v1/models."""
        entry = {
            "id": self.served.name,
            "object": "model",
            "created": 0,
            "owned_by": OUR_OWNER,
            "max_model_len": self.served.max_length,
            "cispo": {**self.weights(), "logprobs": "of the distribution sampled from"},
        }
        return {"object": "list", "data": [entry]}

    def weights(self) -> dict[str, Any]:
        """Version of the weights, and the digest of what brought them."""
        return {"version": self._version, "weights": self._weights}

    async def take_package(self, body: bytearray) -> dict[str, Any]:
        """New weights that came over the wire. Raises WeightSyncError; the old ones are then kept."""
        package = from_bytes(body)
        if (package.manifest.version, digest_of(package)) != (self._version, self._weights):
            await self._thread.call(lambda engine: _load(engine, package))
            self._version, self._weights = package.manifest.version, digest_of(package)
        return self.weights()

    async def take_folder(self, body: Any) -> dict[str, Any]:
        """{"version", "path"}: new weights from a folder that this machine sees. Raises as `take_package` does."""
        if not isinstance(body, dict) or set(body) != {"version", "path"}:
            raise RequestFault(f'weights come as {MEDIA_TYPE}, or as JSON {{"version": 3, "path": "/a/model/folder"}}')
        version, path = body["version"], body["path"]
        if type(version) is not int or version < 0 or not isinstance(path, str):
            raise RequestFault(f"version must be a whole number and path a text, got {version!r} and {path!r}")
        await self._thread.call(lambda engine: _load_folder(engine, self._lm, Path(path), version))
        self._version = version
        self._weights = hashlib.sha256(json.dumps([path, version]).encode()).hexdigest()
        return self.weights()


def _load(engine: HybridEngine, package: WeightPackage) -> None:
    check_arrays(package.manifest, package.arrays)
    engine.load_weights(package.tensors(), package.manifest.version)


def _load_folder(engine: HybridEngine, lm: HybridLM, folder: Path, version: int) -> None:
    try:
        engine.load_weights(stream_folder(lm, folder), version)
    except ModelError as error:
        raise WeightSyncError(f"Version {version} cannot be loaded, and the old one is kept: {error}") from error
