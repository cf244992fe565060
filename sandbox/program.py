"""What goes into the sandbox and what comes out: plain frozen values, the same for every kind of isolation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

SOURCE_FILES = {
    "python": "main.py",
    "numpy": "main.py",
    "cpp": "main.cpp",
    "c": "main.c",
    "bash": "main.sh",
    "javascript": "main.js",
}
"""What the source of a program in each language is called in its working directory."""

LANGUAGES = tuple(SOURCE_FILES)
MAIN_FILE = SOURCE_FILES["python"]


class Verdict(StrEnum):
    """How a program ended. Whether its output is right is for the caller to judge."""

    OK = "OK"  # it ran to its end and exited with 0
    TLE = "TLE"  # CPU or wall time limit
    MLE = "MLE"  # memory limit
    OLE = "OLE"  # output limit
    RE = "RE"  # non-zero exit, a signal, too many processes
    CE = "CE"  # the source does not compile
    SE = "SE"  # the sandbox's own fault: says nothing about the program


@dataclass(frozen=True)
class Program:
    """One program with all its input.

    Attributes:
        source: the text of the program.
        language: "python" (standard library only), "numpy" (the same with numpy at hand), "cpp", "c", "bash",
            "javascript".
        stdin: what it reads; text is encoded as UTF-8.
        files: further files by relative path, laid into its working directory before it starts.

    Raises ValueError for an unknown language and for a path that would leave the working directory.
    """

    source: str
    language: str = "python"
    stdin: bytes | str = b""
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {self.language!r}")
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path == PurePosixPath(".") or "\0" in name:
                raise ValueError(f"a file's path must stay inside the working directory, got {name!r}")
            if path == PurePosixPath(self.source_file):
                raise ValueError(f"{self.source_file!r} is the program's own source; give the file another name")

    @property
    def source_file(self) -> str:
        """Name of the source in its working directory."""
        return SOURCE_FILES[self.language]

    @property
    def source_bytes(self) -> bytes:
        """UTF-8; a lone surrogate becomes bytes that the compiler refuses, so it is a CE and not a crash here."""
        return self.source.encode("utf-8", "surrogatepass")

    @property
    def stdin_bytes(self) -> bytes:
        """What the program reads."""
        return self.stdin if isinstance(self.stdin, bytes) else self.stdin.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Limits:
    """What one program may use. All of them hold for the program and everything that it starts, together.

    Attributes:
        cpu_seconds: processor time, user and system.
        wall_seconds: time from the start of the interpreter; generous, because a busy machine is not its fault.
        memory_bytes: resident memory plus what lies in its temporary files.
        output_bytes: of standard output, and again of standard error.
        num_processes: processes and threads alive at one time.
        file_bytes: largest file, and size of the temporary file system.
        num_files: open files of one process.
        stack_bytes: stack of one thread.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    memory_bytes: int = 256 << 20
    output_bytes: int = 1 << 20
    num_processes: int = 32
    file_bytes: int = 64 << 20
    num_files: int = 64
    stack_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"limits.{name} must be positive and finite, got {value}")
        if self.memory_bytes < 16 << 20:
            raise ValueError(f"limits.memory_bytes must hold an interpreter (16 MiB), got {self.memory_bytes}")


@dataclass(frozen=True)
class Execution:
    """What a program did.

    Attributes:
        verdict: how it ended.
        stdout, stderr: raw bytes, at most `Limits.output_bytes` each. With SE, stderr says what went wrong.
        exit_code: what it exited with, or None if a signal ended it or it never ended by itself.
        signal: the signal that ended it, or None.
        cpu_s: processor seconds of the program and its children, without the start of sandbox and interpreter.
        wall_s: seconds from the start of the interpreter to the end.
        memory_bytes: the most that was seen: the largest single process, or the total if that was more.
    """

    verdict: Verdict
    stdout: bytes
    stderr: bytes
    exit_code: int | None
    signal: int | None
    cpu_s: float
    wall_s: float
    memory_bytes: int
