"""Stands outside the wall and keeps one program behind it. Passed to an interpreter as text, never imported.

It starts the program behind Landlock and seccomp in a process group that nothing can leave (setsid and setpgid are
refused there), waits for its end or for a word from the supervisor, then kills the whole group at once and reaps
everything: as a subreaper it inherits every daemon. A supervisor that dies closes the lifeline, which is such a word.

Arguments: descriptors of the plan (JSON, see landlock_tier.py), of the status pipe, on which the program's number is
told, and of the lifeline.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_FILTER_MODE = 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _call(function: Any, *arguments: Any) -> int:
    result = int(function(*arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} ({arguments[0]})")
    return result


def _prctl(option: int, *values: Any) -> None:
    _call(_libc.prctl, option, *values, *[0] * (4 - len(values)))


def _give_up_files(handled: list[int], rules: dict[str, int]) -> None:
    ruleset = _Ruleset(*handled)
    # A kernel without scopes knows a shorter structure, and takes no longer one.
    size = ctypes.sizeof(ruleset) if ruleset.scopes else 16
    descriptor = _call(_libc.syscall, _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    for path, allowed in rules.items():
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.byref(_PathBeneath(allowed, beneath))
        _call(_libc.syscall, _ADD_RULE, descriptor, _RULE_PATH_BENEATH, rule, 0)
        os.close(beneath)
    _call(_libc.syscall, _RESTRICT_SELF, descriptor, 0)
    os.close(descriptor)


def _tasks_of_this_user() -> int:
    """Processes and threads; the kernel counts them for the user as a whole, other programs' included."""
    tasks = 0
    for entry in os.scandir("/proc"):
        try:
            status = os.stat(f"{entry.path}/task")  # noqa: PTH116
        except OSError:
            continue
        tasks += (status.st_nlink - 2) * (status.st_uid == os.getuid())
    return tasks


def _start_behind_the_wall(plan: dict[str, Any]) -> None:
    """In the child: become the program. Returns only by an exception."""
    os.setsid()
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_SET_SUBREAPER, 1)  # its own orphans stay below it, where the supervisor counts them
    os.chdir(plan["folder"])
    most_tasks = _tasks_of_this_user() + plan["num_processes"]
    resource.setrlimit(resource.RLIMIT_NPROC, (most_tasks, most_tasks))
    for kept in plan["kept"]:
        os.set_inheritable(kept, True)
    code = bytes.fromhex(plan["filter"])
    _prctl(_SET_NO_NEW_PRIVS, 1)
    _give_up_files(plan["handled"], plan["rules"])
    program = _FilterProgram(len(code) // 8, code)
    _prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program))
    os.execve(plan["command"][0], plan["command"], plan["environment"])


def _wait_for_the_end(child: int, lifeline: int) -> None:
    """Until the program has ended or the supervisor says, by a byte or by being gone, that it must."""
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    poll.poll()


def _end_everything(child: int) -> None:
    """The child is not reaped yet, so its number, which is also that of its group, is nobody else's."""
    for kill, target in ((os.killpg, child), (os.kill, child)):
        try:
            kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def _main() -> None:
    plan_descriptor, status, lifeline = map(int, sys.argv[1:4])
    with os.fdopen(plan_descriptor, "rb") as file:
        plan = json.load(file)
    _prctl(_SET_DUMPABLE, 0)
    _prctl(_SET_SUBREAPER, 1)
    for descriptor in (status, lifeline):
        os.set_inheritable(descriptor, False)
    child = os.fork()
    if child == 0:
        try:
            _start_behind_the_wall(plan)
        except BaseException as error:
            os.write(2, f"the wall could not be put up: {error}\n".encode())
        os._exit(1)
    os.write(status, json.dumps({"child-pid": child}).encode() + b"\n")  # in bubblewrap's words
    for descriptor in (0, 1, 2, *plan["kept"]):
        os.close(descriptor)
    _wait_for_the_end(child, lifeline)
    _end_everything(child)


_main()
