"""Runs one program in a process of its own, for the kinds of isolation that have no cells: see sandbox.isolation.

It owns the pipes; the watch keeps the limits, and the bootstrap's report says how the program ended.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from sandbox.channels import Channels
from sandbox.endings import Ending, conclude, system_error
from sandbox.errors import SandboxError
from sandbox.inside.page import Stage
from sandbox.isolation import Isolation, Started
from sandbox.process_tree import ProcessTree, Usage
from sandbox.program import Execution, Limits, Program
from sandbox.watch import watch

_KILL_SECONDS = 10.0
_REPORT_BYTES = 4096
_STAGES = {b"started": Stage.RUNNING, b"compile_error": Stage.REFUSED, b"up": Stage.COMPILING}


def never() -> bool:
    """Nobody cancels."""
    return False


def execute(
    isolation: Isolation, program: Program, limits: Limits, is_cancelled: Callable[[], bool] = never
) -> Execution:
    """Run `program` once. Never raises for what a program does; the sandbox's own failures are verdict SE."""
    try:
        channels = Channels.open()
    except OSError as error:
        return system_error(f"cannot open pipes: {error}")
    try:
        started = isolation.start(program, limits, channels)
        run = _ProcessRun(started, channels, limits)
        try:
            seen = watch(run, channels.stdout, channels.stderr, limits, is_cancelled)
        finally:
            _make_sure_it_ended(started)
        ending = run.ending()
        return conclude(seen, ending, limits) if ending else system_error(bytes(seen.stderr).decode(errors="replace"))
    except (OSError, SandboxError, subprocess.SubprocessError) as error:
        return system_error(str(error))
    finally:
        channels.close()


def _make_sure_it_ended(started: Started) -> None:
    started.kill()
    try:
        started.process.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        started.process.kill()
        raise


class _ProcessRun:
    """A run that has a process of its own, as the watch sees it."""

    def __init__(self, started: Started, channels: Channels, limits: Limits) -> None:
        self._started = started
        self._report_pipe = channels.report
        self._report = b""
        self._tree = ProcessTree(started.root_pid, started.temporary_bytes, limits.memory_bytes)
        self.ended = channels.process(started.process.pid)
        os.set_blocking(channels.report, False)

    def has_begun(self) -> bool:
        self._read_report()
        return self._report.startswith(b"up\n")

    def look(self) -> Usage:
        return self._tree.look()

    def kill(self) -> None:
        self._started.kill()

    def _read_report(self) -> None:
        try:
            self._report += os.read(self._report_pipe, _REPORT_BYTES)
        except BlockingIOError:
            return

    def ending(self) -> Ending | None:
        """The bootstrap's last word; None if it never came up."""
        self._read_report()
        lines = self._report.splitlines()
        stage = next((stage for word, stage in _STAGES.items() if word in lines), None)
        if stage is None:
            return None
        # The last such line counts: the bootstrap writes it after everything else has had its chance to.
        for line in reversed(lines):
            words = line.split()
            if len(words) == 4 and words[0] == b"ended" and all(word.isdigit() for word in words[1:]):
                status, kib, micros = map(int, words[1:])
                return Ending(stage, status, micros / 1e6, kib * 1024)
        return Ending(stage)
