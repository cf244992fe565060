"""Watches one run from its start to its end and says how it ended.

It owns the pipes, the deadlines, the output cap and the verdict, and it believes nothing that the program prints:
the verdict comes from the bootstrap's report (wait status), from what was measured in /proc, and from why the
supervisor itself put an end to it.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.channels import Channels
from sandbox.errors import SandboxError
from sandbox.isolation import STARTUP_SECONDS, Isolation, Started
from sandbox.process_tree import WATCHING_NEEDS, look_at_tree, proportional_memory
from sandbox.program import Execution, Limits, Program, Verdict

LOOK_SECONDS = 0.03
"""Time between two looks at the tree. A tree can outgrow its memory limit by what it touches in this time."""

_KILL_SECONDS = 10.0
_OUT_OF_MEMORY = 64  # the signal by which the bootstrap tells that a MemoryError was not caught
_REPORT_BYTES = 4096


def execute(isolation: Isolation, program: Program, limits: Limits) -> Execution:
    """Run `program` once. Never raises for what a program does; the sandbox's own failures are verdict SE."""
    try:
        channels = Channels.open()
    except OSError as error:
        return system_error(f"cannot open pipes: {error}")
    try:
        started = isolation.start(program, limits, channels)
        watch = _Watch(started, channels, limits)
        try:
            watch.until_the_end()
        finally:
            watch.make_sure_it_ended()
        return watch.execution()
    except (OSError, SandboxError, subprocess.SubprocessError) as error:
        return system_error(str(error))
    finally:
        channels.close()


@dataclass(frozen=True)
class _Ending:
    """The bootstrap's last word."""

    status: int
    memory_bytes: int
    cpu_s: float


