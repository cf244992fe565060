"""Starts the bootstrap with one program in a process of its own: what every tier without cells has in common.

The bootstrap sets the kernel's limits, because a shell or `prlimit` would cost a process, and runs without caches of
compiled files (`-B`). Here is the tier without a wall; the other is sandbox.landlock_tier.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandbox.channels import Channels
from sandbox.program import MAIN_FILE, Limits, Program
from sandbox.rlimits import rlimits_argument

_BOOTSTRAP = (Path(__file__).parent / "bootstrap.py").read_text()
_log = logging.getLogger(__name__)


@dataclass
class Started:
    """A bootstrap that has been started.

    Attributes:
        process: our own child; its end is the end of the run.
        root_pid: the bootstrap; the program and its descendants are below it.
        root_descriptor: the same process as a descriptor (pidfd): its number may be another's after its end.
    """

    process: subprocess.Popen[bytes]
    root_pid: int
    root_descriptor: int

    @property
    def has_ended(self) -> bool:
        """The bootstrap is gone, or a zombie."""
        poll = select.poll()  # not select(2), which knows no descriptor above 1023
        poll.register(self.root_descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def temporary_bytes(self, most: int) -> int:
        """What its temporary files take, where that counts as memory. Above `most` it need not be exact."""
        del most
        return 0

    def kill(self) -> None:
        """End the run."""
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
        return StartedUnsafe(process, process.pid, channels.process(process.pid))


class StartedUnsafe(Started):
    """Without a process namespace the process group is the best that can be killed at once."""

    def kill(self) -> None:
        """End the process group, which outlives its leader as long as it has members.

        There is no descriptor for a group; its number is not given away before our child, its leader, is reaped.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.root_pid, signal.SIGKILL)
