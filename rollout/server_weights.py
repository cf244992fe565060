"""New weights for a server that samples: over the wire to `cispo serve`, through a folder to vLLM.

vLLM reads weights from a folder when it is told to (POST /collective_rpc, which it has with VLLM_SERVER_DEV_MODE=1). It
is paused meanwhile with its requests aborted, because its answers do not tell which version sampled a token: so every
answer is of one version, and its cache of prefixes, which is the old version's, is thrown away.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cispo.errors import WeightSyncError
from model.weight_files import WEIGHTS_FILE, write_tensors
from rollout.engine_config import ServerConfig
from rollout.server_client import Server, ServerFault
from rollout.weight_package import WeightPackage
from rollout.weight_wire import MEDIA_TYPE, digest_of, num_bytes, to_bytes

OUR_PATH = "/v1/weights"


def send_package(server: Server, package: WeightPackage, seconds: float) -> None:
    """Give `cispo serve` a version, unless another worker has. Raises WeightSyncError; the server keeps its old one."""
    try:
        if server.get(OUR_PATH) == {"version": package.manifest.version, "weights": digest_of(package)}:
            return
        server.upload(OUR_PATH, to_bytes(package), num_bytes(package), MEDIA_TYPE, seconds)
    except ServerFault as fault:
        raise WeightSyncError(
            f"The weights of version {package.manifest.version} did not reach a server: {fault}."
        ) from fault


class FolderUpdate:
    """A version for vLLM servers that read it from a folder below `settings.weights_folder`.

    Raises WeightSyncError, at once, when no such folder is set.
    """

    def __init__(self, servers: list[Server], settings: ServerConfig, version: int) -> None:
        if not settings.weights_folder:
            raise WeightSyncError(
                f"New weights reach {servers[0].url} through a folder, because it is not `cispo serve`: set "
                f"engine.server.weights_folder to one that this worker and vLLM see under the same path, and start "
                f"vLLM with VLLM_SERVER_DEV_MODE=1."
            )
        self._servers = servers
        self._seconds = settings.update_seconds
        self._version = version
        self.folder = Path(settings.weights_folder).expanduser().absolute() / f"version-{version}"

    def write(self, package: WeightPackage) -> None:
        """The weights as safetensors. Raises WeightSyncError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self.folder / WEIGHTS_FILE, dict(package.tensors()))
        except OSError as error:
            raise WeightSyncError(f"The weights cannot be written to {self.folder} ({error}).") from error

    @contextmanager
    def paused(self, previous: str) -> Iterator[None]:
        """The servers sample nothing, and have sent everything that they had sampled.

        `previous` is the version that they must have, "" for any. Raises WeightSyncError.
        """
        with self._as_sync_error():
            for server in self._servers:
                self._check_version(server, previous)
                server.post("/pause?mode=abort", {}, self._seconds)
        try:
            yield
        finally:
            # If this fails too, the next call to the server says so.
            with suppress(ServerFault):
                for server in self._servers:
                    server.post("/resume", {}, self._seconds)

    def reload(self) -> None:
        """Have the paused servers read the folder, and remove it. Raises WeightSyncError."""
        request = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        with self._as_sync_error():
            for server in self._servers:
                server.post("/collective_rpc", request, self._seconds)
                server.post("/update_weight_version", {"new_version": str(self._version)}, self._seconds)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_version(self, server: Server, previous: str) -> None:
        found = str(server.get("/weight_info")["weight_version"])
        if previous and found != previous:
            raise WeightSyncError(
                f"{server.url} has the weights of version {found} where this worker left {previous}: it was started "
                f"again and sampled with others since, or somebody else updates it too, and nobody could tell which "
                f"version samples; resume the run, or give each vLLM server one worker (cluster.num_workers=1 with all "
                f"of them in engine.server.urls)."
            )

    @contextmanager
    def _as_sync_error(self) -> Iterator[None]:
        try:
            yield
        except (ServerFault, KeyError, TypeError) as fault:
            raise WeightSyncError(
                f"The weights of version {self._version} were not taken ({fault}); a vLLM server needs "
                f"VLLM_SERVER_DEV_MODE=1, version 0.32 or later, and to see {self.folder}."
            ) from fault
