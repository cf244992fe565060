"""Tries to get out. Runs inside the sandbox as the program of self_test.py, and is passed to it as text.

Each function is one known escape: it returns true if it got out, and false or an OSError if it was held. Standard input
names things outside that do exist and that this user may touch, so that being held means something. Standard output is
which of them got out.
"""
# ruff: noqa: D103, PTH208 (a name says what is tried; and Path.iterdir of Python 3.11 tries nothing before it is used)

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_NEW_USER_NAMESPACE, _SEIZE, _SET_NAME, _GET_NO_NEW_PRIVS = 0x10000000, 0x4206, 15, 39
# bpf, perf_event_open, userfaultfd, io_uring_setup, keyctl, open_by_handle_at
_DOORS = {"x86_64": (321, 298, 323, 425, 250, 304), "aarch64": (280, 241, 282, 425, 219, 265)}
_X32_GETPID = 0x40000000 + 39

_outside: dict[str, Any] = json.load(sys.stdin)


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _succeeds_with_any(attempt: Callable[[Any], object], values: Iterable[Any]) -> bool:
    return any([_succeeds(functools.partial(attempt, value)) for value in values])


def _connects(kind: int, address: Any, family: int = socket.AF_UNIX) -> bool:
    with socket.socket(family, kind) as client:
        client.settimeout(1)
        client.connect(address)
        client.send(b"out")
    return True


def _status_of(attempt: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        attempt()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reach_the_network() -> bool:
    return _connects(socket.SOCK_STREAM, ("127.0.0.1", _outside["tcp_port"]), socket.AF_INET)


def read_a_file_outside() -> bool:
    return _succeeds_with_any(lambda path: Path(path).read_bytes(), _outside["files"])


def list_a_folder_outside() -> bool:
    return _succeeds_with_any(os.listdir, _outside["folders"])


def write_to_the_system() -> bool:
    paths = ("/usr/canary", "/canary", "/dev/canary", _outside["secret"])
    return _succeeds_with_any(lambda path: os.open(path, os.O_WRONLY | os.O_CREAT), paths)


def change_rights_of_a_file_outside() -> bool:
    return _succeeds(lambda: Path(_outside["secret"]).chmod(0o600))


def send_a_datagram() -> bool:
    return _connects(socket.SOCK_DGRAM, ("127.0.0.1", _outside["udp_port"]), socket.AF_INET)


def reach_an_abstract_socket_outside() -> bool:
    return _connects(socket.SOCK_STREAM, "\0" + _outside["abstract_socket"])


def reach_a_socket_in_a_file_outside() -> bool:
    return _connects(socket.SOCK_STREAM, _outside["socket_file"])


def see_other_processes() -> bool:
    return len({name for name in os.listdir("/proc") if name.isdigit()} - {"1", str(os.getpid())}) > 1


def read_the_environment_of_another() -> bool:
    def read(pid: int) -> None:
        if not Path(f"/proc/{pid}/environ").read_bytes():
            raise OSError("empty")

    return _succeeds_with_any(read, (1, _outside["process"]))


def signal_a_process_outside() -> bool:
    return _succeeds(lambda: os.kill(_outside["process"], signal.SIGCONT))


def set_limits_of_a_process_outside() -> bool:
    return _succeeds(lambda: resource.prlimit(_outside["process"], resource.RLIMIT_CORE, (0, 0)))


def trace_its_parent() -> bool:
    return bool(_libc.ptrace(_SEIZE, os.getppid(), 0, 0) == 0)


def hold_capabilities() -> bool:
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    has_none = _libc.capget(header, data) == 0 and not any(data)
    return not has_none or _libc.prctl(_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1


def see_an_environment() -> bool:
    return bool(os.environ)


def hold_descriptors_of_the_sandbox() -> bool:
    return _succeeds_with_any(os.fstat, range(3, 1024))


def make_new_namespaces() -> bool:
    return bool(_libc.unshare(_NEW_USER_NAMESPACE) == 0)


def mount_a_file_system() -> bool:
    return bool(_libc.mount(b"none", bytes(Path.cwd()), b"tmpfs", 0, None) == 0)


def hide_memory_from_those_who_count() -> bool:
    shares = _succeeds(lambda: mmap.mmap(-1, 4096))
    return shares or _succeeds(lambda: os.memfd_create("canary")) or bool(_libc.shmget(0, 4096, 0o1600) != -1)


def open_doors_of_the_kernel() -> bool:
    closed = (1, 38)  # EPERM, ENOSYS
    for number in _DOORS.get(os.uname().machine, ()):
        ctypes.set_errno(0)
        if _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6) != -1 or ctypes.get_errno() not in closed:
            return True
    return False


def call_the_kernel_by_another_table() -> bool:
    if os.uname().machine != "x86_64":
        return False
    return _status_of(lambda: _libc.syscall(ctypes.c_long(_X32_GETPID))) != -signal.SIGSYS


def leave_a_process_behind() -> bool:
    """Whether it is still there only shows afterwards, and from outside."""
    if os.fork() == 0:
        _succeeds(os.setsid)
        if os.fork() == 0:
            _libc.prctl(_SET_NAME, _outside["daemon_name"].encode(), 0, 0, 0)
            os.closerange(0, 3)
            signal.sigtimedwait([signal.SIGUSR2], 60)
        os._exit(0)
    os.wait()
    return False


def not_write_to_its_own_folder() -> bool:
    return not _succeeds(lambda: Path("canary").write_text("sings"))


def not_start_a_process() -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(os.spawnv(os.P_NOWAIT, "/bin/true", ["true"]), 0)[1]) != 0


def _main() -> None:
    out = {}
    for name, escape in list(globals().items()):
        if name.startswith("_") or getattr(escape, "__module__", None) != __name__:
            continue
        try:
            out[name.replace("_", " ")] = escape()
        except OSError:
            out[name.replace("_", " ")] = False
    print(json.dumps(out))


_main()
