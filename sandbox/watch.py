"""Watches one run from its start to its end: reads what it writes, looks at what it uses, ends it at a limit.

It believes nothing that the program prints. A run is whatever keeps the protocol `Run`: a job in a warm cell, or a
process of its own.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sandbox.errors import SandboxError
from sandbox.process_tree import WATCHING_NEEDS, Usage
from sandbox.program import Limits, Verdict

LOOK_SECONDS = 0.03
"""Time between two looks at the tree. A tree can outgrow its memory limit by what it touches in this time."""

STARTUP_SECONDS = 30.0
"""How long the sandbox itself may take until the program's clock starts; longer is a system error."""

_FIRST_SECONDS = 0.005
"""A run that ends within this time wakes us once, at its end. One that writes more than a pipe holds waits as long."""

KILL_SECONDS = 10.0
_LATE_SECONDS = 1.0
_READ_BYTES = 1 << 16


class Run(Protocol):
    """What is watched."""

    @property
    def ended(self) -> int:
        """A descriptor that becomes readable at the end, when nothing of the run is left."""

    def has_begun(self) -> bool:
        """The sandbox has done its own part, and the program's clock runs."""

    def look(self) -> Usage:
        """What it uses now. Raises OSError or SandboxError where the machine does not tell."""

    def kill(self) -> None:
        """End it with all that it started. `ended` tells when that is done."""


@dataclass
class Watched:
    """What the watch saw.

    Attributes:
        stopped: why the supervisor ended the run, or None if it ended by itself.
        stdout, stderr: at most `Limits.output_bytes` each.
        peak_bytes, peak_cpu_s: the most that a look found; 0 for a run that was over before the first.
        wall_s: from the start of the program's clock to the end.
        is_late: it took long to die when it was killed.
    """

    stopped: Verdict | None = None
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    peak_bytes: int = 0
    peak_cpu_s: float = 0.0
    wall_s: float = 0.0
    is_late: bool = False


def watch(run: Run, stdout: int, stderr: int, limits: Limits, is_cancelled: Callable[[], bool]) -> Watched:
    """Stay with the run until it is over; `stdout` and `stderr` are our ends of its pipes.

    Raises SandboxError when the run cannot be watched or does not die. It may still be alive then.
    """
    seen = Watched()
    return _Watch(run, seen, {stdout: seen.stdout, stderr: seen.stderr}, limits, is_cancelled).until_the_end()


class _Watch:
    def __init__(
        self, run: Run, seen: Watched, streams: dict[int, bytearray], limits: Limits, is_cancelled: Callable[[], bool]
    ) -> None:
        self._run = run
        self._limits = limits
        self._is_cancelled = is_cancelled
        self._seen = seen
        self._streams = streams  # those that are still read
        self._began = time.monotonic()
        self._is_up = False
        self._give_up_at = self._began + STARTUP_SECONDS
        self._next_look_at = self._began + LOOK_SECONDS
        self._killed_at: float | None = None
        self._is_over = False

    def until_the_end(self) -> Watched:
        poll = select.poll()
        poll.register(self._run.ended, select.POLLIN)
        if not poll.poll(_FIRST_SECONDS * 1000):
            for descriptor in self._streams:
                poll.register(descriptor, select.POLLIN)
            self._loop(poll)
        self._is_over = True
        self._seen.wall_s = time.monotonic() - self._began
        for descriptor in list(self._streams):
            os.set_blocking(descriptor, False)  # whoever holds the other end now is out of our reach
            while self._read(descriptor):
                pass
        return self._seen

    def _loop(self, poll: select.poll) -> None:
        while True:
            until = min(self._next_look_at, self._give_up_at)
            events = poll.poll(max(0.0, until - time.monotonic()) * 1000)
            for descriptor, _ in events:
                if descriptor in self._streams and not self._read(descriptor):
                    poll.unregister(descriptor)
            if any(descriptor == self._run.ended for descriptor, _ in events):
                break
            self._attend(time.monotonic())
        if self._killed_at is not None:
            self._seen.is_late = time.monotonic() - self._killed_at > _LATE_SECONDS

    def _attend(self, now: float) -> None:
        """Whatever the time says is due."""
        if not self._is_up and self._run.has_begun():
            self._is_up, self._began = True, min(now, self._began + LOOK_SECONDS)
            self._give_up_at = self._began + self._limits.wall_seconds
        if now >= self._give_up_at:
            self._run_out_of_time(now)
        if now >= self._next_look_at:
            self._next_look_at = now + LOOK_SECONDS
            if self._is_up and self._killed_at is None:
                self._look()

    def _run_out_of_time(self, now: float) -> None:
        if self._killed_at is not None:
            raise SandboxError(f"a killed program was still there after {KILL_SECONDS:.0f} seconds")
        if not self._is_up:
            raise SandboxError(f"a program had not begun after {now - self._began:.0f} seconds")
        self._stop(Verdict.TLE)

    def _look(self) -> None:
        try:
            usage = self._run.look()
        except OSError as error:
            raise SandboxError(f"the program cannot be watched ({error}): {WATCHING_NEEDS}") from error
        limits, seen = self._limits, self._seen
        seen.peak_bytes = max(seen.peak_bytes, usage.memory_bytes)
        seen.peak_cpu_s = max(seen.peak_cpu_s, usage.cpu_s)
        if usage.memory_bytes > limits.memory_bytes:
            self._stop(Verdict.MLE)
        elif usage.cpu_s > limits.cpu_seconds:
            self._stop(Verdict.TLE)
        elif usage.num_tasks > limits.num_processes:
            self._stop(Verdict.RE)
        elif self._is_cancelled():
            self._stop(Verdict.SE)

    def _read(self, descriptor: int) -> bool:
        """Whether there may be more, of which anything is wanted."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        buffer = self._streams[descriptor]
        buffer += data
        if len(buffer) > self._limits.output_bytes:
            del buffer[self._limits.output_bytes :]
            self._stop(Verdict.OLE)
        if data and self._seen.stopped is not Verdict.OLE:
            return True
        del self._streams[descriptor]
        return False

    def _stop(self, why: Verdict) -> None:
        if self._seen.stopped is None:
            self._seen.stopped = why
            if self._is_over:
                return
            self._killed_at = time.monotonic()
            self._give_up_at = self._killed_at + KILL_SECONDS
            self._run.kill()
