"""The pipes and memory files between the supervisor and one run."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.private_folder import private_folder

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def memory_file(content: bytes) -> int:
    """A read-only file for the other side that lies nowhere on disk. Unlike a pipe it never blocks a writer."""
    file = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(file, view) :]
        if content:
            os.lseek(file, 0, os.SEEK_SET)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(file)
        raise
    return file


class JobChannels:
    """What a job in a cell is handed: input and content as files, output as pipes. Closes what is left at the end.

    Everything is new for each job. A pipe that is used again would keep the flags that a program can set on it.
    """

    __slots__ = ("stdout", "stderr", "theirs")

    def __init__(self, stdin: bytes, content: bytes) -> None:
        """Raises OSError when descriptors have run out, leaving none behind."""
        self.stdout = self.stderr = -1
        self.theirs: list[int] = []
        try:
            self.theirs.append(memory_file(stdin))
            self.stdout, writer = os.pipe()
            self.theirs.append(writer)
            self.stderr, writer = os.pipe()
            self.theirs.append(writer)
            self.theirs.append(memory_file(content))
        except OSError:
            self.close()
            raise

    def close_theirs(self) -> None:
        """Drop the ends that the other side now holds, so that its end is seen as end of file."""
        for descriptor in self.theirs:
            os.close(descriptor)
        self.theirs.clear()

    def close(self) -> None:
        """Close everything."""
        self.close_theirs()
        for descriptor in (self.stdout, self.stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self.stdout = self.stderr = -1

    def __enter__(self) -> JobChannels:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Channels:
    """File descriptors of one run; `close` gives every one of them back, whatever happened.

    Attributes:
        stdout, stderr: what the program writes; its own ends are `their_stdout` and `their_stderr`.
        report: what the bootstrap says; never held by the program.
        theirs: ends that only the other side needs; closed here once it has started.
    """

    stdout: int = -1
    stderr: int = -1
    report: int = -1
    their_stdout: int = -1
    their_stderr: int = -1
    their_report: int = -1
    theirs: list[int] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def open(cls) -> Channels:
        """Make the pipes. Raises OSError when descriptors have run out, leaving none behind."""
        channels = cls()
        try:
            channels.stdout, channels.their_stdout = channels.pipe()
            channels.stderr, channels.their_stderr = channels.pipe()
            channels.report, channels.their_report = channels.pipe()
        except OSError:
            channels.close()
            raise
        return channels

    def pipe(self) -> tuple[int, int]:
        """A pipe: our reader and their writer."""
        reader, writer = os.pipe()
        self._own(reader, is_theirs=False)
        self._own(writer, is_theirs=True)
        return reader, writer

    def pipe_to_them(self) -> tuple[int, int]:
        """A pipe the other way round: their reader and our writer."""
        reader, writer = os.pipe()
        self._own(reader, is_theirs=True)
        self._own(writer, is_theirs=False)
        return reader, writer

    def memory_file(self, content: bytes) -> int:
        """See `memory_file`; closed with the others."""
        file = memory_file(content)
        self._own(file, is_theirs=True)
        return file

    def process(self, pid: int) -> int:
        """A descriptor of a living process, which never means another one, as its number may once it was reaped."""
        descriptor = os.pidfd_open(pid)
        self._own(descriptor, is_theirs=False)
        return descriptor

    def folder(self, owner: int | None = None) -> Path:
        """A temporary folder that lives as long as the run; see private_folder."""
        return self._stack.enter_context(private_folder(owner))

    def close_theirs(self) -> None:
        """Drop the ends that the other side now holds, so that its end is seen as end of file."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Close everything."""
        self.close_theirs()
        self._stack.close()

    def _own(self, descriptor: int, *, is_theirs: bool) -> None:
        if is_theirs:
            self.theirs.append(descriptor)
        else:
            self._stack.callback(os.close, descriptor)
