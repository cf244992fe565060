"""Starts and ends what the parts of a run live in: nothing at all (inline), or Ray on this machine (local)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from configs.fleet import ClusterConfig
from launch.actors import Handle, InlineHandle, RayHandle

Place = Callable[..., Handle]
"""place(name, make, *arguments) -> a handle on make(*arguments)."""


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[Place]:
    """A place for parts; everything placed is ended on the way out, however the run ends."""
    handles: list[Handle] = []
    if config.kind == "local":
        _start_ray(config)

    def place(name: str, make: Callable[..., Any], *arguments: Any) -> Handle:
        if config.kind == "inline":
            handles.append(InlineHandle(name, make, *arguments))
        else:
            handles.append(RayHandle(name, make, *arguments, num_threads=config.num_threads))
        return handles[-1]

    try:
        yield place
    finally:
        for handle in handles:
            handle.stop()
        if config.kind == "local":
            _stop_ray()


def wait_until_started(handles: list[Handle], seconds: float) -> None:
    """Wait for all; the first that fails raises its own sentence."""
    for handle in handles:
        if isinstance(handle, RayHandle):
            handle.wait_until_started(seconds)


def _start_ray(config: ClusterConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ray.init(
        num_cpus=config.num_workers + 1,
        include_dashboard=False,
        object_store_memory=config.object_store_mb << 20,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
    )


def _stop_ray() -> None:
    import ray

    ray.shutdown()
