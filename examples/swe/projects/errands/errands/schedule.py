"""Who does what when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A task at its time: worker `worker` is busy with it from `start` up to `end`."""

    name: str
    worker: int
    start: int
    end: int


class Schedule:
    """The jobs of a plan, in the order of their starts; jobs that start together are in the order of their workers."""

    def __init__(self, jobs: list[Job], workers: int) -> None:
        self._jobs = sorted(jobs, key=lambda job: (job.start, job.worker))
        self._workers = workers

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    @property
    def finish(self) -> int:
        """When everything is done; 0 if there is nothing to do."""
        return max((job.end for job in self._jobs), default=0)

    def rows(self) -> list[tuple[str, int, int, int]]:
        """The jobs as (name, worker, start, end)."""
        return [(job.name, job.worker, job.start, job.end) for job in self._jobs]

    def of(self, worker: int) -> list[str]:
        """The names of a worker's tasks, in order."""
        return [job.name for job in self._jobs if job.worker == worker]

    def idle(self, worker: int) -> int:
        """How long a worker has nothing to do before everything is done."""
        return self.finish - sum(job.end - job.start for job in self._jobs if job.worker == worker)

    def busy_at(self, time: int) -> list[str]:
        """The names of the tasks that are being done at `time`, in the order of their workers."""
        jobs = [job for job in self._jobs if job.start <= time < job.end]
        return [job.name for job in sorted(jobs, key=lambda job: job.worker)]
