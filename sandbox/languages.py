"""The languages, as a table: adding one is adding a row."""

from __future__ import annotations

from collections.abc import Callable

from sandbox.cell_walls import CellKind
from sandbox.cells import Cells
from sandbox.program import MAIN_FILE, Execution, Limits, Program
from sandbox.task import Task

_PYTHON = CellKind()


def run_program(cells: Cells, program: Program, limits: Limits, is_cancelled: Callable[[], bool]) -> Execution:
    """Run `program` in a cell of its language's kind."""
    files = {name: (data, 0o644) for name, data in {MAIN_FILE: program.source_bytes, **program.files}.items()}
    return cells.run(Task(_PYTHON, limits, program.stdin_bytes, files), is_cancelled)
