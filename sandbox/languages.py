"""The languages, as a table: adding one is adding a row."""

from __future__ import annotations

from sandbox.cell_walls import CellKind
from sandbox.program import Limits, Program
from sandbox.task import Task

_PYTHON = CellKind()


def task_of(program: Program, limits: Limits) -> Task:
    files = {"main.py": (program.source_bytes, 0o644), **{n: (d, 0o644) for n, d in program.files.items()}}
    return Task(_PYTHON, limits, program.stdin_bytes, files)
