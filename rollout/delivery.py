"""The driver's side of a publish: what workers are offered of a version, and what those get who cannot take that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from cispo.errors import NeedsWhole

log = logging.getLogger(__name__)


class Loads(Protocol):
    """A worker, wherever it lives."""

    name: str

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the worker."""


class Publication:
    """One complete version. There is none of a version that the learner could not finish, so no worker is given one.

    Args:
        package: what is offered first: `rollout.receiver.Package`, or a reference to one.
        whole: makes a WeightPackage of the same version, or a reference to one; called once, if at all. None if
            `package` is one.
    """

    def __init__(self, package: Any, whole: Callable[[], Any] | None = None) -> None:
        self.package = package
        self._make_whole = whole
        self._whole: Any = None
        self._lock = threading.Lock()

    def whole(self) -> Any:
        """The package that any worker can take; the first who asks waits until the learner has made it."""
        if self._make_whole is None:
            return self.package
        with self._lock:
            if self._whole is None:
                self._whole = self._make_whole()
            return self._whole


class Delivery:
    """A version on its way to one worker, which begins at once; `result` ends it.

    `publication` may also be a package itself.
    """

    def __init__(self, worker: Loads, publication: Any, version: int) -> None:
        self._worker, self._version = worker, version
        self._publication = publication if isinstance(publication, Publication) else Publication(publication)
        self.call: Future[Any] = worker.call("load_weights", self._publication.package, version)

    def result(self, timeout: float | None = None) -> Any:
        """What the worker said: `rollout.receiver.Loaded`. Raises what `load_weights` does there, or TimeoutError.

        A worker that needs the whole version gets it now, and has `timeout` seconds for that, too.
        """
        try:
            return self.call.result(timeout=timeout)
        except NeedsWhole as reason:
            log.warning("%s; it is sent the whole version.", str(reason).rstrip("."))
        self.call = self._worker.call("load_weights", self._publication.whole(), self._version)
        return self.call.result(timeout=timeout)
