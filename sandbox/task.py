"""One job as a cell takes it: which kind of cell, what lies in its folder, what is executed, within which limits.

A program in a language that is compiled is two tasks (see sandbox.languages).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sandbox.cell_walls import CellKind
from sandbox.channels import JobChannels
from sandbox.inside.order import Order, pack_content
from sandbox.program import Limits
from sandbox.rlimits import address_space, cpu_seconds, processes_are_counted_per_namespace

_BYTES_PER_INODE = 1 << 14
_OWN_PROCESSES = 2  # the zygote and process 1 of the job count in the same user namespace


@dataclass(frozen=True)
class Task:
    """What one job does.

    Attributes:
        kind: the cell that it needs.
        limits: what it may use.
        stdin: what it reads.
        files: content and mode by name; the first is the program's source.
        command: what is executed; none for a Python program, which the cell's interpreter runs itself.
        environment: of the command.
        limits_address_space: off for programs that reserve far more than they use.
    """

    kind: CellKind
    limits: Limits
    stdin: bytes
    files: Mapping[str, tuple[bytes, int]]
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    limits_address_space: bool = True

    @property
    def order(self) -> Order:
        """Its numbers."""
        limits = self.limits
        return Order(
            cpu_seconds=cpu_seconds(limits),
            address_space=address_space(limits) if self.limits_address_space else 0,
            file_bytes=limits.file_bytes,
            num_inodes=max(1024, limits.file_bytes // _BYTES_PER_INODE),
            num_files=limits.num_files,
            num_processes=limits.num_processes + _OWN_PROCESSES if processes_are_counted_per_namespace() else 0,
            stack_bytes=limits.stack_bytes,
            temporary_bytes=limits.file_bytes,
        )

    def channels(self) -> JobChannels:
        """Its descriptors. Raises OSError when they have run out."""
        return JobChannels(self.stdin, pack_content(self.files, self.command, self.environment))
