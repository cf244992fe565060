"""What an attack on the sandbox is, for the files that list them. See `withstand` in conftest.py."""

from dataclasses import dataclass, field

import pytest

from sandbox import Limits, Verdict

OK, TLE, MLE, OLE, RE, CE = Verdict.OK, Verdict.TLE, Verdict.MLE, Verdict.OLE, Verdict.RE, Verdict.CE
SOON = Limits(cpu_seconds=0.5, wall_seconds=0.4, memory_bytes=96 << 20, num_processes=24)


@dataclass
class Attack:
    """A program and what it must come to.

    expected: any of these verdicts; where there is more than one, it depends on who is faster.
    prints: the whole of standard output, unless it does not matter.
    landlock: what it must come to there, where that differs; then only the verdict is looked at.
    ends_by: exit code if positive or 0, signal if negative, unless it does not matter.
    """

    row: str
    source: str
    expected: set
    prints: bytes | None = None
    ends_by: int | None = None
    limits: Limits | None = None
    landlock: set | None = None
    files: dict = field(default_factory=dict)


def check(attack, withstand):
    execution = withstand(attack.source, attack.limits, files=attack.files)
    shown = execution if len(execution.stdout) + len(execution.stderr) < 3000 else execution.verdict
    if withstand.tier == "landlock" and attack.landlock:
        assert execution.verdict in attack.landlock, shown
        return
    assert execution.verdict in attack.expected, shown
    if attack.prints is not None:
        assert execution.stdout == attack.prints, shown
    if attack.ends_by is not None:
        ended = -execution.signal if execution.signal is not None else execution.exit_code
        assert ended == attack.ends_by, shown


def by_row(attacks):
    return [pytest.param(attack, id=attack.row) for attack in attacks]


TRY = """
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False

def call(function, *arguments):
    ctypes.set_errno(0)
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")

def name_of_error(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""
