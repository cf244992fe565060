"""Canaries: before the first stranger runs, a program of our own tries to get out, and another uses too much."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from sandbox.errors import IsolationError
from sandbox.process_tree import WATCHING_NEEDS
from sandbox.program import Execution, Limits, Program, Verdict

_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give bwrap an AppArmor profile",
    ),
)
"""Below /proc/sys: the value that forbids user namespaces, and what an administrator can do."""

_CANARY = r"""
import json, os, socket, sys
system = ("/usr/canary", "/canary", "/dev/canary")
outside = json.load(sys.stdin)

def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))

def exit_code(*command):
    return os.waitstatus_to_exitcode(os.waitpid(os.spawnv(os.P_NOWAIT, command[0], command), 0)[1])

print(json.dumps({
    "reach the network": not refused(lambda: socket.create_connection(("127.0.0.1", outside["port"]), timeout=1)),
    "read a file outside": not all(refused(lambda: open(path)) for path in outside["files"]),
    "list a folder outside": not all(refused(lambda: os.listdir(path)) for path in outside["folders"]),
    "write to the system": not all(refused(lambda: open(path, "w")) for path in system),
    "see other processes": sum(name.isdigit() for name in os.listdir("/proc")) > 2,
    "see an environment": dict(os.environ) != {},
    "have capabilities": int(status("CapEff"), 16) != 0 or status("NoNewPrivs") != "1",
    "make new namespaces": exit_code("/usr/bin/unshare", "--user", "/bin/true") == 0,
    "not write to its own folder": refused(lambda: open("canary", "w")),
    "not start a process": exit_code(sys.executable, "-S", "-c", "") != 0,
}))
"""


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


def check_isolation(run: Callable[[Program], Execution], bwrap: str) -> None:
    """Raise IsolationError, with one sentence that says what is missing, unless every canary is held."""
    if shutil.which(bwrap) is None:
        raise IsolationError(
            f"programs cannot be isolated because bubblewrap is not installed (looked for {bwrap!r}): "
            "apt-get install bubblewrap, or set sandbox.isolation=unsafe to run trusted programs without it"
        )
    execution = _run_canary(run)
    if execution.verdict is not Verdict.OK:
        raise IsolationError(_explain(execution))
    freedoms = [what for what, could in json.loads(execution.stdout).items() if could]
    if freedoms:
        raise IsolationError(f"programs cannot be isolated: inside bubblewrap a program could {', '.join(freedoms)}")


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


def _run_canary(run: Callable[[Program], Execution]) -> Execution:
    """The program gets addresses that do exist outside, so that a refusal means something."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        tempfile.NamedTemporaryFile(prefix="sandbox-canary-") as secret,
    ):
        Path(secret.name).chmod(0o644)
        outside = {
            "port": server.getsockname()[1],
            "files": [secret.name, "/etc/shadow", "/etc/passwd", __file__],
            "folders": ["/home", "/root", str(Path(__file__).parent)],
        }
        return run(Program(_CANARY, stdin=json.dumps(outside)))


def _explain(execution: Execution) -> str:
    for switch, forbidding, remedy in _SWITCHES:
        file = Path("/proc/sys") / switch
        if file.exists() and file.read_text().strip() == forbidding:
            return (
                f"programs cannot be isolated because {switch.replace('/', '.')} is {forbidding}, "
                f"which forbids user namespaces; an administrator can run: {remedy}"
            )
    said = execution.stderr.decode(errors="replace").strip()[-500:]
    return (
        f"programs cannot be isolated: a test program in bubblewrap ended with {execution.verdict} ({said}); "
        "in a container, allow user namespaces and mounts, e.g. docker run --security-opt seccomp=unconfined"
    )
