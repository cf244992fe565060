"""Worker processes for functions that cannot be trusted to return: each verdict has a deadline and is killable.

Symbolic graders hang, blow up in memory and crash on what a model writes, their own timeouts need the main thread
(SIGALRM), and a thread cannot be killed. So a request goes to a process, one at a time, and a process that is late is
killed and replaced. Safe to use from many threads and inside a Ray actor: workers are fresh interpreters
(`rewards.grader_worker`), never forks, and start when first needed; `start` brings the first one forward.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cispo.errors import ConfigError, RewardError

_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class GraderPoolConfig:
    """How many workers a pool has, and what each may spend.

    Attributes:
        size: worker processes at most; they start one by one as calls overlap.
        deadline_seconds: wall time of one call, after which its worker is killed.
        start_seconds: wall time that a worker may take to import its function.
        memory_mb: address space of a worker, in MiB.
        tries: how often a request is given to a worker before its failure is final; each time it is a fresh one.
    """

    size: int = 2
    deadline_seconds: float = 5.0
    start_seconds: float = 120.0
    memory_mb: int = 2048
    tries: int = 2

    def __post_init__(self) -> None:
        for name in ("size", "deadline_seconds", "start_seconds", "memory_mb", "tries"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"A grader pool needs {name} above 0, but got {getattr(self, name)}; raise {name}.")


class Ending(StrEnum):
    """How a call ended."""

    ANSWERED = "answered"  # `value` is what the function returned
    RAISED = "raised"  # the function raised; `note` is the type
    TIMEOUT = "timeout"  # it was killed at the deadline
    CRASHED = "crashed"  # the process died of the request: a signal such as SIGSEGV, or an exit
    UNAVAILABLE = "unavailable"  # no worker could be started, or someone else killed it: says nothing of the request


@dataclass(frozen=True)
class Outcome:
    """The end of one call: `value` only if answered; `note` says why not."""

    ending: Ending
    value: Any = None
    note: str = ""


class GraderPool:
    """Calls `function_path` ("module:function", JSON in, JSON out) in up to `config.size` processes."""

    def __init__(self, function_path: str, config: GraderPoolConfig) -> None:
        self._function_path = function_path
        self._config = config
        self._closed = threading.Event()
        self._workers = [_Worker(function_path, config) for _ in range(config.size)]
        # Last in, first out: the warm worker is taken again, and a cold one starts only when calls overlap.
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def start(self) -> None:
        """Start the first worker now and wait until it is ready; does nothing once one lives or after `close`.

        Raises:
            RewardError: it cannot start; the message has the reason.
        """
        worker = self._idle.get()
        try:
            failure = worker.start()
        finally:
            self._idle.put(worker)
        if failure is not None and not self._closed.is_set():
            raise RewardError(
                f"The grader process for {self._function_path} must start, because without it only plain numbers and "
                f"words can be graded, but {failure.note}; mend the installation or raise the limits of its pool."
            )

    def call(self, request: Any) -> Outcome:
        """Wait for an idle worker, then at most `tries` x `deadline_seconds` for the outcome. Never raises."""
        worker = self._idle.get()
        try:
            for _ in range(self._config.tries):
                if self._closed.is_set():
                    return Outcome(Ending.UNAVAILABLE, note="the grader pool is closed")
                outcome = worker.call(request)
                if outcome.ending in (Ending.ANSWERED, Ending.RAISED):
                    break
            return outcome
        finally:
            self._idle.put(worker)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the live workers; empty before the first call and after `close`."""
        return tuple(pid for worker in self._workers if (pid := worker.pid) is not None)

    def close(self) -> None:
        """Kill every worker and wait for its end; calls in progress end as UNAVAILABLE, later ones too."""
        self._closed.set()
        for worker in self._workers:
            worker.doom()
        # A caller whose worker has just died gives it back at once; only then may its pipes be closed.
        workers = [self._idle.get() for _ in self._workers]
        for worker in workers:
            worker.clear()
            self._idle.put(worker)


class _Worker:
    """One process slot. `call` and `clear` belong to the thread that took it from the pool, `doom` to any."""

    def __init__(self, function_path: str, config: GraderPoolConfig) -> None:
        self._function_path = function_path
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._doomed = False
        self._lock = threading.Lock()  # guards the birth of a process against `doom`

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def call(self, request: Any) -> Outcome:
        """One try on a live process; whatever fails leaves the slot without one."""
        failure = self.start()
        if failure is not None:
            return failure
        try:
            seconds = self._config.deadline_seconds
            self._write({"request": request, "seconds": seconds})
            reply = self._read(seconds)
        except OSError as error:  # the pipe broke, or the system has no process or descriptor left
            return self._end(error)
        if reply is None:
            self.clear()
            return Outcome(Ending.TIMEOUT, note=f"no verdict within {seconds:g} seconds")
        if "value" in reply:
            return Outcome(Ending.ANSWERED, value=reply["value"])
        return Outcome(Ending.RAISED, note=reply["failed"])

    def start(self) -> Outcome | None:
        """See that there is a live process; the outcome if that fails, UNAVAILABLE whatever the reason."""
        if self.pid is not None:
            return None
        try:
            return self._start()
        except OSError as error:  # no request was there, so its death says nothing of one
            why = self._end(error).note if self._process is not None else str(error)
            return Outcome(Ending.UNAVAILABLE, note=f"grader worker did not start: {why}")

    def doom(self) -> None:
        """Kill the process and let no other be born."""
        with self._lock:
            self._doomed = True
            if self._process is not None:
                self._process.kill()

    def clear(self) -> None:
        """Kill the process, wait for its end and close its pipes."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _start(self) -> Outcome | None:
        """A fresh process that has imported its function; the outcome if that fails."""
        self.clear()
        self._unread = b""
        with self._lock:
            if self._doomed:
                return Outcome(Ending.UNAVAILABLE, note="the grader pool is closed")
            self._process = self._spawn()
        hello = self._read(self._config.start_seconds)
        if hello is not None and "ready" in hello:
            return None
        self.clear()
        why = hello["failed"] if hello else f"not ready within {self._config.start_seconds:g} seconds"
        return Outcome(Ending.UNAVAILABLE, note=f"grader worker did not start: {why}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Little more than the parent's import path: no token or key of the run is within reach of a grader.
        root = str(Path(__file__).resolve().parents[1])
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join([root, *map(os.path.abspath, filter(None, sys.path))])
        memory = str(self._config.memory_mb * 2**20)
        return subprocess.Popen(
            [sys.executable, "-m", "rewards.grader_worker", self._function_path, str(os.getpid()), memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the run, which then closes its pools
        )

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None at the deadline. Raises BrokenPipeError if the process ended."""
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        # poll, not select: a long-lived actor has descriptors above 1024.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise BrokenPipeError("the worker closed its end")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _end(self, error: OSError) -> Outcome:
        """What the death of the process means: its own crash is the request's doing, a stranger's SIGKILL is not."""
        process = self._process
        if process is None:
            return Outcome(Ending.UNAVAILABLE, note=f"grader worker is gone: {error}")
        code: int | None
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None
        self.clear()
        # SIGKILL comes from the pool's own close or from the machine (out of memory), never from the request.
        if code == -signal.SIGKILL:
            return Outcome(Ending.UNAVAILABLE, note="grader worker was killed from outside")
        if code == -signal.SIGALRM:  # the worker's own alarm came first
            return Outcome(Ending.TIMEOUT, note="no verdict before the worker's own alarm")
        return Outcome(Ending.CRASHED, note=f"grader worker died, exit status {code}")
