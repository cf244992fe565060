"""A filter of system calls for the sandbox, assembled by hand because libseccomp may not be there.

What it refuses are ways around the other walls: new namespaces (in which a program would have every capability and
could mount file systems that nobody counts), memory that belongs to no process (memfd, System V), sockets of any
family but AF_UNIX, debugging of the bootstrap, and kernel features with a long record of holes. A refused call
fails with EPERM; a call in another architecture's table (x32, i386) kills the process. Numbers are from the
kernel's unistd headers. On a machine that is not listed bubblewrap forbids new user namespaces instead.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct

# One number per architecture, in the order of _ARCHITECTURES: x86_64, aarch64. -1: it has none.
_REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "personality": (135, 92),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "acct": (163, 89), "swapon": (167, 224), "reboot": (169, 142), "syslog": (103, 116),
    "unshare": (272, 97), "setns": (308, 268), "sethostname": (170, 161), "setdomainname": (171, 162),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "iopl": (172, -1), "ioperm": (173, -1),
    "modify_ldt": (154, -1), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
_X32_BIT = 0x40000000
_AF_UNIX = 1

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT_0 = 0, 4, 16  # offsets in struct seccomp_data; both machines are little-endian


@functools.cache
def filter_bytes() -> bytes:
    """The filter as bubblewrap's --seccomp reads it, or nothing on an architecture that is not listed."""
    if platform.machine() not in _ARCHITECTURES:
        return b""
    column, audit_arch = _ARCHITECTURES[platform.machine()]
    refuse = _ERRNO | errno.EPERM
    code = _load(_ARCH) + _instruction(_EQUAL, audit_arch, if_true=1) + _return(_KILL)
    code += _load(_NUMBER)
    if column == 0:
        code += _instruction(_AT_LEAST, _X32_BIT, if_false=1) + _return(_KILL)
    for numbers in _REFUSED.values():
        if numbers[column] >= 0:
            code += _instruction(_EQUAL, numbers[column], if_false=1) + _return(refuse)
    # Its flags lie in memory, where a filter cannot look; libc falls back to clone.
    code += _instruction(_EQUAL, _CLONE3[column], if_false=1) + _return(_ERRNO | errno.ENOSYS)
    code += _instruction(_EQUAL, _CLONE[column], if_false=4) + _load(_ARGUMENT_0)
    code += _instruction(_ANY_BIT, _NEW_NAMESPACE, if_false=1) + _return(refuse) + _return(_ALLOW)
    code += _instruction(_EQUAL, _SOCKET[column], if_false=3) + _load(_ARGUMENT_0)
    code += _instruction(_EQUAL, _AF_UNIX, if_true=1) + _return(refuse)
    return code + _return(_ALLOW)


def _instruction(operation: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; jumps count the instructions that are skipped."""
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, action)
