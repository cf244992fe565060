"""The kernel's own limits, which the bootstrap takes on before the program's first line and its children inherit.

They hold per process, so they are the backstop between two looks of the supervisor, who judges by the sum. They are
not set from outside by prlimit(2): root in a container often lacks CAP_SYS_RESOURCE and so may not.
"""

from __future__ import annotations

import math
import platform
import resource

from sandbox.program import Limits

_ADDRESS_SPACE_FACTOR = 2
_ADDRESS_SPACE_EXTRA = 256 << 20
"""Address space is no measure of memory (a thread's stack counts in full), so it only stops what is far too much."""


def address_space(limits: Limits) -> int:
    """Far more than the memory limit, and room for the stack that is laid aside for the first thread."""
    return limits.memory_bytes * _ADDRESS_SPACE_FACTOR + _ADDRESS_SPACE_EXTRA


def cpu_seconds(limits: Limits) -> int:
    """Whole seconds, later than the supervisor's own limit, who knows better why a program ended."""
    return math.ceil(limits.cpu_seconds) + 1


def rlimits_argument(limits: Limits, *, own_namespace: bool) -> str:
    """The limits as the bootstrap takes them: "KIND=VALUE,...".

    own_namespace: the program has a user namespace of its own, where its processes are counted apart from the user's.
    """
    values = {
        resource.RLIMIT_CPU: cpu_seconds(limits),
        resource.RLIMIT_AS: address_space(limits),
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.num_files,
        resource.RLIMIT_STACK: limits.stack_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if own_namespace and processes_are_counted_per_namespace():
        values[resource.RLIMIT_NPROC] = limits.num_processes + 1  # the bootstrap is one of them
    return ",".join(f"{kind}={value}" for kind, value in values.items())


def processes_are_counted_per_namespace() -> bool:
    """Linux 5.14 and later; before it, RLIMIT_NPROC would count everything that the user runs on the machine."""
    version = platform.release().split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version) >= (5, 14)
