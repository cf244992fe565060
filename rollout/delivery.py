"""The driver's side of a publish: what workers are offered of a version, and what those get who cannot take that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


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
