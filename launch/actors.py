"""A part of a run behind a handle, wherever it lives: in this process, or as a Ray actor.

The same classes run in both places. A handle's calls give futures; a dead process becomes WorkerDied, with its name.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from cispo.errors import CispoError, WorkerDied
from launch.messages import is_message

GET_PID = "__pid__"
"""A method that every actor has: the id of its process."""

BESIDE = "beside"
"""The group of calls for which an actor has a thread of its own."""

NEXT_TO_NO_CPU = 0.001
"""What an actor reserves: on a small machine learner and workers take turns, and Ray need not know. With nothing at all
Ray would choose a node by chance, whatever the strategy says.
"""

AS_INHERITED = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray before 2.60 otherwise empties CUDA_VISIBLE_DEVICES of actors that reserve no GPU. Every process that starts Ray
sets it, because actors have the environment of their node.
"""


class Handle(Protocol):
    """A remote object."""

    name: str

    def started(self) -> Future[int]:
        """The id of its process, once the object is made; raises what making it raised, or WorkerDied."""

    def call(self, method: str, *arguments: Any, **named: Any) -> Future[Any]:
        """Call a method; the future raises WorkerDied if the process is gone, or what the method raised."""

    def beside(self, method: str, *arguments: Any) -> Future[Any]:
        """`call` that does not wait for the calls before it: the object must allow that for this method."""

    def reference(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method and leave what it returns where it is.

        The future is done when the method is, raises as that of `call` does, and holds something that can be passed
        on to other handles' calls in place of the value.
        """

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

    def started(self) -> Future[int]:
        """See Handle; it was when its constructor returned."""
        future: Future[int] = Future()
        future.set_result(os.getpid())
        return future

    def call(self, method: str, *arguments: Any, **named: Any) -> Future[Any]:
        """See Handle."""
        future: Future[Any] = Future()
        try:
            future.set_result(getattr(self._object, method)(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future

    def beside(self, method: str, *arguments: Any) -> Future[Any]:
        """See Handle; in one process there is never another call under way."""
        return self.call(method, *arguments)

    def reference(self, method: str, *arguments: Any) -> Future[Any]:
        """See Handle; in one process the value itself can be passed on."""
        return self.call(method, *arguments)

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

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        *arguments: Any,
        num_threads: int = 1,
        num_gpus: float = 0,
        is_worker: bool = False,
    ) -> None:
        """Start the actor.

        Args:
            name: who it is, in messages and in the list of processes.
            make, arguments: what it is.
            num_threads: of torch.
            num_gpus: devices for it alone.
            is_worker: one of many, best spread over all nodes, with a thread for calls `beside` others. What there is
                once (the learner's ranks) stays near the driver.
        """
        self.name = name
        self._make, self._arguments = make, arguments
        self._num_threads, self._num_gpus, self._is_worker = num_threads, num_gpus, is_worker
        self._start()

    def _start(self) -> None:
        import ray

        threads = str(self._num_threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        # A class of its own name makes the list of processes say who is who: ray::rollout_0.call
        resident = type(self.name.replace("-", "_"), (_Resident,), {})
        remote = ray.remote(concurrency_groups={BESIDE: 1} if self._is_worker else None)(resident).options(
            num_cpus=NEXT_TO_NO_CPU,
            num_gpus=self._num_gpus,
            runtime_env={"env_vars": environment},
            scheduling_strategy="SPREAD" if self._is_worker else _near_the_driver(self._num_gpus),
        )
        self._actor = remote.remote(str(Path.cwd()), self._make, *self._arguments)

    def started(self) -> Future[int]:
        """See Handle."""
        return self.call(GET_PID)

    def call(self, method: str, *arguments: Any, **named: Any) -> Future[Any]:
        """See Handle."""
        return self._translated(self._actor.call.remote(method, *arguments, **named).future())

    def beside(self, method: str, *arguments: Any) -> Future[Any]:
        """See Handle; a second thread of the actor runs it."""
        assert self._is_worker, f"{self.name} has one thread only"
        call = self._actor.call.options(concurrency_group=BESIDE).remote(method, *arguments)
        return self._translated(call.future())

    def reference(self, method: str, *arguments: Any) -> Future[Any]:
        """See Handle; the value stays in the object store and only a receipt comes to the driver."""
        receipt, value = self._actor.call_for_reference.options(num_returns=2).remote(method, *arguments)
        return self._translated(receipt.future(), value)

    def restart(self) -> None:
        """See Handle."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """See Handle."""
        import ray

        ray.kill(self._actor)

    def _translated(self, call: Future[Any], value: Any = None) -> Future[Any]:
        """The same call with our errors in place of Ray's; `value`, if given, is what it holds in the end."""
        translated: Future[Any] = Future()

        def pass_on(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                translated.set_result(done.result() if value is None else value)
            else:
                translated.set_exception(our_error(error, self.name))

        call.add_done_callback(pass_on)
        return translated


class _Resident:
    """What a Ray actor runs: one object, made and called here."""

    def __init__(self, folder: str, make: Callable[..., Any], *arguments: Any) -> None:
        # Ray would tell of an error in here as text only, as the death of the actor; so it waits for the first call.
        self._object: Any = None
        self._error: Exception | None = None
        try:
            _enter(folder)
            self._object = make(*arguments)
        except Exception as error:
            self._error = error

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the object; raises what making it raised."""
        if self._error is not None:
            raise self._error
        if method == GET_PID:
            return os.getpid()
        return getattr(self._object, method)(*arguments, **named)

    def call_for_reference(self, method: str, *arguments: Any) -> tuple[None, Any]:
        """`call` with two results: one that is cheap to wait for, and the value."""
        return None, self.call(method, *arguments)


def _enter(folder: str) -> None:
    """Be where the driver is, so that a path means the same to both."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise CispoError(
            f"The driver works in {folder}, which node {platform.node()} cannot enter ({error.strerror}); start the "
            f"run in a folder that all nodes share."
        ) from error


def _near_the_driver(num_gpus: float) -> Any:
    """Ray's own order of nodes for who needs devices; this node, as long as it is there, for who does not: what there
    is once then dies with the driver or not at all.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if num_gpus:
        return "DEFAULT"
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def our_error(error: BaseException, name: str) -> BaseException:
    """What a call to the actor `name` means for its caller: the actor's own sentence, or WorkerDied.

    A defect keeps Ray's error, whose text is the traceback of the other process.
    """
    import ray.exceptions

    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return cause if is_message(cause) else error
    if isinstance(error, ray.exceptions.RayActorError):
        return WorkerDied(f"The process of {name} died ({_reason(error)}).")
    lost = ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError
    if isinstance(error, lost):  # an answer lies on the node that made it until it is fetched
        return WorkerDied(f"The node of {name} was lost with its answer ({_reason(error)}).")
    if isinstance(error, ray.exceptions.RayError):
        return CispoError(f"Ray could not bring a call to {name} or its answer back ({_reason(error)}).")
    return error


def _reason(error: BaseException) -> str:
    """The sentence of Ray's message that says why, without the pages around it."""
    text = " ".join(str(error).split())
    detail = re.search(r"Worker exit detail: (.*?)(?: There are some| Some common causes|$)", text)
    return (detail[1] if detail else text.split(". ")[0]).rstrip(". ") or type(error).__name__
