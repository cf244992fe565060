"""Makes a filter of system calls from the table of refused ones, by hand because libseccomp may not be there.

A refused call fails with EPERM, so that a program sees an error and goes on. A call from another architecture's table
(x32, or i386 by `int 0x80`) kills the process: there the numbers mean other calls. clone3 fails with ENOSYS, because
its flags lie in memory, where a filter cannot look; every C library then falls back to clone.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct
from itertools import groupby
from operator import attrgetter

from sandbox.refused_calls import ARCHITECTURES, EVERYWHERE, Condition, Rules

_CLONE3 = (435, 435)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_LOAD, _MASK, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; both machines are little-endian


@functools.cache
def filter_bytes(rules: Rules = EVERYWHERE, machine: str = platform.machine()) -> bytes:
    """The filter as bubblewrap's --seccomp and prctl(PR_SET_SECCOMP) read it: an array of struct sock_filter.

    Empty on an architecture that is not in ARCHITECTURES; the caller must then close what it can in another way.
    """
    if machine not in ARCHITECTURES:
        return b""
    column = ARCHITECTURES.index(machine)
    code = _load(_ARCH) + _unless(_EQUAL, _AUDIT_ARCH[machine], _return(_KILL))
    code += _load(_NUMBER)
    if machine == "x86_64":
        code += _when(_AT_LEAST, _X32_BIT, _return(_KILL))
    for group in rules.groups:
        for numbers in group.calls.values():
            if numbers[column] >= 0:
                code += _when(_EQUAL, numbers[column], _return(_REFUSE))
    code += _when(_EQUAL, _CLONE3[column], _return(_UNKNOWN))
    for numbers, conditions in groupby(sorted(rules.conditions, key=attrgetter("numbers")), attrgetter("numbers")):
        refusals = b"".join(_refuse_if(condition) for condition in conditions)
        code += _when(_EQUAL, numbers[column], refusals + _return(_ALLOW))
    return code + _return(_ALLOW)


def _refuse_if(condition: Condition) -> bytes:
    """Refuse when the condition holds, else go on with the next instruction."""
    load = _load(_ARGUMENTS + 8 * condition.argument)
    match condition.test:
        case "is":
            return load + _when(_EQUAL, condition.value, _return(_REFUSE))
        case "is not":
            return load + _unless(_EQUAL, condition.value, _return(_REFUSE))
        case "has any of":
            return load + _when(_ANY_BIT, condition.value, _return(_REFUSE))
        case "has all of":
            masked = load + _instruction(_MASK, condition.value)
            return masked + _when(_EQUAL, condition.value, _return(_REFUSE))


def _when(operation: int, value: int, then: bytes) -> bytes:
    """Run `then` if the comparison holds, else jump over it."""
    return _instruction(operation, value, if_false=len(then) // 8) + then


def _unless(operation: int, value: int, then: bytes) -> bytes:
    return _instruction(operation, value, if_true=len(then) // 8) + then


def _instruction(operation: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; jumps count the instructions that are skipped."""
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, action)
