"""Process 1 of a cell: a preloaded interpreter that waits for jobs, one at a time, and makes for each a fresh process.

It only clones and passes on how that ended; what belongs to a stranger goes by it in files that it does not read
(sandbox.inside.order). Arguments: descriptors of the control socket, the shared page and the seccomp filter, then the
modules to preload. When the control socket closes, whoever started the cell is gone and it ends, and everything in it.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
from pathlib import Path

from sandbox.inside import kernel, python_main
from sandbox.inside.job import Job
from sandbox.inside.order import NUM_DESCRIPTORS, Order
from sandbox.inside.page import Page, Stage

READY, KILL, ENDED, DIRTY = b"ready", b"kill", b"ended", b"dirty"
"""Messages besides an order: the cell can take jobs; the job must end; it has; it has and something was left behind."""

PACKAGES = "/packages"
"""Where the cell has what it needs beyond the standard library."""

_AUDIT_EVERY = 50
_NAMESPACES = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC

_WARM_UP = """
import sys
def f(n, *more, **named):
    return [str(k) for k in range(n)] + [f"{n:d} {more}"]
class A:
    x = {1: 2}
try:
    print(*f(0), file=None if A.x else sys.stderr, end="")
    raise ValueError(1)
except ValueError as error:
    str(error)
"""
"""What an interpreter does for the first time costs page faults, and in a forked one every time: 1.3 ms of CPU."""


def main(arguments: list[str]) -> None:
    """Serve jobs until the control socket closes."""
    control_fd, page_fd, filter_fd = map(int, arguments[:3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=control_fd)
    page = Page(page_fd)
    with open(filter_fd, "rb") as file:  # noqa: PTH123
        syscall_filter = kernel.SyscallFilter(file.read())
    os.close(page_fd)
    _preload(arguments[3:])
    kernel.set_no_new_privileges()
    kernel.set_dumpable(False)
    syscall_filter.take_on()
    serve(control, page, Job(control, page))


def _preload(modules: list[str]) -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads would not survive a fork, and would not be one job's
    if os.path.isdir(PACKAGES):  # noqa: PTH112
        sys.path.append(PACKAGES)
    for name in modules:
        importlib.import_module(name)
    python_main.prepare(hidden="sandbox")
    python_main.warm_up(_WARM_UP)
    gc.collect()
    gc.freeze()  # a collection in a forked process would write to every object, and so copy every page


def serve(control: socket.socket, page: Page, job: Job) -> None:
    """Take order after order."""
    process_maker = kernel.NamespaceMaker(job.run)
    clean = _belongings()
    num_jobs = 0
    control.send(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, NUM_DESCRIPTORS)
        if not message:
            return
        if message == KILL:
            continue  # it crossed with the end of the job that it was meant for
        page.set_stage(Stage.PREPARING)
        job.order, job.descriptors = Order.unpack(message), descriptors
        pid = process_maker.run(_NAMESPACES, job.order.stack_bytes)
        _, status = os.waitpid(pid, 0)
        if status != 0:
            return  # it shared our memory, and broke off in the middle of whatever it did
        for descriptor in descriptors:
            os.close(descriptor)
        num_jobs += 1
        is_dirty = num_jobs % _AUDIT_EVERY == 0 and _belongings() != clean
        control.send(DIRTY if is_dirty else ENDED)


def _belongings() -> tuple[int, int, int]:
    """Numbers of processes, mounts and descriptors of the cell, which no job may change."""
    processes = sum(name.isdigit() for name in os.listdir("/proc"))  # noqa: PTH208
    return processes, Path("/proc/self/mountinfo").read_bytes().count(b"\n"), len(os.listdir("/proc/self/fd"))  # noqa: PTH208


if __name__ == "__main__":
    main(sys.argv[1:])
