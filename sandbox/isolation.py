"""Starts the bootstrap with one program behind some wall: bubblewrap's namespaces, or (when asked for) none.

Things that were left out because they cost CPU on every run:
a shell or `prlimit` process to set limits (the bootstrap does), bubblewrap's `--dev` (six mounts
where three do), its reaper process (the bootstrap is process 1 itself), and compiled-file caches (`-B`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandbox.channels import Channels
from sandbox.errors import IsolationError, SandboxError
from sandbox.program import MAIN_FILE, Limits, Program
from sandbox.rlimits import rlimits_argument
from sandbox.seccomp import filter_bytes

STARTUP_SECONDS = 30.0
"""How long the sandbox itself may take to start; longer is a system error."""

_BOOTSTRAP = (Path(__file__).parent / "bootstrap.py").read_text()
_SYSTEM_PYTHON = "/usr/bin/python3"
_SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
_DEVICES = ("null", "urandom")
_WORK = "/tmp"
_NOBODY = "65534"
_PF_EXITING = 0x4  # in the flags of /proc/<pid>/stat, from the kernel's include/linux/sched.h
_log = logging.getLogger(__name__)


@dataclass
class Started:
    """A bootstrap that has been started.

    Attributes:
        process: our own child; its end is the end of the run.
        root_pid: the bootstrap; the program and its descendants are below it.
        root_descriptor: the same process as a descriptor (pidfd): its number may be another's after its end.
        private_tmp: the private temporary file system as a path on this side, or None if there is none.
    """

    process: subprocess.Popen[bytes]
    root_pid: int
    root_descriptor: int
    private_tmp: str | None

    @property
    def has_ended(self) -> bool:
        """The bootstrap is gone, or a zombie."""
        return _is_readable(self.root_descriptor, 0.0)

    @property
    def is_ending(self) -> bool:
        """The bootstrap has begun to exit; as process 1 it waits there until its whole namespace is gone."""
        try:
            fields = Path(f"/proc/{self.root_pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return self.has_ended or bool(int(fields[6]) & _PF_EXITING)

    def temporary_bytes(self, most: int) -> int:
        """What lies in the private temporary file system; it is memory, too. Above `most` it need not be exact."""
        if self.private_tmp is None:
            return 0
        try:
            usage = os.statvfs(self.private_tmp)
        except (FileNotFoundError, ProcessLookupError):
            return 0  # the run has just ended
        except PermissionError:
            if self.is_ending:  # the kernel refuses a plain user the link of a process that has no memory any more
                return 0
            raise
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize

    def kill(self) -> None:
        """End the whole tree. Killing process 1 of a process namespace makes the kernel kill all others."""
        try:
            signal.pidfd_send_signal(self.root_descriptor, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()


class Isolation(Protocol):
    """A kind of wall."""

    def start(self, program: Program, limits: Limits, channels: Channels) -> Started:
        """Start the bootstrap. Raises OSError or SandboxError when that fails; nothing is left running then."""


def python_command(python: str, channels: Channels, rlimits: str) -> list[str]:
    """The interpreter with nothing of the user's: no site, no user folder, no environment but a fixed hash seed.

    `-I` is left out only because it would ignore the hash seed, and without it the order of a set differs between
    two runs of one program; what else `-I` does, the empty environment and the bootstrap do.
    """
    flags = ["-s", "-S", "-B", "-X", "utf8"]
    return [python, *flags, "-c", _BOOTSTRAP, str(channels.their_report), rlimits]


class Bubblewrap:
    """One bubblewrap per run: own namespaces of every kind, a read-only system, a small private /tmp."""

    def __init__(self, bwrap: str = "bwrap") -> None:
        self._bwrap = shutil.which(bwrap) or bwrap
        self._python, folders = interpreter()
        python_binds = [option for folder in folders for option in ("--ro-bind", folder, folder)]
        self._system = ["--ro-bind", "/usr", "/usr", *_system_folders(), *python_binds, *_hidden_project()]
        for device in _DEVICES:
            self._system += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
            self._system += ["--symlink", f"/proc/self/{target}", f"/dev/{name}"]
        self._become_nobody = become_nobody()

    def start(self, program: Program, limits: Limits, channels: Channels) -> Started:
        """See Isolation."""
        status, their_status = channels.pipe()
        command = self._command(program, limits, channels, their_status)
        process = subprocess.Popen(
            command,
            stdin=channels.memory_file(program.stdin_bytes),
            stdout=channels.their_stdout,
            stderr=channels.their_stderr,
            pass_fds=channels.theirs,
            env={},
            cwd="/",
        )
        channels.close_theirs()
        try:
            root_pid = read_child_pid(status)
            root_descriptor = channels.process(root_pid)
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            said = os.read(channels.stderr, 4096).decode(errors="replace").strip()
            raise SandboxError(f"bubblewrap did not start: {said or error}") from error
        return Started(process, root_pid, root_descriptor, f"/proc/{root_pid}/root{_WORK}")

    def _command(self, program: Program, limits: Limits, channels: Channels, their_status: int) -> list[str]:
        command = [*self._become_nobody, self._bwrap, "--unshare-all", "--die-with-parent", "--as-pid-1"]
        command += ["--new-session", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "box"]
        command += ["--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
        command += self._system
        command += ["--proc", "/proc", "--size", str(limits.file_bytes), "--tmpfs", _WORK, "--chdir", _WORK]
        for name, content in {**program.files, MAIN_FILE: program.source_bytes}.items():
            command += ["--file", str(channels.memory_file(content)), f"{_WORK}/{name}"]
        command += ["--symlink", _WORK, "/dev/shm", "--remount-ro", "/"]
        filter_program = filter_bytes()
        if filter_program:
            command += ["--seccomp", str(channels.memory_file(filter_program))]
        else:
            command += ["--unshare-user", "--disable-userns"]
        command += ["--json-status-fd", str(their_status)]
        rlimits = rlimits_argument(limits, own_namespace=True)
        return command + python_command(self._python, channels, rlimits)


class Unsafe:
    """No wall at all: resource limits and a temporary folder. Only for programs that you trust."""

    def __init__(self) -> None:
        _log.warning("sandbox.isolation=unsafe: programs run with your own rights, files and network")

    def start(self, program: Program, limits: Limits, channels: Channels) -> Started:
        """See Isolation. The program's process group is killed at the end; what left the group is not found."""
        folder = channels.folder()
        for name, content in {**program.files, MAIN_FILE: program.source_bytes}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        process = subprocess.Popen(
            python_command(sys.executable, channels, rlimits_argument(limits, own_namespace=False)),
            stdin=channels.memory_file(program.stdin_bytes),
            stdout=channels.their_stdout,
            stderr=channels.their_stderr,
            pass_fds=channels.theirs,
            env={"PYTHONHASHSEED": "0"},
            cwd=folder,
            start_new_session=True,
        )
        channels.close_theirs()
        return StartedUnsafe(process, process.pid, channels.process(process.pid), None)