class _Watch:
    """The state of one run. `stopped` is why the supervisor ended it, or None if it ended by itself."""

    def __init__(self, started: Started, channels: Channels, limits: Limits) -> None:
        self._started = started
        self._limits = limits
        self._channels = channels
        self._stdout, self._stderr, self._report = bytearray(), bytearray(), bytearray()
        self._stopped: Verdict | None = None
        self._peak_bytes = 0
        self._peak_cpu_s = 0.0
        self._began = time.monotonic()
        self._is_up = False
        self._give_up_at = self._began + STARTUP_SECONDS
        self._next_look_at = math.inf  # before the bootstrap is up, its root and its /tmp are still the machine's
        self._over = False
        self._wall_s = 0.0

    def until_the_end(self) -> None:
        """Read what comes and look at the tree until the process is gone."""
        exited = os.pidfd_open(self._started.process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                readers = self._readers(selector)
                selector.register(exited, selectors.EVENT_READ, self._note_the_end)
                self._loop(selector)
        finally:
            os.close(exited)
        for descriptor, read in readers.items():
            os.set_blocking(descriptor, False)
            while read():
                pass

    def _readers(self, selector: selectors.BaseSelector) -> dict[int, Callable[[], bool]]:
        """One reader per pipe; a reader says whether there may be more, and leaves the selector when there is not."""
        cap = self._limits.output_bytes
        streams = (
            (self._channels.stdout, self._stdout, cap),
            (self._channels.stderr, self._stderr, cap),
            (self._channels.report, self._report, _REPORT_BYTES),
        )
        readers: dict[int, Callable[[], bool]] = {}
        for descriptor, buffer, limit in streams:
            readers[descriptor] = self._reader(descriptor, buffer, limit, selector)
            selector.register(descriptor, selectors.EVENT_READ, readers[descriptor])
        return readers

    def _reader(
        self, descriptor: int, buffer: bytearray, cap: int, selector: selectors.BaseSelector
    ) -> Callable[[], bool]:
        def read() -> bool:
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return False
            buffer.extend(data)
            if len(buffer) > cap:
                del buffer[cap:]
                self._stop(Verdict.OLE)
            if data and self._stopped is not Verdict.OLE:
                return True
            if selector.get_map() is not None:
                selector.unregister(descriptor)
            return False

        return read

    def _loop(self, selector: selectors.BaseSelector) -> None:
        while not self._over:
            until = min(self._next_look_at, self._give_up_at)
            for key, _ in selector.select(max(0.0, until - time.monotonic())):
                key.data()
            now = time.monotonic()
            if not self._is_up and self._report.startswith(b"up\n"):
                self._is_up, self._began = True, now
                self._give_up_at = now + self._limits.wall_seconds
                self._next_look_at = now + LOOK_SECONDS
            if now >= self._give_up_at and not self._over:
                self._run_out_of_time(now)
            if now >= self._next_look_at:
                self._next_look_at = now + LOOK_SECONDS
                try:
                    self._look()
                except OSError as error:
                    raise SandboxError(f"the program cannot be watched ({error}): {WATCHING_NEEDS}") from error

    def _run_out_of_time(self, now: float) -> None:
        if self._stopped is not None:
            raise SandboxError(f"a killed program was still there after {_KILL_SECONDS:.0f} seconds")
        self._give_up_at = now + _KILL_SECONDS
        self._stop(Verdict.TLE if self._is_up else Verdict.SE)

    def _look(self) -> None:
        """Compare the whole tree's use with the limits."""
        usage = look_at_tree(self._started.root_pid)
        limits = self._limits
        memory = usage.memory_bytes + self._started.temporary_bytes(limits.memory_bytes)
        if memory > limits.memory_bytes:
            memory = proportional_memory(usage.pids) + self._started.temporary_bytes(limits.memory_bytes)
        self._peak_bytes = max(self._peak_bytes, memory)
        self._peak_cpu_s = max(self._peak_cpu_s, usage.cpu_s)
        if memory > limits.memory_bytes:
            self._stop(Verdict.MLE)
        elif usage.cpu_s > limits.cpu_seconds:
            self._stop(Verdict.TLE)
        elif usage.num_tasks > limits.num_processes:
            self._stop(Verdict.RE)

    def _stop(self, why: Verdict) -> None:
        if self._stopped is None and not self._over:
            self._stopped = why
            self._give_up_at = time.monotonic() + _KILL_SECONDS
            self._started.kill()
        elif self._stopped is None:
            self._stopped = why

    def _note_the_end(self) -> None:
        self._over = True
        self._wall_s = time.monotonic() - self._began

    def make_sure_it_ended(self) -> None:
        """Kill what is left and reap our child."""
        self._started.kill()
        try:
            self._started.process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._started.process.kill()
            raise

    def execution(self) -> Execution:
        """What happened, once it is over."""
        ending = self._ending()
        status = ending.status if ending and self._stopped is None else None
        cpu_s = max(self._peak_cpu_s, ending.cpu_s if ending else 0.0)
        memory = max(self._peak_bytes, ending.memory_bytes if ending else 0)
        return Execution(
            verdict=self._stopped or self._verdict(ending, cpu_s, memory),
            stdout=bytes(self._stdout),
            stderr=bytes(self._stderr),
            exit_code=os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
            cpu_s=cpu_s,
            wall_s=self._wall_s,
            memory_bytes=memory,
        )

    def _ending(self) -> _Ending | None:
        # The last such line counts: the bootstrap writes it after everything else has had its chance to.
        for line in reversed(bytes(self._report).splitlines()):
            words = line.split()
            if len(words) == 4 and words[0] == b"ended" and all(word.isdigit() for word in words[1:]):
                status, kib, micros = map(int, words[1:])
                return _Ending(status, kib * 1024, micros / 1e6)
        return None

    def _verdict(self, ending: _Ending | None, cpu_s: float, memory_bytes: int) -> Verdict:
        """The verdict on a program that the supervisor did not stop."""
        said = bytes(self._report).splitlines()
        if b"up" not in said:
            return Verdict.SE
        if b"started" not in said:
            return Verdict.CE  # refused by the compiler, or the compiler did not survive it
        if ending is None:
            return Verdict.RE  # it brought down its own process 1
        if memory_bytes > self._limits.memory_bytes or _ended_by(ending.status) == _OUT_OF_MEMORY:
            return Verdict.MLE
        if cpu_s > self._limits.cpu_seconds or _ended_by(ending.status) == signal.SIGXCPU:
            return Verdict.TLE
        return Verdict.OK if ending.status == 0 else Verdict.RE


def _ended_by(status: int) -> int | None:
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def system_error(message: str) -> Execution:
    """The sandbox itself failed, for the reason in `message`; the same program may run well the next time."""
    return Execution(Verdict.SE, b"", message.encode(errors="replace"), None, None, 0.0, 0.0, 0)
