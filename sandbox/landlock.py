"""Landlock: what the kernel lets a plain process give up for good, and which of it a program keeps.

The tier for machines that forbid user namespaces. A program keeps reading and running the system's folders, and
everything below one private folder; it gives up all other files, TCP, signals to processes outside its domain and
abstract sockets (both by filter before Linux 6.12, see refused_calls.py). Source: landlock(7) and the kernel's
include/uapi/linux/landlock.h. What Landlock does not guard is refused by seccomp: see WITHOUT_NAMESPACES there.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import IsolationError
from sandbox.refused_calls import EVERYWHERE, WITHOUT_NAMESPACES, WITHOUT_SIGNAL_SCOPE
from sandbox.seccomp import filter_bytes

NEEDED_ABI = 4
"""Linux 6.7: the first that can refuse TCP, and that can refuse to truncate (ABI 3) and to move files (ABI 2)."""

_SIGNAL_SCOPE_ABI = 6
_CREATE_RULESET, _VERSION = 444, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_OF_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Rights over files by version: 1 has the first thirteen, 2 adds refer, 3 truncate, 5 ioctl on devices."""
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract sockets, signals

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_DEVICES = {"/dev/null": _READ_FILE | _WRITE_FILE, "/dev/urandom": _READ_FILE}

_FILTER = EVERYWHERE + WITHOUT_NAMESPACES
_FILTER_WITHOUT_SCOPE = _FILTER + WITHOUT_SIGNAL_SCOPE


@dataclass(frozen=True)
class Wall:
    """What the keeper of landlock_keeper.py puts around a program.

    Attributes:
        handled: rights over files, over the network, and scopes, that a program gives up but for the rules.
        rules: path -> the rights that a program keeps below it.
        filter: struct sock_filter array.
    """

    handled: tuple[int, int, int]
    rules: dict[str, int]
    filter: bytes


def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 when it has none or it is switched off."""
    version = ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(0, version)


def wall(private: Path, programs: Sequence[str] = (), abi: int | None = None) -> Wall:
    """What a program keeps: the system's folders and `programs` to read and run, `private` to use as it likes.

    Raises IsolationError on a kernel that cannot do it.
    """
    abi = landlock_abi() if abi is None else abi
    if missing := why_no_landlock(abi):
        raise IsolationError(missing)
    everything = _ALL_OF_FILES[max(version for version in _ALL_OF_FILES if version <= abi)]
    readable = {path: _EXECUTE | _READ_FILE | _READ_DIR for path in (*_SYSTEM, *programs) if Path(path).is_dir()}
    has_scopes = abi >= _SIGNAL_SCOPE_ABI
    return Wall(
        handled=(everything, _TCP, _SCOPES if has_scopes else 0),
        rules={**readable, **_DEVICES, str(private): everything},
        filter=filter_bytes(_FILTER if has_scopes else _FILTER_WITHOUT_SCOPE),
    )


def why_no_landlock(abi: int) -> str | None:
    """One sentence that says what this machine lacks and what to ask for, or None when it lacks nothing."""
    if not filter_bytes():
        return f"there is no filter of system calls for {platform.machine()} here, which Landlock cannot do without"
    if abi >= NEEDED_ABI:
        return None
    if abi > 0:
        return (
            f"Landlock needs version {NEEDED_ABI} (Linux 6.7) and this kernel ({os.uname().release}) has {abi}; "
            "ask the administrator for a newer kernel or for user namespaces (sandbox.isolation=bubblewrap)"
        )
    return (
        f"this kernel ({os.uname().release}) does not offer Landlock; ask the administrator to boot Linux 6.7 or newer "
        "with landlock in the list of the boot parameter lsm=..., and in a container for a seccomp profile that allows "
        "landlock_create_ruleset, landlock_add_rule and landlock_restrict_self"
    )
