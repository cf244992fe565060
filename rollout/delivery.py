"""The driver's side of a publish: what workers are offered of a version, and what those get who cannot take that."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Publication:
    """One complete version. There is none of a version that the learner could not finish, so no worker is given one.

    Args:
        package: what is offered first: `rollout.receiver.Package`, or a reference to one.
        whole: begins to make a WeightPackage of the same version, or a reference to one; called once, if at all. None
            if `package` is one.
    """

    def __init__(self, package: Any, whole: Callable[[], Future[Any]] | None = None) -> None:
        self.package = package
        self._make_whole = whole
        self._whole: Future[Any] | None = None

    def whole(self) -> Future[Any]:
        """The package that any worker can take, once the learner has made it. Called with the service's lock held.

        It raises WeightSyncError if the learner has gone on to another version.
        """
        if self._whole is None:
            if self._make_whole is not None:
                self._whole = self._make_whole()
            else:
                self._whole = Future()
                self._whole.set_result(self.package)
        return self._whole
