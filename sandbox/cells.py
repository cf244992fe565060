"""Keeps warm cells and gives each task to one: started when first needed, used again, replaced when in doubt.

A cell that failed, was slow to die, or is not as clean as it was is never used again; nor is one after a number of
jobs, so that whatever nobody thought of is forgotten. A task whose cell failed is tried once more on a fresh one.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

from sandbox.cell import Cell
from sandbox.cell_walls import CellKind
from sandbox.endings import system_error
from sandbox.errors import SandboxError
from sandbox.program import Execution, Verdict
from sandbox.supervisor import never
from sandbox.task import Task

JOBS_PER_CELL = 2000
"""A start costs 60 ms of CPU, so that this is 0.03 ms a job."""


class Cells:
    """Idle cells by kind. Thread-safe; as many cells are made as there are tasks at the same time."""

    def __init__(self, bwrap: str = "bwrap", cgroup: str = "") -> None:
        self._bwrap = bwrap
        self._cgroup = cgroup
        self._lock = threading.Lock()
        self._idle: dict[CellKind, list[Cell]] = defaultdict(list)
        self._is_closed = False

    def run(self, task: Task, is_cancelled: Callable[[], bool] = never) -> Execution:
        """Run the task. A failure of the sandbox itself, twice in a row, is verdict SE."""
        execution = self._run_once(task, is_cancelled, is_fresh=False)
        if execution.verdict is Verdict.SE and not is_cancelled():
            execution = self._run_once(task, is_cancelled, is_fresh=True)
        return execution

    def _run_once(self, task: Task, is_cancelled: Callable[[], bool], *, is_fresh: bool) -> Execution:
        cell: Cell | None = None
        try:
            cell = (None if is_fresh else self._take(task.kind)) or Cell(task.kind, self._bwrap, self._cgroup)
            return cell.run(task, is_cancelled)
        except (OSError, SandboxError) as error:
            return system_error(str(error))
        finally:
            if cell is not None:
                self._give_back(cell)

    def _take(self, kind: CellKind) -> Cell | None:
        with self._lock:
            idle = self._idle[kind]
            return idle.pop() if idle else None

    def _give_back(self, cell: Cell) -> None:
        with self._lock:
            if cell.is_clean and cell.num_jobs < JOBS_PER_CELL and not self._is_closed:
                self._idle[cell.kind].append(cell)
                return
        cell.close()

    def close(self) -> None:
        """End every idle cell, and every other as soon as its job is over."""
        with self._lock:
            self._is_closed = True
            idle = [cell for cells in self._idle.values() for cell in cells]
            self._idle.clear()
        for cell in idle:
            cell.close()
