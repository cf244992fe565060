"""One pool over several sites that run programs: services on other machines, or actors of a cluster.

A program says nothing about its site and is idempotent, so what fails at one site is tried at another. What has
failed everywhere is verdict SE with the reasons: never a wrong verdict, never a wait without an end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from sandbox.endings import system_error
from sandbox.errors import SandboxError
from sandbox.program import Execution, Limits, Program, Verdict

FIRST_REST_SECONDS = 0.5
LONGEST_REST_SECONDS = 8.0
"""A site that failed is left alone for the first, and for twice as long each time it fails again, up to the second."""

T = TypeVar("T")


class SiteFault(Exception):
    """A site failed; that says nothing about the program."""


class SiteBusy(Exception):
    """A site takes no more programs for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"busy for {seconds:g} s")
        self.seconds = seconds


class Site(Protocol):
    """A place that runs programs.

    Attributes:
        name: what an error calls it.
        num_cells: programs that it runs at the same time.
        distance: among sites with a free cell the nearest is taken.
    """

    name: str
    num_cells: int
    distance: int

    async def run(self, program: Program, limits: Limits) -> Execution:
        """Run it; a cancelled call kills it. Raises SiteFault or SiteBusy."""

    async def close(self) -> None:
        """Give back what the site holds."""


class _Station:
    """What the pool knows of a site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.in_flight = 0
        self.resting_until = 0.0
        self._rest_seconds = FIRST_REST_SECONDS

    def cost(self, failed: set[str]) -> tuple[bool, float, int, float]:
        """Smaller is better: not tried yet, a free cell, near, least loaded."""
        load = (self.in_flight + 1) / self.site.num_cells
        return self.site.name in failed, max(1.0, load), self.site.distance, load

    def failed(self, now: float) -> None:
        """Rest. Programs that were under way together fail together, which counts once."""
        if self.resting_until <= now:
            self.resting_until = now + self._rest_seconds
            self._rest_seconds = min(2 * self._rest_seconds, LONGEST_REST_SECONDS)

    def answered(self) -> None:
        """It works (again)."""
        self._rest_seconds = FIRST_REST_SECONDS


class SpreadPool:
    """The API of SandboxPool over sites.

    Args:
        sites: at least one; they belong to the pool from now on.
        limits: what a program may use.
        size: programs that are under way at the same time; more of them wait in line here.
        tries: how often a program is given to a site before its failure is final.
        deadline_seconds: time from a program's first try to its end.
    """

    def __init__(
        self, sites: Sequence[Site], limits: Limits | None, *, size: int, tries: int, deadline_seconds: float
    ) -> None:
        self._limits = limits or Limits()
        self._stations = [_Station(site) for site in sites]
        self._tries = tries
        self._deadline_seconds = deadline_seconds
        self._places = asyncio.Semaphore(size)
        self._waiting: set[asyncio.Task[Any]] = set()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-spread", daemon=True)
        self._thread.start()

    @property
    def limits(self) -> Limits:
        """What each program may use."""
        return self._limits

    def submit(self, program: Program, limits: Limits | None = None) -> Future[Execution]:
        """Queue `program`; cancelling the future kills it. Raises SandboxError when the pool is closed."""
        with self._lock:
            if self._is_closed:
                raise SandboxError("the sandbox pool is closed and takes no more programs")
            return asyncio.run_coroutine_threadsafe(self._run(program, limits or self._limits), self._loop)

    def run(self, program: Program, limits: Limits | None = None) -> Execution:
        """Wait for a place, run `program`, return what happened."""
        return self.submit(program, limits).result()

    async def run_async(self, program: Program, limits: Limits | None = None) -> Execution:
        """`run` for asyncio: the event loop goes on meanwhile, and cancelling the task ends the program."""
        return await asyncio.wrap_future(self.submit(program, limits))

    def close(self) -> None:
        """Let programs end that are under way (their deadline sees to that), drop those in line."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._await(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> SpreadPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _end(self) -> None:
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, *self._under_way, return_exceptions=True)
        for station in self._stations:
            await station.site.close()

    async def _run(self, program: Program, limits: Limits) -> Execution:
        """In line first, then on its way. Consumes a place; the end of another program gives it."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            await self._places.acquire()
        finally:
            self._waiting.discard(task)
        self._under_way.add(task)
        reasons: list[str] = []
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self._try(program, limits, reasons)
        except TimeoutError:
            return system_error("; ".join([*reasons, f"no verdict within {self._deadline_seconds:g} seconds"]))
        finally:
            self._under_way.discard(task)
            self._places.release()

    async def _try(self, program: Program, limits: Limits, reasons: list[str]) -> Execution:
        """Give it to one site after the other; `reasons` collects why it has no verdict yet."""
        failed: set[str] = set()
        told: Execution | None = None
        while len(reasons) < self._tries:
            station = await self._choose(failed)
            site, now = station.site, self._loop.time()
            station.in_flight += 1
            try:
                execution = await site.run(program, limits)
            except SiteBusy as busy:
                station.resting_until = max(station.resting_until, now + busy.seconds)
                continue
            except SiteFault as fault:
                station.failed(self._loop.time())
                failed.add(site.name)
                reasons.append(f"{site.name}: {fault}")
                continue
            finally:
                station.in_flight -= 1
            station.answered()
            if execution.verdict is not Verdict.SE or told is not None:
                return execution
            # A site retries its own system errors on another cell; one more try, at another site if there is one.
            told = execution
            failed.add(site.name)
            reasons.append(f"{site.name}: {execution.stderr.decode(errors='replace')}")
        return told or system_error("; ".join(reasons))

    async def _choose(self, failed: set[str]) -> _Station:
        """The best site that does not rest; waits until there is one."""
        while True:
            now = self._loop.time()
            ready = [station for station in self._stations if station.resting_until <= now]
            if ready:
                return min(ready, key=lambda station: station.cost(failed))
            await asyncio.sleep(min(station.resting_until for station in self._stations) - now)
