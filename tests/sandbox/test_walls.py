"""Hostile programs: what they must not reach, must not use up and must not leave behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import Limits, Program, Verdict
from sandbox.isolation import Started


def report(attempt: str) -> str:
    """A program that prints what became of an attempt."""
    return f"import os, socket\ntry:\n    print('reached', {attempt})\nexcept OSError as error:\n    print('refused')"


@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/shadow').read()",
        "open('/etc/passwd').read()",
        f"open({str(Path(__file__))!r}).read()",
        f"os.listdir({str(Path.home())!r})",
        "os.listdir('/root')",
        "os.listdir('/home')",
        "os.listdir('/var')",
        "open('/proc/1/root/etc/shadow').read()",
        "open('/proc/1/environ').read()",
        "open('/proc/1/mem', 'r+b')",
        "os.listdir('/proc/1/fd')",
        "open('/dev/mem')",
        "open('/usr/x', 'w')",
        "open('/x', 'w')",
        "open('/dev/x', 'w')",
        "open('/proc/sys/kernel/hostname', 'w')",
        "open('/proc/sysrq-trigger', 'w')",
        "os.truncate('/usr/bin/python3', 0)",
        "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
        "os.chroot('/tmp')",
        "os.setuid(0)",
        "os.setgroups([0])",
        "os.nice(-5)",
        "socket.create_connection(('127.0.0.1', 22), timeout=1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
        "socket.getaddrinfo('example.org', 80)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "os.memfd_create('hidden')",
        "os.write(3, b'ended 0 0 0')",
        "os.truncate('/tmp/main.py', 1 << 40)",
    ],
)
def test_out_of_reach(box, attempt):
    execution = box.run(Program(report(attempt)))
    assert (execution.verdict, execution.stdout) == (Verdict.OK, b"refused\n"), execution


def test_the_environment_is_empty(box, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    execution = box.run(Program("import os; print(dict(os.environ)); print(open('/proc/self/environ').read())"))
    assert execution.stdout.startswith(b"{}\n")
    assert b"secret" not in execution.stdout


def test_only_its_own_processes_are_visible(box):
    source = "import os; print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()), os.getuid())"
    assert box.run(Program(source)).stdout == b"[1, 2] 1000\n"


def test_no_descriptor_but_the_three(box):
    # The fourth is that of the listing itself.
    assert box.run(Program("import os; print(sorted(os.listdir('/proc/self/fd')))")).stdout == b"['0', '1', '2', '3']\n"


def test_no_way_to_new_namespaces_or_other_tables_of_system_calls(box):
    source = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print([libc.unshare(1 << bit) for bit in (17, 28, 29, 30)], libc.mount(b'x', b'/tmp', b'tmpfs', 0, None))\n"
        "print(libc.ptrace(16, 1, 0, 0), libc.shmget(0, 1 << 20, 0o1600), libc.personality(0x0040000))\n"
    )
    assert box.run(Program(source)).stdout == b"[-1, -1, -1, -1] -1\n-1 -1 -1\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 exists on x86_64 only")
def test_the_x32_table_is_closed(box):
    execution = box.run(Program("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39)"))
    assert (execution.verdict, execution.signal) == (Verdict.RE, 31)


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("import os\nwhile True: os.fork()", {Verdict.RE, Verdict.TLE}),
        (
            "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
            {Verdict.TLE},
        ),
        (
            "import os, time\nfor _ in range(20):\n    if os.fork() == 0:\n"
            "        x = bytearray(b'x') * (20 << 20)\n        time.sleep(60)\ntime.sleep(60)",
            {Verdict.MLE},
        ),
        (
            "import os\nfor _ in range(8):\n    if os.fork() == 0:\n        while True: pass\nos.wait()",
            {Verdict.TLE},
        ),
        (
            "import threading\n\ndef spin():\n    while True: pass\n\n"
            "for _ in range(8): threading.Thread(target=spin).start()",
            {Verdict.TLE},
        ),
        (
            "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            {Verdict.RE},
        ),
        (
            "import time\nfor n in range(40):\n    with open(f'f{n}', 'wb') as f: f.write(b'x' * (4 << 20))\n"
            "time.sleep(60)",
            {Verdict.MLE, Verdict.RE},
        ),
        ("with open('big', 'wb') as f: f.seek(1 << 40); f.write(b'x')", {Verdict.RE}),
        ("import os\nkeep = [os.pipe() for _ in range(500)]", {Verdict.RE}),
        (
            "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)",
            {Verdict.MLE, Verdict.RE, Verdict.TLE},
        ),
        ("import sys\nx = 9 ** 9 ** 9", {Verdict.TLE}),
    ],
)
def test_limits_hold_for_the_whole_tree(box, source, allowed):
    namespace = "import os, sys; print(os.readlink('/proc/self/ns/pid'), flush=True)\n"
    execution = box.run(Program(namespace + source))
    assert execution.verdict in allowed, execution
    assert living_in(execution.stdout.split(b"\n")[0].decode()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)",
        "import os, time\nif os.fork() == 0:\n    os.close(0); os.close(1); os.close(2); time.sleep(60)",
        "import os, time\nif os.fork() == 0: time.sleep(60)",
        "import os\nfor signal in (1, 2, 9, 15, 64): os.kill(1, signal)",
        "import os, time\nif os.fork() == 0: time.sleep(60)\nos.kill(-1, 9)",
    ],
)
def test_nothing_is_left_over(box, source):
    namespace = "import os; print(os.readlink('/proc/self/ns/pid'), flush=True)\n"
    execution = box.run(Program(namespace + source), Limits(wall_seconds=20))
    assert execution.verdict is Verdict.OK, execution
    assert living_in(execution.stdout.decode().strip()) == []


def test_one_run_leaves_nothing_for_the_next(box):
    box.run(Program("open('/tmp/left', 'w').write('x')"))
    assert box.run(Program("import os; print(os.listdir('/tmp'))")).stdout == b"['main.py']\n"


def test_a_kill_never_reaches_whoever_has_the_number_now():
    """As after the end of a run: the process is reaped, and its number belongs to a stranger."""
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    ours = subprocess.Popen(sleep)
    descriptor = os.pidfd_open(ours.pid)
    ours.kill()
    ours.wait()
    with subprocess.Popen(sleep) as stranger:
        started = Started(ours, stranger.pid, descriptor)
        assert started.has_ended
        started.kill()
        time.sleep(0.05)
        assert stranger.poll() is None
        stranger.kill()
    os.close(descriptor)


def living_in(namespace: str) -> list[int]:
    """Processes of this machine in the given process namespace."""
    assert namespace.startswith("pid:[")
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and str((folder / "ns/pid").readlink()) == namespace:
                found.append(int(folder.name))
        except OSError:
            continue
    return found
