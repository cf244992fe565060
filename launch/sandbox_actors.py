"""The sandbox as Ray actors: sandbox.placement=node. One actor per node, shared by all rollout workers.

Workers that have a pool each leave cells idle while others wait, and their programs compete with the engines for the
cores of a node in numbers that nobody chose. An actor's pool has as many cells as it was told, its programs come
from everybody, and a worker whose node is busy uses another node's. Ray restarts an actor that dies; what it was
running is tried again elsewhere, and is a system error only if that fails too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cispo.errors import DeadlineExceeded
from configs.schema import RunConfig
from launch.actors import NEXT_TO_NO_CPU, our_error
from launch.build import needs_sandbox
from sandbox import Execution, Limits, Program, SandboxConfig, open_pool
from sandbox.service_jobs import JobLine
from sandbox.spread import SiteFault, SpreadPool

TRIES = 5
DEADLINE_SECONDS = 900.0
"""As in sandbox.remote: how often a program is tried, and how long in all, before it is a system error."""

_MAX_QUEUE = 1 << 20  # the callers bound what they send


class SandboxHost:
    """What a sandbox actor runs: a pool behind a line, on the actor's event loop."""

    def __init__(self, config: SandboxConfig) -> None:
        # Ray would tell of an error in here as text only, as the death of the actor; so it waits for the first call.
        self._line: JobLine | None = None
        self._error: Exception | None = None
        try:
            self._line = JobLine(open_pool(config), num_cells=config.size, max_queue=_MAX_QUEUE)
        except Exception as error:
            self._error = error

    async def started(self) -> int:
        """The id of its process; raises what kept the pool from starting."""
        self._ready_line()
        return os.getpid()

    async def run(self, program: Program, limits: Limits) -> Execution:
        """Run a program; cancelling the call takes it out of the line or kills it."""
        (task,) = self._ready_line().start([(program, limits)])
        return await task

    def _ready_line(self) -> JobLine:
        if self._error is not None:
            raise self._error
        assert self._line is not None
        return self._line


class ActorSite:
    """A sandbox actor as a site of a SpreadPool."""

    def __init__(self, name: str, actor: Any, num_cells: int, distance: int) -> None:
        self.name = name
        self.num_cells = num_cells
        self.distance = distance
        self._actor = actor

    async def run(self, program: Program, limits: Limits) -> Execution:
        """See Site."""
        import ray

        reference = self._actor.run.remote(program, limits)
        try:
            execution: Execution = await asyncio.wrap_future(reference.future())
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except ray.exceptions.RayError as error:
            raise SiteFault(str(our_error(error, self.name))) from error
        return execution

    async def close(self) -> None:
        """See Site; the actor is the driver's."""


@dataclass(frozen=True)
class SandboxActors:
    """The actors of a run, as the driver started them; can be sent to where programs come from.

    Attributes:
        config: of each actor's pool.
        actors: Ray's handles.
        node_ids: the node of each.
    """

    config: SandboxConfig
    actors: tuple[Any, ...]
    node_ids: tuple[str, ...]

    def connect(self) -> SpreadPool:
        """A pool over all actors, those of the caller's node first. The caller closes it; the actors live on."""
        import ray

        here, cells = ray.get_runtime_context().get_node_id(), self.config.size
        sites = [
            ActorSite(f"sandbox-{number}", actor, cells, distance=int(node_id != here))
            for number, (actor, node_id) in enumerate(zip(self.actors, self.node_ids, strict=True))
        ]
        size = 2 * cells * len(sites)
        return SpreadPool(sites, self.config.limits, size=size, tries=TRIES, deadline_seconds=DEADLINE_SECONDS)

    def wait_until_started(self, seconds: float) -> list[int]:
        """The ids of their processes, when all of them can isolate programs.

        Raises the first one's own IsolationError, WorkerDied, or DeadlineExceeded.
        """
        import ray

        end = time.monotonic() + seconds
        pids = []
        for number, actor in enumerate(self.actors):
            try:
                pids.append(int(ray.get(actor.started.remote(), timeout=max(0.0, end - time.monotonic()))))
            except ray.exceptions.GetTimeoutError as error:
                raise DeadlineExceeded(
                    f"The driver waited {seconds:g} s for sandbox-{number} to start; the node may be out of memory or "
                    f"cores, or raise cluster.start_seconds."
                ) from error
            except ray.exceptions.RayError as error:
                raise our_error(error, f"sandbox-{number}") from error
        return pids

    def stop(self) -> None:
        """End them, and with them whatever they run."""
        import ray

        for actor in self.actors:
            ray.kill(actor)


def start_actors(config: SandboxConfig) -> SandboxActors:
    """Start sandbox actors on the nodes of the running Ray: one for each, or `config.num_actors` dealt in turn."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
    node_ids = [nodes[number % len(nodes)] for number in range(config.num_actors or len(nodes))]
    actors = []
    for number, node_id in enumerate(node_ids):
        # A class of its own name makes the list of processes say who is who: ray::sandbox_0.run
        resident = ray.remote(type(f"sandbox_{number}", (SandboxHost,), {}))
        options = resident.options(
            num_cpus=NEXT_TO_NO_CPU,
            max_restarts=-1,
            max_concurrency=100_000,  # calls wait in the actor's line, where they can be cancelled
            # Soft: when the node is gone for good, its actor comes back on another one.
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=True),
        )
        actors.append(options.remote(config))
    return SandboxActors(config, tuple(actors), tuple(node_ids))


@contextmanager
def shared_sandboxes(config: RunConfig) -> Iterator[SandboxActors | None]:
    """The sandbox actors of a run while it lasts; None when its workers have pools of their own or need none."""
    if config.sandbox.placement != "node" or not needs_sandbox(config):
        yield None
        return
    sandboxes = start_actors(config.sandbox)
    try:
        sandboxes.wait_until_started(config.cluster.start_seconds)
        yield sandboxes
    finally:
        sandboxes.stop()
