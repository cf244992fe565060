"""A lock that is fair to whoever waits for it.

A thread that releases a plain lock and takes it again at once, as a sampling loop does between two steps, keeps
everybody else out for as long as it likes. Here those who wait go first.
"""

from __future__ import annotations

import threading
from types import TracebackType


class Turnstile:
    """A context manager: one thread is inside at a time, and none goes in again before one that waits."""

    def __init__(self) -> None:
        self._next = threading.Lock()  # held by the one that waits, so that who just left cannot overtake it
        self._inside = threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._inside.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.release()
