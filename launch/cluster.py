"""Starts and ends what the parts of a run live in: nothing (inline), Ray on this machine (local), or a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cispo.errors import CispoError, DeadlineExceeded, WorkerDied
from configs.fleet import ClusterConfig
from launch.actors import AS_INHERITED, Handle, InlineHandle, RayHandle

log = logging.getLogger(__name__)

START_AGAIN_SECONDS = 2.0

RAY_TROUBLE = (RuntimeError, ValueError, OSError)
"""What ray.init raises."""

Place = Callable[..., Handle]
"""place(name, make, *arguments, num_gpus=0, is_worker=False) -> a handle on make(*arguments); see RayHandle."""


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[Place]:
    """A place for parts; everything placed is ended on the way out, however the run ends."""
    with ExitStack() as stack:
        if config.kind != "inline" and _start_ray(config):
            stack.callback(_stop_ray)
        if config.kind == "ray":
            _wait_for_nodes(config)

        def place(
            name: str, make: Callable[..., Any], *arguments: Any, num_gpus: float = 0, is_worker: bool = False
        ) -> Handle:
            handle: Handle
            if config.kind == "inline":
                handle = InlineHandle(name, make, *arguments)
            else:
                handle = RayHandle(
                    name, make, *arguments, num_threads=config.num_threads, num_gpus=num_gpus, is_worker=is_worker
                )
            stack.callback(handle.stop)
            return handle

        yield place


def wait_until_started(handles: list[Handle], seconds: float) -> None:
    """Wait for all, `seconds` together; the first that fails raises its own sentence.

    One that dies is started again, twice: a node that has just been lost is still given actors for some seconds.
    """
    end = time.monotonic() + seconds
    for handle in handles:
        for tries_left in (2, 1, 0):
            try:
                handle.started().result(timeout=max(0.0, end - time.monotonic()))
                break
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"The driver waited {seconds:g} s for {handle.name} to start; the machine may be out of memory or "
                    f"cores (Ray's logs are in /tmp/ray/session_latest/logs), or raise cluster.start_seconds."
                ) from error
            except WorkerDied as error:
                if not tries_left:
                    raise
                log.warning("%s It had not started yet, and is started again.", error)
                time.sleep(START_AGAIN_SECONDS)
                handle.restart()


def _start_ray(config: ClusterConfig) -> bool:
    """Start Ray on this machine, or join a cluster; False if this process had done so already, whose it then stays."""
    for name, value in ({"RAY_USAGE_STATS_ENABLED": "0"} | AS_INHERITED).items():
        os.environ.setdefault(name, value)
    if config.kind == "local":
        lock_ray()
    import ray

    is_ours = not ray.is_initialized()
    if is_ours and config.kind == "ray":
        _join_cluster(config)
    elif is_ours:
        _start_here(config)
    return is_ours


def lock_ray() -> None:
    """Let nobody into the Ray that this process will start but who has its token: it is at a port, and runs code.

    Ray reads these variables when it is imported, and all its processes inherit them; those that are set already stay.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        log.warning("ray was imported before it was locked: who can reach this machine's ports can use it for this run")
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start_here(config: ClusterConfig) -> None:
    try:
        _init(
            "local",  # never somebody else's cluster, whatever RAY_ADDRESS or an earlier `ray start` says
            num_cpus=config.num_workers + 1,
            include_dashboard=False,
            object_store_memory=config.object_store_mb << 20,
        )
    except RAY_TROUBLE as error:
        raise CispoError(
            f"Ray could not be started on this machine ({' '.join(str(error).split())}); its logs are in "
            f"/tmp/ray/session_latest/logs, and cluster=inline trains without it."
        ) from error


def _join_cluster(config: ClusterConfig) -> None:
    try:
        _wait_for_head(config)
        _init(config.address)
    except RAY_TROUBLE as error:
        raise CispoError(
            f"The Ray cluster at cluster.address={config.address} cannot be joined ({' '.join(str(error).split())}); "
            f"start it by `ray start --head` on one node and `ray start --address=<head>:6379` on the others, or train "
            f"on this machine alone by cluster=local."
        ) from error


def _wait_for_head(config: ClusterConfig) -> None:
    """Until somebody listens at the address, for start_seconds: Ray by itself tries for minutes. Raises OSError."""
    host, _, port = config.address.rpartition(":")
    if not host or "://" in config.address:
        return  # not an address, but where to look for one
    end = time.monotonic() + config.start_seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _init(address: str, **settings: Any) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False, **settings)


def _wait_for_nodes(config: ClusterConfig) -> None:
    """Until `num_nodes` are there. Raises DeadlineExceeded with those that are."""
    import ray

    end, told = time.monotonic() + config.start_seconds, -1
    while len(nodes := [node for node in ray.nodes() if node["Alive"]]) < config.num_nodes:
        if time.monotonic() > end:
            names = ", ".join(sorted(node["NodeManagerAddress"] for node in nodes))
            raise DeadlineExceeded(
                f"The driver waited {config.start_seconds:g} s for cluster.num_nodes={config.num_nodes} nodes of "
                f"the Ray cluster and sees {len(nodes)} ({names}); look at the logs of those that are missing, raise "
                f"cluster.start_seconds, or ask for fewer."
            )
        if len(nodes) != told:
            told = len(nodes)
            log.info("waiting for %d nodes; %d are there", config.num_nodes, told)
        time.sleep(0.2)


def _stop_ray() -> None:
    import ray

    ray.shutdown()
