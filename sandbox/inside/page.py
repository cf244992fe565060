"""One page of memory that a cell and its supervisor share: how far the job has come, and how it ended.

The process that becomes the program writes its stage here and unmaps the page before the program's first line, so
that nothing a program does can reach it. Reading it costs the supervisor no system call, and a job no message.
"""

from __future__ import annotations

import mmap
import os
import struct
from enum import IntEnum

PAGE_BYTES = mmap.PAGESIZE


class Stage(IntEnum):
    """How far a job has come."""

    WAITING = 0  # nobody has taken it up
    PREPARING = 1  # namespaces, files, limits: all by our own code
    COMPILING = 2  # the interpreter's compiler reads the stranger's text; all rights are gone
    REFUSED = 3  # the compiler did not take it
    RUNNING = 4  # the stranger's first line
    FAILED = 5  # the cell could not do its part; there is a message


_ENDING = struct.Struct("<iIQQ")
_ENDING_AT = 8
_MESSAGE_AT = 64
_MESSAGE_BYTES = 500


class Page:
    """The page, from either side. `descriptor` is a file of at least PAGE_BYTES."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, PAGE_BYTES)

    @classmethod
    def create(cls) -> tuple[Page, int]:
        """A new page, and the descriptor by which the other side gets it."""
        descriptor = os.memfd_create("page", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, PAGE_BYTES)
            return cls(descriptor), descriptor
        except OSError:
            os.close(descriptor)
            raise

    @property
    def stage(self) -> Stage:
        """How far the job has come."""
        return Stage(self._map[0])

    def set_stage(self, stage: int) -> None:
        """Tell the supervisor."""
        self._map[0] = stage

    def reset(self) -> None:
        """Before a new job."""
        self._map[0] = Stage.WAITING
        _ENDING.pack_into(self._map, _ENDING_AT, 0, 0, 0, 0)

    def fail(self, message: str) -> None:
        """The cell could not do its part, for the reason in `message`."""
        data = message.encode(errors="replace")[:_MESSAGE_BYTES]
        self._map[_MESSAGE_AT : _MESSAGE_AT + _MESSAGE_BYTES] = data.ljust(_MESSAGE_BYTES, b"\0")
        self.set_stage(Stage.FAILED)

    @property
    def message(self) -> str:
        """What went wrong."""
        return self._map[_MESSAGE_AT : _MESSAGE_AT + _MESSAGE_BYTES].rstrip(b"\0").decode(errors="replace")

    def set_ending(self, status: int, cpu_micros: int, peak_kib: int) -> None:
        """The program is gone, and so is all that it started."""
        _ENDING.pack_into(self._map, _ENDING_AT, status, 1, cpu_micros, peak_kib)

    @property
    def ending(self) -> tuple[int, int, int] | None:
        """Wait status, processor microseconds of all its processes, largest resident KiB; None if it has not ended."""
        status, has_ended, cpu_micros, peak_kib = _ENDING.unpack_from(self._map, _ENDING_AT)
        return (status, cpu_micros, peak_kib) if has_ended else None

    def close(self) -> None:
        """Unmap it."""
        self._map.close()
