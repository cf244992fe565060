"""One warm cell, from this side: starts it, gives it one job at a time, ends it.

A cell ends with whoever started it, by two ways that do not need each other: its control socket closes, and the
kernel kills it with the thread that started it (`--die-with-parent`), which therefore is one that never ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import signal
import socket
import subprocess
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future

from sandbox.cell_walls import CellKind, cell_command, zygote_source
from sandbox.cgroup import CellGroup
from sandbox.channels import memory_file
from sandbox.endings import Ending, conclude
from sandbox.errors import IsolationError, SandboxError
from sandbox.inside.page import Page, Stage
from sandbox.inside.zygote import ENDED, KILL, READY
from sandbox.process_tree import WATCHING_NEEDS, ProcessTree, Usage, children, file_system_bytes
from sandbox.program import Execution, Verdict
from sandbox.refused_calls import ARCHITECTURES, IN_A_CELL
from sandbox.seccomp import filter_bytes
from sandbox.task import Task
from sandbox.watch import STARTUP_SECONDS, Watched, watch

WORK = "/tmp"
_MESSAGE_BYTES = 64
_END_SECONDS = 10.0


class Cell:
    """A started cell, ready for its first job. One thread at a time.

    Raises SandboxError when it does not start; nothing is left of it then.
    """

    def __init__(self, kind: CellKind, bwrap: str = "bwrap", cgroup: str = "") -> None:
        self.kind = kind
        self._group = CellGroup(cgroup) if cgroup else None
        self.num_jobs = 0
        self.is_clean = True
        """False once something happened after which no further job may be given to it."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                self._process = self._start(bwrap, ours, theirs)
            except (OSError, RuntimeError) as error:
                raise SandboxError(f"a cell did not start: {error}") from error
            ours.pop_all()  # from here on they are closed with the cell
        self._zygote: list[int] = []
        self._end = weakref.finalize(
            self, _end, self._process, self._zygote, self._control, self._page, self._diagnostics, self._group
        )
        self._wait_until_ready()

    def _start(self, bwrap: str, ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> subprocess.Popen[bytes]:
        def hand_over(descriptor: int) -> int:
            theirs.callback(os.close, descriptor)
            return descriptor

        self._page, page_file = Page.create()
        ours.callback(self._page.close)
        hand_over(page_file)
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.callback(self._control.close)
        theirs.callback(control.close)
        self._diagnostics, diagnostics = os.pipe()
        ours.callback(os.close, self._diagnostics)
        hand_over(diagnostics)
        os.set_blocking(self._diagnostics, False)
        source, filter_file = hand_over(memory_file(zygote_source())), hand_over(memory_file(_filter()))
        command = cell_command(shutil.which(bwrap) or bwrap, self.kind, control.fileno(), page_file, filter_file)
        return _start(command, source, diagnostics, (control.fileno(), page_file, filter_file))

    def _wait_until_ready(self) -> None:
        said = ""
        if _is_readable(self._control.fileno(), STARTUP_SECONDS) and self._receive() == READY:
            try:
                self.pid = children(self._process.pid, num_threads=1)[0]
                self._zygote.append(os.pidfd_open(self.pid))
                if self._group is not None:
                    self._group.take_in(self._process.pid)
                    self._group.take_in(self.pid)
                self._read_diagnostics()
                return
            except (IndexError, OSError) as error:
                said = f"it cannot be watched ({error}): {WATCHING_NEEDS}"
        said = said or self._read_diagnostics() or "it ended without a word"
        self.close()
        raise SandboxError(f"a cell did not start: {said}")

    def _receive(self) -> bytes:
        try:
            return self._control.recv(_MESSAGE_BYTES)
        except OSError:
            return b""

    def _read_diagnostics(self) -> str:
        try:
            return os.read(self._diagnostics, 1 << 16).decode(errors="replace").strip()[-500:]
        except OSError:
            return ""

    def run(self, task: Task, is_cancelled: Callable[[], bool] = lambda: False) -> Execution:
        """Run one job to its end. Raises SandboxError or OSError when the cell fails; it is not clean then."""
        self.is_clean = False
        self._page.reset()
        num_killed = 0
        if self._group is not None:
            self._group.set_limits(task.limits)
            num_killed = self._group.num_killed
        with task.channels() as channels:
            socket.send_fds(self._control, [task.order.pack()], channels.theirs)
            channels.close_theirs()
            seen = watch(_CellRun(self, task), channels.stdout, channels.stderr, task.limits, is_cancelled)
        answer = self._receive()
        self.num_jobs += 1
        killed_by_kernel = self._group is not None and self._group.num_killed > num_killed
        if not answer and killed_by_kernel:
            # The cell itself was chosen: a job may hold memory that is no process's, and make itself the last to go.
            seen.stopped = seen.stopped or Verdict.MLE
            return conclude(seen, Ending(Stage.RUNNING), task.limits)
        if not answer:
            said = self._page.message if self._page.stage is Stage.FAILED else self._read_diagnostics()
            raise SandboxError(f"the cell ended in mid-job: {said or 'without a word'}")
        self.is_clean = answer == ENDED and not seen.is_late
        if killed_by_kernel and seen.stopped is None:
            seen.stopped = Verdict.MLE  # between two looks, by the kernel
        return self._conclude(task, seen)

    def _conclude(self, task: Task, seen: Watched) -> Execution:
        stage, ending = self._page.stage, self._page.ending
        if stage is Stage.FAILED:
            raise SandboxError(f"the cell failed: {self._page.message}")
        if ending is None:
            raise SandboxError(f"the cell did not say how a job ended, which had come as far as {stage.name}")
        status, cpu_micros, peak_kib = ending
        execution = conclude(seen, Ending(stage, status, cpu_micros / 1e6, peak_kib * 1024), task.limits)
        self.is_clean = self.is_clean and execution.verdict is not Verdict.SE
        return execution

    def kill_job(self) -> None:
        """Ask process 1 of the job to end everything in it."""
        with contextlib.suppress(OSError):
            self._control.send(KILL)

    def stage(self) -> Stage:
        """How far its job has come."""
        return self._page.stage

    def job_root(self) -> int | None:
        """Process 1 of the job that it is at, as this side numbers it."""
        found = children(self.pid, num_threads=1)
        return found[0] if found else None

    @property
    def control(self) -> int:
        """Readable when the job has ended, or the cell has."""
        return self._control.fileno()

    def close(self) -> None:
        """End it and all that is in it."""
        self._end()


class _CellRun:
    """A job in a cell, as the watch sees it."""

    def __init__(self, cell: Cell, task: Task) -> None:
        self._cell = cell
        self._memory_bytes = task.limits.memory_bytes
        self._tree: ProcessTree | None = None

    @property
    def ended(self) -> int:
        return self._cell.control

    def has_begun(self) -> bool:
        return self._cell.stage() >= Stage.PREPARING

    def look(self) -> Usage:
        if self._tree is None:
            root = self._cell.job_root()
            if root is None:
                return Usage(0.0, 0, 0)
            self._tree = ProcessTree(root, lambda _: file_system_bytes(root, WORK), self._memory_bytes)
        return self._tree.look()

    def kill(self) -> None:
        self._cell.kill_job()


def _filter() -> bytes:
    program = filter_bytes(IN_A_CELL)
    if not program:
        raise IsolationError(
            f"programs cannot be isolated on {os.uname().machine}: system calls are filtered on "
            f"{' and '.join(ARCHITECTURES)} only"
        )
    return program


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    """Wait until there is something to read. Not by select(2), which knows no descriptor above 1023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _end(
    process: subprocess.Popen[bytes],
    zygote: list[int],
    control: socket.socket,
    page: Page,
    diagnostics: int,
    group: CellGroup | None,
) -> None:
    """Kill the zygote, process 1 of the cell; the kernel kills everything in it, and bubblewrap ends by itself."""
    for descriptor in zygote:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
    control.close()
    page.close()
    os.close(diagnostics)
    try:
        process.wait(_END_SECONDS if zygote else 0.0)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    if group is not None:
        group.close()


class _Starter(threading.Thread):
    """Starts processes that are to live as long as this process: the kernel kills them with the thread."""

    def __init__(self) -> None:
        super().__init__(name="sandbox-starter", daemon=True)
        self.orders: queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], Callable[[], subprocess.Popen[bytes]]]]
        self.orders = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            future, make = self.orders.get()
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
            del future, make


_starter: _Starter | None = None
_starter_lock = threading.Lock()


def _start(command: list[str], stdin: int, output: int, pass_fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    global _starter
    with _starter_lock:
        if _starter is None or not _starter.is_alive():  # none is alive in a process that was forked
            starter = _Starter()
            starter.start()
            _starter = starter
    future: Future[subprocess.Popen[bytes]] = Future()
    _starter.orders.put(
        (
            future,
            lambda: subprocess.Popen(
                command, stdin=stdin, stdout=output, stderr=output, pass_fds=pass_fds, env={}, cwd="/"
            ),
        )
    )
    return future.result()
