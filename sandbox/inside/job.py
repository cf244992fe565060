"""One job, inside the cell: process 1 of its namespaces, and the process that becomes the stranger's program.

`Job.run` is process 1. It shares the zygote's memory (see NamespaceMaker), makes the job's own /tmp and /proc, forks
the program, reaps what the program leaves behind, kills the rest when the program ends or the supervisor says so, and
tells how the program ended. The program's process gives up its rights step by step, and the page of shared memory last.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket

from sandbox.inside import kernel, python_main
from sandbox.inside.order import Content, Order
from sandbox.inside.page import Page, Stage

WORK = "/tmp"
_REAP_MILLISECONDS = 30
"""How often orphans are reaped while the program runs."""

_MOST_REAPED = 256

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""An executed program would inherit that."""

_DESCRIPTORS_END = 1 << 16
_CANNOT_EXECUTE = 126  # as shells say it


class Job:
    """The job that a cell is at: one object for all of them, filled anew each time."""

    def __init__(self, control: socket.socket, page: Page) -> None:
        self._control = control
        self._page = page
        self.order = Order(*[0] * 8)
        self._hard_limits = {kind: resource.getrlimit(kind)[1] for kind in self.order.limit_kinds()}
        self.descriptors: list[int] = []

    def run(self) -> int:
        """Process 1 of the job, from its first breath to its last. Never raises."""
        try:
            self._page.set_stage(Stage.PREPARING)
            self._make_surroundings()
            program = os.fork()
            if program == 0:
                self._become_program()
            self._until_the_end(program)
        except BaseException as error:
            self._page.fail(f"{type(error).__name__}: {error}")
            return 1
        return 0

    def _make_surroundings(self) -> None:
        order = self.order
        options = f"size={order.temporary_bytes},nr_inodes={order.num_inodes},mode=0755"
        kernel.mount(b"tmpfs", WORK.encode(), kernel.MS_NOSUID | kernel.MS_NODEV, options.encode())
        kernel.mount(b"proc", b"/proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        for kind, wanted in order.resource_limits():
            allowed = self._hard_limits[kind]
            value = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
            resource.setrlimit(kind, (value, value))

    def _until_the_end(self, program: int) -> None:
        descriptor = os.pidfd_open(program)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        status = None
        while status is None:
            events = poll.poll(_REAP_MILLISECONDS)
            if events:
                # The program has ended, or the supervisor wants it to, or the supervisor is gone.
                _kill_everybody()
            status = _reap(program, os.WNOHANG if not events else 0)
        _kill_everybody()
        _reap_everybody()
        os.close(descriptor)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._page.set_ending(status, int((used.ru_utime + used.ru_stime) * 1e6), used.ru_maxrss)

    def _become_program(self) -> None:
        """The other side of the fork: give up every right, then run the stranger's text. Does not return."""
        try:
            stdin, stdout, stderr, content_file = self.descriptors
            os.setsid()
            os.chdir(WORK)
            content = Content(content_file)
            content.lay_files()
            source = [] if content.command else [content.first_file()]
            for number, descriptor in enumerate((stdin, stdout, stderr)):
                os.dup2(descriptor, number)
            os.closerange(3, _DESCRIPTORS_END)
            kernel.drop_capabilities()
            kernel.set_dumpable(True)  # it may look into itself, e.g. through /dev/stdin
            _be_the_first_to_go()
            if content.command:
                self._execute(content)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            del content  # no frame keeps the text of the program, and it takes the only copy
            python_main.run(source, self._page)
        except BaseException as error:
            self._page.fail(f"{type(error).__name__}: {error}")
        os._exit(1)

    def _execute(self, content: Content) -> None:
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._page.set_stage(Stage.RUNNING)
        try:
            os.execve(content.command[0], content.command, content.environment)
        except OSError as error:
            if not content.command[0].startswith(f"{WORK}/"):
                raise  # a tool that was there a moment ago
            os.write(2, f"{content.command[0]}: {error.strerror}\n".encode())
        os._exit(_CANNOT_EXECUTE)  # the text made a file that the kernel does not run


def _be_the_first_to_go() -> None:
    """When the machine or a control group runs out of memory, the kernel ends strangers before anybody else."""
    file = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(file, b"1000")
    os.close(file)


def _kill_everybody() -> None:
    """In the job's namespace, but for this process; the kernel lets nobody slip through by forking meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def _reap(wanted: int, options: int) -> int | None:
    """Reap what has ended; the wait status of `wanted` as soon as it is among them.

    Not all of it at once: on many cores a job could end processes as fast as they are reaped, and what the supervisor
    says would never be heard.
    """
    for _ in range(_MOST_REAPED):
        try:
            pid, status = os.waitpid(-1, options)
        except ChildProcessError:
            return None
        if pid == wanted:
            return status
        if pid == 0:
            return None
    return None


def _reap_everybody() -> None:
    """Nobody makes new ones any more."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
