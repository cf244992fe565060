"""A part of a run behind a handle, wherever it lives: in this process, or as a Ray actor.

The same classes run in both places. A handle's calls give futures; a dead process becomes WorkerDied, with its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from cispo.errors import CispoError, DeadlineExceeded, WorkerDied


class Handle(Protocol):
    """A remote object."""

    name: str

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method; the future raises WorkerDied if the process is gone, or what the method raised."""

    def reference(self, method: str, *arguments: Any) -> Any:
        """Call a method and leave the result where it is: something that can be passed on to other handles' calls."""

    def restart(self) -> None:
        """Start it anew from the same arguments."""

    def stop(self) -> None:
        """End it, and whatever it started."""


class InlineHandle:
    """The object lives in this process; calls are made at once."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        self.name = name
        self._make, self._arguments = make, arguments
        self._object = make(*arguments)

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """See Handle."""
        future: Future[Any] = Future()
        try:
            future.set_result(getattr(self._object, method)(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def reference(self, method: str, *arguments: Any) -> Any:
        """See Handle; in one process the result itself can be passed on."""
        return self.call(method, *arguments).result()

    def restart(self) -> None:
        """See Handle."""
        self.stop()
        self._object = self._make(*self._arguments)

    def stop(self) -> None:
        """See Handle."""
        close = getattr(self._object, "close", None)
        if close:
            close()


class RayHandle:
    """The object lives in a Ray actor, a process of its own."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any, num_threads: int = 1) -> None:
        self.name = name
        self._make, self._arguments, self._num_threads = make, arguments, num_threads
        self._start()

    def _start(self) -> None:
        import ray

        threads = str(self._num_threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        # No CPUs are reserved: on a small machine learner and workers take turns, and Ray need not know.
        remote = ray.remote(_Resident).options(num_cpus=0, runtime_env={"env_vars": environment})
        self._actor = remote.remote(self._make, *self._arguments)

    def wait_until_started(self, seconds: float) -> None:
        """Raises what the constructor raised, WorkerDied, or DeadlineExceeded."""
        try:
            self.call("__resident__").result(timeout=seconds)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the driver waited {seconds:g} s for {self.name} to start; the machine may be out of memory or cores "
                f"(Ray's logs are in /tmp/ray/session_latest/logs), or raise cluster.start_seconds."
            ) from error

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """See Handle."""
        future: Future[Any] = Future()

        def pass_on(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            else:
                future.set_exception(self._translated(error))

        self._actor.call.remote(method, *arguments).future().add_done_callback(pass_on)
        return future

    def reference(self, method: str, *arguments: Any) -> Any:
        """See Handle; a reference into the object store."""
        return self._actor.call.remote(method, *arguments)

    def restart(self) -> None:
        """See Handle."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """See Handle."""
        import ray

        ray.kill(self._actor)

    def _translated(self, error: BaseException) -> BaseException:
        import ray.exceptions

        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, CispoError):
            return error.cause
        if isinstance(error, ray.exceptions.RayActorError):
            return WorkerDied(f"The process of {self.name} died ({_first_line(error)}).")
        return error


class _Resident:
    """What a Ray actor runs: one object, made and called here."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._object = make(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object."""
        if method == "__resident__":
            return os.getpid()
        return getattr(self._object, method)(*arguments)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
