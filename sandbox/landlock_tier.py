"""Runs a program behind Landlock and seccomp, where user namespaces are forbidden. Weaker than bubblewrap.

Holds: files, network, other processes, the environment, system calls, all limits of the supervisor. Does not hold, for
want of namespaces: the program sees that paths outside exist (stat) and how many processes the machine has; its own
processes are counted by the supervisor alone and not by the kernel; it cannot use /proc, /tmp by that name, sockets
other than pairs, setsid, chmod and the like; its files lie on the disk and count when the supervisor looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sandbox.channels import Channels
from sandbox.errors import SandboxError
from sandbox.host import NOBODY, become_nobody, interpreter
from sandbox.isolation import Started, python_command
from sandbox.landlock import wall
from sandbox.private_folder import folder_bytes
from sandbox.program import MAIN_FILE, Limits, Program
from sandbox.rlimits import rlimits_argument
from sandbox.watch import STARTUP_SECONDS

_KEEPER = (Path(__file__).parent / "landlock_keeper.py").read_text()
_NEIGHBOURS = 4
"""The kernel's limit on processes is that of the user, so it leaves room for programs that start beside this one; the
supervisor keeps the program's own. Without any, a fork bomb kept two cores from everybody for 71 seconds."""


class Landlock:
    """See Isolation. Raises IsolationError where Landlock is missing, or root cannot become nobody."""

    def __init__(self, abi: int | None = None) -> None:
        self._abi = abi
        self._python, self._programs = interpreter()
        self._become_nobody = become_nobody()
        wall(Path("/nonexistent"), self._programs, abi)  # says now what is missing

    def start(self, program: Program, limits: Limits, channels: Channels) -> Started:
        """See Isolation."""
        owner = NOBODY if self._become_nobody else None
        folder = channels.folder(owner)
        _lay_files(folder, program, owner)
        status, their_status = channels.pipe()
        their_lifeline, lifeline = channels.pipe_to_them()
        plan = channels.memory_file(self._plan(folder, limits, channels))
        keeper = [self._python, "-I", "-S", "-c", _KEEPER, *map(str, (plan, their_status, their_lifeline))]
        process = subprocess.Popen(
            [*self._become_nobody, *keeper],
            stdin=channels.memory_file(program.stdin_bytes),
            stdout=channels.their_stdout,
            stderr=channels.their_stderr,
            pass_fds=channels.theirs,
            env={},
            cwd="/",
        )
        channels.close_theirs()
        try:
            bootstrap = read_child_pid(status)
            return StartedLandlock(process, bootstrap, channels.process(process.pid), folder, lifeline)
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            said = os.read(channels.stderr, 4096).decode(errors="replace").strip()
            raise SandboxError(f"the program could not be put behind Landlock: {said or error}") from error

    def _plan(self, folder: Path, limits: Limits, channels: Channels) -> bytes:
        around = wall(folder, self._programs, self._abi)
        rlimits = rlimits_argument(limits, own_namespace=False)
        plan = {
            "folder": str(folder),
            "num_processes": limits.num_processes * _NEIGHBOURS,
            "handled": around.handled,
            "rules": around.rules,
            "filter": around.filter.hex(),
            "kept": [channels.their_report],
            "command": python_command(self._python, channels, rlimits),
            "environment": {"PYTHONHASHSEED": "0"},
        }
        return json.dumps(plan).encode()


@dataclass
class StartedLandlock(Started):
    """`process` is the keeper, `root_pid` the bootstrap behind the wall; the keeper kills when it is told to."""

    folder: Path
    lifeline: int

    def kill(self) -> None:
        """Tell the keeper to end the whole group. Does nothing once that has happened."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.lifeline, b"x")

    def temporary_bytes(self, most: int) -> int:
        """What lies in the private folder; it is no memory here, but nobody else bounds the sum of its files."""
        return folder_bytes(self.folder, most)


def _lay_files(folder: Path, program: Program, owner: int | None) -> None:
    for name, content in {**program.files, MAIN_FILE: program.source_bytes}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if owner is not None:
            for own in (path, *path.relative_to(folder).parents):
                os.chown(folder / own, owner, owner)


def read_child_pid(status: int) -> int:
    """The keeper's first line says which process it made. Raises ValueError when it ends without one."""
    poll = select.poll()
    poll.register(status, select.POLLIN)
    line = b""
    while b"\n" not in line:
        if not poll.poll(STARTUP_SECONDS * 1000):
            raise TimeoutError(f"no sign of life from the keeper for {STARTUP_SECONDS:.0f} seconds")
        part = os.read(status, 4096)
        if not part:
            raise ValueError("it ended at once")
        line += part
    return int(json.loads(line.partition(b"\n")[0])["child-pid"])
