"""A few threads that nobody waits for: neither `close` nor the end of the interpreter.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter ends, whatever they do. A user's reward
that never returns would then hang a run that has already failed with the sentence that says so.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class DaemonThreads:
    """Up to `num_threads` calls at once, in the order of `submit`; the threads start with the first call."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards `_closed` against a call that is queued after the last one
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(num_threads)
        ]

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue one call; its result or exception is the future's. Raises RuntimeError after `close`."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("These threads are closed, so nothing can be submitted any more.")
            if self._threads[0].ident is None:
                for thread in self._threads:
                    thread.start()
            self._calls.put((future, lambda: function(*arguments)))
        return future

    def close(self) -> None:
        """Cancel what was not begun and let every thread end after the call that it is in; waits for none."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for waiting in self._take_all():
            waiting.cancel()
        for _ in self._threads:
            self._calls.put(None)

    def _take_all(self) -> list[Future[Any]]:
        futures: list[Future[Any]] = []
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return futures
            if call is not None:
                futures.append(call[0])

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:  # the caller's to read, as with any executor
                future.set_exception(error)
            else:
                future.set_result(result)
            del call, future, function  # an idle thread must not keep the last trajectory alive
