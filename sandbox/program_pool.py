"""What runs programs, wherever it does: in this process's cells, on other machines, or in actors of a cluster."""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType
from typing import Protocol

from sandbox.config import SandboxConfig
from sandbox.program import Execution, Limits, Program
from sandbox.remote import RemotePool
from sandbox.sandbox import SandboxPool


class ProgramPool(Protocol):
    """The contract of SandboxPool, which RemotePool and the pool of actors keep too. Thread-safe."""

    @property
    def limits(self) -> Limits:
        """What each program may use unless its call says otherwise."""

    def submit(self, program: Program, limits: Limits | None = None) -> Future[Execution]:
        """Queue `program`; cancelling the future takes it out of the line or kills it.

        Raises SandboxError when the pool is closed. Whatever else goes wrong is verdict SE.
        """

    def run(self, program: Program, limits: Limits | None = None) -> Execution:
        """Wait for a place, run `program`, return what happened."""

    async def run_async(self, program: Program, limits: Limits | None = None) -> Execution:
        """`run` for asyncio: the event loop goes on meanwhile, and cancelling the task ends the program."""

    def close(self) -> None:
        """Let running programs end, drop those in line."""

    def __enter__(self) -> ProgramPool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_pool(config: SandboxConfig) -> ProgramPool:
    """The pool that the configuration asks for. Raises SandboxError if it cannot run programs behind its wall."""
    if config.isolation == "remote":
        return RemotePool(config.remote, config.limits, size=config.size)
    return SandboxPool(config.size, config.limits, isolation=config.isolation, bwrap=config.bwrap, cgroup=config.cgroup)
