"""Starts and ends what the parts of a run live in: nothing at all (inline), or Ray on this machine (local)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cispo.errors import CispoError, DeadlineExceeded
from configs.fleet import ClusterConfig
from launch.actors import Handle, InlineHandle, RayHandle

Place = Callable[..., Handle]
"""place(name, make, *arguments, num_gpus=0, is_worker=False) -> a handle on make(*arguments); see RayHandle."""


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[Place]:
    """A place for parts; everything placed is ended on the way out, however the run ends."""
    with ExitStack() as stack:
        if config.kind == "local" and _start_ray(config):
            stack.callback(_stop_ray)

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
    """Wait for all, `seconds` together; the first that fails raises its own sentence."""
    end = time.monotonic() + seconds
    for handle in handles:
        try:
            handle.started().result(timeout=max(0.0, end - time.monotonic()))
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"The driver waited {seconds:g} s for {handle.name} to start; the machine may be out of memory or "
                f"cores (Ray's logs are in /tmp/ray/session_latest/logs), or raise cluster.start_seconds."
            ) from error


def _start_ray(config: ClusterConfig) -> bool:
    """Start Ray on this machine; False if this process had done so already, whose it then stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    try:
        ray.init(
            address="local",  # never somebody else's cluster, whatever RAY_ADDRESS or an earlier `ray start` says
            num_cpus=config.num_workers + 1,
            include_dashboard=False,
            object_store_memory=config.object_store_mb << 20,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
    except (RuntimeError, ValueError, ConnectionError, TimeoutError) as error:
        raise CispoError(
            f"Ray could not be started on this machine ({' '.join(str(error).split())}); its logs are in "
            f"/tmp/ray/session_latest/logs, and cluster=inline trains without it."
        ) from error
    return True


def _stop_ray() -> None:
    import ray

    ray.shutdown()
