"""How many workers a run has while it runs: `cispo workers` writes the number, and the driver works towards it.

A file in the run's folder carries the wish, so it reaches the driver from any machine that sees the folder, and nothing
has to listen. A run begins with cluster.num_workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from cispo.errors import ConfigError
from launch.run_files import write_atomically
from launch.run_folder import is_driven
from rollout.station import WorkerHandle
from rollout.worker_pool import WorkerPool

log = logging.getLogger(__name__)

FILE = "num_workers"


def worker_name(number: int) -> str:
    """Of the worker with that number, counted from 0."""
    return f"rollout-{number}"


def ask_for_workers(folder: Path, num_workers: int) -> None:
    """Have the run in `folder` go on with so many workers. Raises ConfigError if no run is under way there."""
    if num_workers < 1:
        raise ConfigError(f"A run needs at least 1 worker, got {num_workers}; to end it, interrupt its process.")
    if not is_driven(folder):
        raise ConfigError(
            f"No run is under way in {folder}, and only one that is can be given workers; start it with "
            f"cispo train --resume {folder} cluster.num_workers={num_workers}."
        )
    write_atomically(folder / FILE, f"{num_workers}\n")


def forget_wish(folder: Path) -> None:
    """What was asked of an earlier process of the run."""
    (folder / FILE).unlink(missing_ok=True)


class FleetSize:
    """The driver's side.

    Args:
        folder: of the run.
        num_workers: that it begins with, named by `worker_name`.
        make: starts a worker of that name.
    """

    def __init__(self, folder: Path, num_workers: int, make: Callable[[str], WorkerHandle]) -> None:
        self._file = folder / FILE
        self._wanted = self._next_number = num_workers
        self._make = make

    def adjust(self, pool: WorkerPool) -> None:
        """Add or retire workers until the pool has what was asked for last."""
        wanted = self._read()
        if wanted == self._wanted:
            return
        log.info("%d workers are asked for; there were %d", wanted, self._wanted)
        staying = [station.name for station in pool.staying]
        for _ in range(wanted - len(staying)):
            pool.add(self._make(worker_name(self._next_number)))
            self._next_number += 1
        for name in staying[wanted:]:
            pool.retire(name)
        self._wanted = wanted

    def _read(self) -> int:
        try:
            return int(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return self._wanted
