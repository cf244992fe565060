"""System calls that Python's standard library has no name for. Runs inside the cell; Linux only.

The calls keep the interpreter's lock (`PyDLL`): the zygote has one thread, and a process that is made by `clone` must
find the interpreter in the state in which the caller left it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from signal import SIGCHLD

CLONE_VM, CLONE_VFORK = 0x100, 0x4000
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x20000, 0x8000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_PROT_READ_WRITE = 3
_MAP_STACK = 0x2 | 0x20 | 0x4000 | 0x20000  # private, anonymous, not counted before it is touched, a stack

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_ENTRY = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_libc.clone.argtypes = [_ENTRY, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def mount(kind: bytes, target: bytes, flags: int, options: bytes | None = None) -> None:
    """mount(2) of a file system that needs no device."""
    _check(_libc.mount(kind, target, kind, flags, options), f"mount {kind.decode()}")


def set_dumpable(is_dumpable: bool) -> None:
    """At 0 nobody without capabilities may look into this process or its descriptors; forked processes inherit it."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(is_dumpable), 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def drop_capabilities() -> None:
    """Give up every capability for good: a program that is executed gains none either (no_new_privs)."""
    _check(_libc.capset(_CAP_HEADER, _NO_CAPABILITIES), "capset")


_CAP_HEADER = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
_NO_CAPABILITIES = (ctypes.c_uint32 * 6)()


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class SyscallFilter:
    """A seccomp filter, laid ready in memory so that taking it on is one call."""

    def __init__(self, program: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(program, len(program))
        self._program = _FilterProgram(len(program) // 8, ctypes.addressof(self._buffer))
        self._argument = ctypes.byref(self._program)

    def take_on(self) -> None:
        """From here on this process and all that it starts are under the filter."""
        _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._argument, 0, 0), "prctl(PR_SET_SECCOMP)")


def set_no_new_privileges() -> None:
    """No executed file gives this process or its children more rights than they have."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


class Stack:
    """Memory for the stack of a process that shares ours, with a page below it that nothing may touch."""

    def __init__(self, num_bytes: int) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        self.num_bytes = -(-num_bytes // page) * page
        self._length = self.num_bytes + page
        base = _libc.mmap(None, self._length, _PROT_READ_WRITE, _MAP_STACK, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"no address space for a stack of {num_bytes} bytes")
        self._base = base
        _check(_libc.mprotect(base, page, 0), "mprotect")

    @property
    def top(self) -> int:
        """Where it begins; it grows down."""
        return self._base + self._length

    def free(self) -> None:
        """Give the memory back."""
        _check(_libc.munmap(self._base, self._length), "munmap")


class NamespaceMaker:
    """Makes a process in new namespaces that runs `entry`, and waits until it has ended.

    It shares our memory while we are suspended (CLONE_VM, CLONE_VFORK), which costs a third of a fork: nothing is
    copied. `entry` runs on a stack of its own and must return normally, so that whatever it did to the interpreter's
    state is undone by then. CPython 3.14 measures its stack and refuses to run on another: there it is a plain fork.
    """

    def __init__(self, entry: Callable[[], int]) -> None:
        self._entry = entry
        self._c_entry = _ENTRY(lambda _: entry())
        self._stack = Stack(1 << 20)

    def run(self, namespaces: int, stack_bytes: int) -> int:
        """The id of the process, which is to be waited for like any child. Raises OSError when there is none."""
        if sys.version_info >= (3, 14):
            return self._run_in_copied_memory(namespaces)
        if stack_bytes > self._stack.num_bytes:
            self._stack.free()
            self._stack = Stack(stack_bytes)
        flags = CLONE_VM | CLONE_VFORK | namespaces | SIGCHLD
        return _check(_libc.clone(self._c_entry, self._stack.top, flags, None), "clone")

    def _run_in_copied_memory(self, namespaces: int) -> int:
        ctypes.pythonapi.PyOS_BeforeFork()
        pid = _libc.syscall(_SYS_CLONE[os.uname().machine], namespaces | SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            os._exit(self._entry())
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        return _check(pid, "clone")
