"""From what is known about a run that is over to its verdict. The order of the questions is the rule.

Known are the wait status, from our own wait; how far the run had come, from memory that no program can reach; what
was measured; and why the supervisor itself put an end to it. What the program printed is not asked.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from sandbox.inside.page import Stage
from sandbox.inside.python_main import OUT_OF_MEMORY
from sandbox.program import Execution, Limits, Verdict
from sandbox.watch import Watched


@dataclass(frozen=True)
class Ending:
    """The last word of our own code inside.

    Attributes:
        stage: how far the run had come.
        status: wait status of the program, or None if even its process 1 is gone.
        cpu_s: processor seconds of everything that was reaped.
        memory_bytes: largest resident size of one process.
    """

    stage: Stage
    status: int | None = None
    cpu_s: float = 0.0
    memory_bytes: int = 0


def conclude(seen: Watched, ending: Ending, limits: Limits) -> Execution:
    """The execution, once it is over."""
    cpu_s = max(seen.peak_cpu_s, ending.cpu_s)
    memory_bytes = max(seen.peak_bytes, ending.memory_bytes)
    verdict = seen.stopped or _verdict(ending, cpu_s, memory_bytes, limits)
    status = ending.status if seen.stopped is None else None
    return Execution(
        verdict=verdict,
        stdout=bytes(seen.stdout),
        stderr=bytes(seen.stderr),
        exit_code=os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
        signal=os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
        cpu_s=cpu_s,
        wall_s=seen.wall_s,
        memory_bytes=memory_bytes,
    )


def _verdict(ending: Ending, cpu_s: float, memory_bytes: int, limits: Limits) -> Verdict:
    """The verdict on a run that the supervisor did not stop."""
    if ending.stage in (Stage.COMPILING, Stage.REFUSED):
        return Verdict.CE  # refused by the compiler, or the compiler did not survive it
    if ending.stage is not Stage.RUNNING:
        return Verdict.SE
    if ending.status is None:
        return Verdict.RE  # it brought down its own process 1
    ended_by = os.WTERMSIG(ending.status) if os.WIFSIGNALED(ending.status) else None
    if memory_bytes > limits.memory_bytes or ended_by == OUT_OF_MEMORY:
        return Verdict.MLE
    if cpu_s > limits.cpu_seconds or ended_by == signal.SIGXCPU:
        return Verdict.TLE
    return Verdict.OK if ending.status == 0 else Verdict.RE


def system_error(message: str) -> Execution:
    """The sandbox itself failed, for the reason in `message`; the same program may run well the next time."""
    return Execution(Verdict.SE, b"", message.encode(errors="replace"), None, None, 0.0, 0.0, 0)
