"""The process that a GraderPool starts: it calls one function on one request after the other.

    python -m rewards.grader_worker <module:function> <parent pid> <memory bytes>

Protocol, one JSON object per line: `{"ready": true}` or `{"failed": why}` once at the start, then for every
`{"request": ..., "seconds": s}` on stdin one `{"value": ...}` or `{"failed": why}` on stdout.

It ends by itself when stdin closes, when its parent is gone, and, even inside a C routine that never returns, by
the kernel's alarm some time after the deadline. (PR_SET_PDEATHSIG would not do: it fires when the *thread* that
started the process ends.) Only the standard library is imported here, so that a worker starts as fast as its function.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

_LOOK_FOR_PARENT_SECONDS = 2.0
_ALARM_AFTER_DEADLINE_SECONDS = 1.0


def main(function_path: str, parent_pid: int, memory_bytes: int) -> None:
    """Serve requests until the parent is gone."""
    requests, replies = _take_over_stdio()
    try:
        function = _load(function_path)
        _limit_resources(memory_bytes)
    except Exception as error:
        _send(replies, {"failed": f"{type(error).__name__}: {error}"})
        return
    _send(replies, {"ready": True})
    while (line := _next_line(requests, parent_pid)) is not None:
        _send(replies, _answer(function, json.loads(line)))


def _take_over_stdio() -> tuple[BinaryIO, BinaryIO]:
    """Move the protocol off stdout, so that a library that prints cannot forge or break a reply."""
    requests, replies = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    return requests, replies


def _load(function_path: str) -> Callable[[Any], Any]:
    module, _, name = function_path.partition(":")
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return function


def _limit_resources(memory_bytes: int) -> None:
    """After the imports: no more memory than given, no file written, no core, and (unless root) no child process."""
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _next_line(requests: BinaryIO, parent_pid: int) -> bytes | None:
    """The next request, or None when there is no parent any more."""
    while not select.select([requests], [], [], _LOOK_FOR_PARENT_SECONDS)[0]:
        # Another child of the parent may hold the pipe open after its death, so end of file alone is no sign.
        if os.getppid() != parent_pid:
            return None
    return requests.readline() or None


def _answer(function: Callable[[Any], Any], message: dict[str, Any]) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_REAL, message["seconds"] + _ALARM_AFTER_DEADLINE_SECONDS)
    try:
        return {"value": function(message["request"])}
    except Exception as error:  # whatever the function does with hostile input is an answer, not an end
        return {"failed": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
