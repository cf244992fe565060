"""Runs inside the sandbox: the tests of a repository in one process, the patched project in another.

The project's process is forked off before this one has read anything: neither the tests nor what they expect nor the
nonce of the report was ever in its memory, and none of it lies in a file. This process cannot be opened by it
(PR_SET_DUMPABLE is 0, which the child itself tries out before the project's first line) and holds the only
descriptor of the report. All that the project can do is answer (rewards.repository_server), be silent, or end.

Standard input is a JSON object: {"nonce", "tests": {path: text}, "names": [...], "modules": [...],
"roots": [...], "stop_early": false}. The report has one line each for

    NONCE passed NUMBER
    NONCE failed NUMBER MESSAGE      an assertion did not hold
    NONCE raised NUMBER MESSAGE      anything else: an exception, a skip, the end of the project's process
    NONCE exposed                    this machine does not keep the two processes apart; nothing was run
    NONCE end
"""

from __future__ import annotations

import _ctypes
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from rewards.repository_server import Server
from rewards.repository_wire import Wire

PROJECT = "project"
"""The folder of the patched tree, below the working directory."""

_PR_SET_DUMPABLE = 4
_EXPOSED, _APART = b"exposed", b"apart"


def start_program() -> Wire:
    """Fork the project's process. Call it before anything secret is read. Raises OSError when it is not apart."""
    _set_dumpable(0)
    requests, answers, signs = os.pipe(), os.pipe(), os.pipe()
    others = os.getpid(), os.getppid()  # the sandbox's own process holds the same descriptors as this one
    if os.fork() == 0:
        _become_program((requests[0], answers[1], signs[1]), others)
    for descriptor in (requests[0], answers[1], signs[1]):
        os.close(descriptor)
    sign = os.read(signs[0], 16)
    os.close(signs[0])
    if sign != _APART:
        raise OSError("a child can open its parent's memory or descriptors")
    return Wire(answers[0], requests[1])


def _become_program(descriptors: tuple[int, int, int], others: Sequence[int]) -> NoReturn:
    reader, writer, sign = descriptors
    _keep_only(descriptors)
    os.write(sign, _EXPOSED if any(map(_can_open, others)) else _APART)
    os.close(sign)
    _set_dumpable(1)
    _enter_project()
    Server(Wire(reader, writer)).serve()


def _keep_only(descriptors: Sequence[int]) -> None:
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    before = 2
    for descriptor in sorted(descriptors):
        os.closerange(before + 1, descriptor)
        before = descriptor
    os.closerange(before + 1, 1024)


def _can_open(process: int) -> bool:
    """Whether this process can look into that one: then the tests would have no secrets and no say."""
    for name in ("mem", "fd/0", "fd/1", "environ"):
        try:
            os.close(os.open(f"/proc/{process}/{name}", os.O_RDONLY))
        except OSError:
            continue
        return True
    return False


def _set_dumpable(is_dumpable: int) -> None:
    """prctl(PR_SET_DUMPABLE), through the extension module: importing the package ctypes costs ten times as much."""
    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    prctl = _ctypes.dlsym(program, "prctl")
    if _ctypes.call_function(prctl, (_PR_SET_DUMPABLE, is_dumpable, 0, 0, 0)) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")


def _enter_project() -> None:
    """Work in the project's folder, and import nothing more from here, where the project may write."""
    sys.path[:] = [folder for folder in sys.path if folder != os.getcwd()]  # noqa: PTH109
    os.chdir(PROJECT)
    # The project may have a module of the same name.
    for name in [name for name in sys.modules if name.partition(".")[0] == "rewards"]:
        del sys.modules[name]


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the project may send signals, and this one would raise here
    report = os.dup(1)
    wire: Wire | None = None
    with contextlib.suppress(OSError):
        wire = start_program()
    from rewards.repository_proxies import Session  # after the fork: each test forks the smaller process once more
    from rewards.repository_suite import run_suite

    job = json.loads(sys.stdin.buffer.read())
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)

    def tell(what: str) -> None:
        os.write(report, f"{job['nonce']} {what}\n".encode("ascii"))

    if wire is None:
        tell("exposed")
        os._exit(0)
    _enter_project()
    run_suite(Session(wire), job, tell)
    tell("end")
    os._exit(0)


if __name__ == "__main__":
    _main()
