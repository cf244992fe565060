"""Canaries: before the first stranger runs, a program of our own tries to get out, and another uses too much."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.capabilities import why_not
from sandbox.errors import IsolationError
from sandbox.host import NOBODY, become_nobody
from sandbox.process_tree import WATCHING_NEEDS
from sandbox.program import Execution, Limits, Program, Verdict

_CANARIES = (Path(__file__).parent / "canary_program.py").read_text()

_GREEDY = """
import os, time
ready, done = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        mine = bytearray(b"x") * (16 << 20)
        os.write(done, b"x")
        time.sleep(60)
left = 4
while left > 0:
    left -= len(os.read(ready, left))
time.sleep(2)
"""
_GREEDY_LIMITS = Limits(cpu_seconds=20, wall_seconds=60, memory_bytes=48 << 20)
"""Each process stays below the limit and only their sum is above it, so that no limit of the kernel's can help."""

Run = Callable[[Program], Execution]


def check_isolation(run: Run, isolation: str, bwrap: str) -> None:
    """Raise IsolationError, with one sentence that says what is missing, unless every canary is held."""
    if missing := why_not(isolation, bwrap):
        raise IsolationError(missing)
    escaped = [name for name, got_out in try_canaries(run, isolation).items() if got_out]
    if escaped:
        raise IsolationError(f"programs cannot be isolated: inside {isolation} a program could {', '.join(escaped)}")


def try_canaries(run: Run, isolation: str) -> dict[str, bool]:
    """Every canary by name, and whether it got out. Raises IsolationError when they could not even be run."""
    with _things_outside() as outside:
        execution = run(Program(_CANARIES, stdin=json.dumps(outside)))
        if execution.verdict is not Verdict.OK:
            raise IsolationError(_explain(execution, isolation))
        got_out: dict[str, bool] = json.loads(execution.stdout)
        return got_out | {"leave a process behind": _is_running(outside["daemon_name"])}


def check_watching(run: Callable[[Program, Limits], Execution]) -> None:
    """Raise IsolationError unless a tree of processes that goes over a limit together is noticed and ended."""
    execution = run(Program(_GREEDY), _GREEDY_LIMITS)
    if execution.verdict is Verdict.MLE:
        return
    said = execution.stderr.decode(errors="replace").strip()[-500:] or WATCHING_NEEDS
    raise IsolationError(
        "the limits of programs cannot be watched here: a test program whose processes together used more memory than "
        f"allowed ended with {execution.verdict} instead of {Verdict.MLE}: {said}"
    )


@contextmanager
def _things_outside() -> Iterator[dict[str, object]]:
    """What the canaries reach for. All of it exists and belongs to the user that programs run as."""
    name = f"canary-{secrets.token_hex(4)}"
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as in_a_file,
        subprocess.Popen([*become_nobody(), "sleep", "120"]) as sleeper,
    ):
        secret, socket_file = Path(folder) / "secret", Path(folder) / "socket"
        secret.write_text("secret")
        datagrams.bind(("127.0.0.1", 0))
        abstract.bind("\0" + name)
        in_a_file.bind(str(socket_file))
        for listener in (abstract, in_a_file):
            listener.listen()
        for path, mode in ((Path(folder), 0o711), (secret, 0o644), (socket_file, 0o777)):
            path.chmod(mode)
            if os.geteuid() == 0:
                os.chown(path, NOBODY, NOBODY)
        try:
            yield {
                "tcp_port": server.getsockname()[1],
                "udp_port": datagrams.getsockname()[1],
                "abstract_socket": name,
                "socket_file": str(socket_file),
                "secret": str(secret),
                "files": [str(secret), "/etc/shadow", "/etc/passwd", __file__],
                "folders": [folder, "/home", "/root", str(Path(__file__).parent)],
                "process": sleeper.pid,
                "daemon_name": name,
            }
        finally:
            sleeper.kill()


def _is_running(name: object) -> bool:
    """Whether a process of that name (at most 15 letters) is alive on this machine."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == str(name)[:15]:
                return True
        except OSError:
            continue
    return False


def _explain(execution: Execution, isolation: str) -> str:
    said = execution.stderr.decode(errors="replace").strip()[-500:]
    return (
        f"programs cannot be isolated: a test program in {isolation} ended with {execution.verdict} ({said}); "
        "in a container, allow user namespaces and mounts, e.g. docker run --security-opt seccomp=unconfined "
        "--security-opt systempaths=unconfined, or try sandbox.isolation=landlock; `cispo sandbox check` shows more"
    )
