"""The line of programs in front of a service's pool: bounded, counted, and never in the way of the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence

from sandbox.endings import system_error
from sandbox.errors import SandboxError
from sandbox.http_messages import HttpFault
from sandbox.program import Execution, Limits, Program, Verdict
from sandbox.program_pool import ProgramPool

_log = logging.getLogger(__name__)

Job = tuple[Program, Limits]


class JobLine:
    """Takes programs up to a bound and gives them to the pool in order. Lives on one event loop.

    Args:
        pool: what runs them.
        num_cells: how many the pool runs at the same time.
        max_queue: how many more may wait.

    Attributes:
        is_closing: new programs are refused, those that were accepted go on.
    """

    def __init__(self, pool: ProgramPool, *, num_cells: int, max_queue: int) -> None:
        self._pool = pool
        self._num_cells = num_cells
        self._capacity = num_cells + max_queue
        # One program more per cell waits inside the pool, so that no cell is idle while the event loop takes its turn.
        self._slots = asyncio.Semaphore(2 * num_cells)
        self._num_accepted = 0
        self._began = time.monotonic()
        self._verdicts: Counter[str] = Counter({str(verdict): 0 for verdict in Verdict})
        self._counts: Counter[str] = Counter(refused=0, cancelled=0)
        self._cpu_seconds = 0.0
        self._wall_seconds = 0.0
        self.is_closing = False

    @property
    def is_empty(self) -> bool:
        """Nothing runs and nothing waits."""
        return self._num_accepted == 0

    def start(self, jobs: Sequence[Job]) -> list[asyncio.Task[Execution]]:
        """Accept all of `jobs` or none; cancelling a task takes its program out of the line or kills it.

        The tasks do not raise: what the pool cannot do is verdict SE. Raises HttpFault 413, 429 or 503.
        """
        self._check_room(len(jobs))
        self._num_accepted += len(jobs)
        tasks = [asyncio.create_task(self._run(program, limits)) for program, limits in jobs]
        for task in tasks:
            task.add_done_callback(self._note_the_end)  # called for a task that was cancelled before it began, too
        return tasks

    def health(self) -> dict[str, int | float | str | dict[str, int]]:
        """What /health tells of the line."""
        running = min(self._num_accepted, self._num_cells)
        return {
            "status": "closing" if self.is_closing else "ok",
            "cells": self._num_cells,
            "running": running,
            "queued": self._num_accepted - running,
            "capacity": self._capacity,
            "verdicts": dict(self._verdicts),
            **self._counts,
            "program_cpu_seconds": round(self._cpu_seconds, 3),
            "program_wall_seconds": round(self._wall_seconds, 3),
            "uptime_seconds": round(time.monotonic() - self._began, 1),
        }

    def _check_room(self, num_jobs: int) -> None:
        if self.is_closing:
            raise HttpFault(503, "the service is shutting down and takes no more programs", Retry_After="1")
        if num_jobs > self._capacity:
            raise HttpFault(413, f"a batch may have {self._capacity} programs, got {num_jobs}")
        if self._num_accepted + num_jobs > self._capacity:
            self._counts["refused"] += num_jobs
            raise HttpFault(
                429,
                f"the line is full: {self._num_accepted} of {self._capacity} programs are there, {num_jobs} more came",
                Retry_After=str(self._seconds_until_room()),
            )

    def _seconds_until_room(self) -> int:
        """A guess: when a quarter of the line has gone, at the mean time of a program so far."""
        mean = self._wall_seconds / max(1, self._verdicts.total())
        return max(1, min(30, round(self._capacity / 4 / self._num_cells * mean)))

    async def _run(self, program: Program, limits: Limits) -> Execution:
        async with self._slots:
            try:
                return await asyncio.wrap_future(self._pool.submit(program, limits))
            except SandboxError as error:
                return system_error(str(error))
            except Exception as error:
                _log.exception("the pool failed on a program")
                return system_error(f"the pool failed: {type(error).__name__}: {error}")

    def _note_the_end(self, task: asyncio.Task[Execution]) -> None:
        self._num_accepted -= 1
        if task.cancelled():
            self._counts["cancelled"] += 1
            return
        execution = task.result()
        self._verdicts[str(execution.verdict)] += 1
        self._cpu_seconds += execution.cpu_s
        self._wall_seconds += execution.wall_s


def metrics_text(health: dict[str, int | float | str | dict[str, int]]) -> str:
    """The numbers of `JobLine.health` in the text format of Prometheus."""
    counters = {"refused", "cancelled", "program_cpu_seconds", "program_wall_seconds"}
    lines = ["# TYPE cispo_sandbox_programs_total counter"]
    for name, value in health.items():
        if name == "verdicts" and isinstance(value, dict):
            lines[1:1] = [f'cispo_sandbox_programs_total{{verdict="{key}"}} {count}' for key, count in value.items()]
        elif isinstance(value, int | float):
            suffix, kind = ("_total", "counter") if name in counters else ("", "gauge")
            lines += [f"# TYPE cispo_sandbox_{name}{suffix} {kind}", f"cispo_sandbox_{name}{suffix} {value}"]
    return "\n".join(lines) + "\n"