class StartedUnsafe(Started):
    """Without a process namespace the process group is the best that can be killed at once."""

    def kill(self) -> None:
        """End the process group, which outlives its leader as long as it has members.

        There is no descriptor for a group; its number is not given away before our child, its leader, is reaped.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.root_pid, signal.SIGKILL)


def interpreter() -> tuple[str, list[str]]:
    """The interpreter for the programs and the folders that it needs beyond /usr."""
    if Path(_SYSTEM_PYTHON).exists():
        return _SYSTEM_PYTHON, []
    prefix = str(Path(sys.base_prefix).resolve())
    python = str(Path(sys.executable).resolve())
    return python, [] if prefix.startswith("/usr/") else [prefix]


def _system_folders() -> list[str]:
    """On a merged-/usr system /lib and its like are links into /usr; elsewhere they are folders of their own."""
    options: list[str] = []
    for folder in map(Path, _SYSTEM_FOLDERS):
        if folder.is_symlink():
            options += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            options += ["--ro-bind", str(folder), str(folder)]
    return options


def _hidden_project() -> list[str]:
    """An empty folder over our own code, should it lie below /usr as it does in many containers."""
    project = Path(__file__).resolve().parents[1]
    return ["--tmpfs", str(project)] if project.is_relative_to("/usr") else []


def become_nobody() -> list[str]:
    """Root does not enter the sandbox even as a mapped user: files of root would be its own, and root has no NPROC.

    A separate small executable, because subprocess' own `user=` forks the whole supervisor: 22 ms of CPU at 600 MB.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise IsolationError(
            "setpriv is missing, which a root user needs to run programs as nobody: apt-get install util-linux"
        )
    return [setpriv, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    """Wait until there is something to read. Not by select(2), which knows no descriptor above 1023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def read_child_pid(status: int) -> int:
    """Bubblewrap's first line says which process it made. Raises ValueError when it ends without one."""
    line = b""
    while b"\n" not in line:
        if not _is_readable(status, STARTUP_SECONDS):
            raise TimeoutError(f"no sign of life from bubblewrap for {STARTUP_SECONDS:.0f} seconds")
        part = os.read(status, 4096)
        if not part:
            raise ValueError("it ended at once")
        line += part
    return int(json.loads(line.partition(b"\n")[0])["child-pid"])
