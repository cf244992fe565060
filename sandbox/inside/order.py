"""What the supervisor tells a cell about one job: fixed numbers in a message, the rest in files that it hands over.

The zygote itself never reads what belongs to a stranger. Every later job is forked from its memory, and could find
there what an earlier one left: a program of the same group, the inputs of a test.
"""

from __future__ import annotations

import marshal
import os
import resource
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_NUMBERS = struct.Struct("<8Q")

NUM_DESCRIPTORS = 4
"""They come with the message: standard input, output and error, and the content."""

_HEAD_BYTES = 1 << 12  # read at once: the header, and with it all of a small program


class Order(NamedTuple):
    """The numbers of one job; 0 leaves a resource limit as it is."""

    cpu_seconds: int
    address_space: int
    file_bytes: int
    num_inodes: int
    num_files: int
    num_processes: int
    stack_bytes: int
    temporary_bytes: int

    def pack(self) -> bytes:
        """As a message."""
        return _NUMBERS.pack(*self)

    @classmethod
    def unpack(cls, message: bytes) -> Order:
        """From a message. Raises struct.error when it is none."""
        return cls(*_NUMBERS.unpack(message))

    def resource_limits(self) -> list[tuple[int, int]]:
        """Kind and value of every limit of the kernel's that the program gets."""
        values = (self.cpu_seconds, self.address_space, self.file_bytes, self.num_files, self.num_processes)
        wanted = zip(_KINDS, (*values, self.stack_bytes), strict=True)
        return [(kind, value) for kind, value in wanted if value] + [(kind, 0) for kind in _NONE_OF]

    @staticmethod
    def limit_kinds() -> tuple[int, ...]:
        """All that `resource_limits` may name."""
        return (*_KINDS, *_NONE_OF)


_KINDS = (
    resource.RLIMIT_CPU,
    resource.RLIMIT_AS,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_NPROC,
    resource.RLIMIT_STACK,
)
_NONE_OF = (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE)


def pack_content(
    files: Mapping[str, tuple[bytes, int]], command: Sequence[str], environment: Mapping[str, str]
) -> bytes:
    """What a job is made of, as the bytes of the content's file: files with their modes, and what to execute.

    An empty command stands for the first file, run as a Python program.
    """
    sizes = [(name, len(data), mode) for name, (data, mode) in files.items()]
    header = marshal.dumps((sizes, list(command), dict(environment)), 2)
    return b"".join([len(header).to_bytes(4, "little"), header, *(data for data, _ in files.values())])


class Content:
    """The other end of `pack_content`, in the process that becomes the program."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        head = os.read(descriptor, _HEAD_BYTES)
        self._begin = 4 + int.from_bytes(head[:4], "little")
        while len(head) < self._begin:
            head += os.read(descriptor, self._begin - len(head))
        self.files, self.command, self.environment = marshal.loads(head[4 : self._begin])
        self._head = head

    def first_file(self) -> bytes:
        """The program's own source."""
        size = self.files[0][1]
        if self._begin + size <= len(self._head):
            return self._head[self._begin : self._begin + size]
        return os.pread(self._descriptor, size, self._begin)

    def lay_files(self) -> None:
        """Write the files into the working directory; the kernel copies, so that they never lie in our memory."""
        offset = self._begin
        for name, size, mode in self.files:
            if "/" in name:
                os.makedirs(os.path.dirname(name), exist_ok=True)  # noqa: PTH103, PTH120
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            end = offset + size
            while offset < end:
                offset += os.sendfile(file, self._descriptor, offset, end - offset)
            os.close(file)
