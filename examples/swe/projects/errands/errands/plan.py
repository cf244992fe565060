"""A plan: tasks with durations and what they wait for."""

from __future__ import annotations

from collections.abc import Sequence

from errands.graph import Graph
from errands.schedule import Job, Schedule


class UnknownTask(KeyError):
    """A name that no task has."""


class Plan:
    """Tasks by name. A task may wait only for tasks that were added before it, or be told to later by `wait`."""

    def __init__(self) -> None:
        self._graph = Graph()
        self._durations: dict[str, int] = {}

    def add(self, name: str, duration: int, after: Sequence[str] = ()) -> None:
        """A task that takes `duration` and begins after those in `after`. Raises ValueError, UnknownTask."""
        if name in self._durations:
            raise ValueError(f"there is a task {name} already")
        if duration < 0:
            raise ValueError(f"{name} cannot take {duration}")
        for other in after:
            self._check(other)
        self._durations[name] = duration
        self._graph.add_node(name)
        for other in after:
            self._graph.add_edge(other, name)

    def wait(self, name: str, after: str) -> None:
        """Make one task wait for another. Raises UnknownTask; a cycle is found when the order is asked for."""
        self._check(name)
        self._check(after)
        self._graph.add_edge(after, name)

    def order(self) -> list[str]:
        """All tasks, each after those that it waits for. Raises CycleError."""
        return self._graph.order()

    def holds_up(self, name: str) -> list[str]:
        """The tasks that cannot begin before `name` is done, directly or not, in the order of the plan."""
        self._check(name)
        late = self._graph.reachable(name)
        return [other for other in self.order() if other in late]

    def earliest(self) -> dict[str, int]:
        """The earliest start of each task if there are workers enough."""
        starts: dict[str, int] = {}
        for name in self.order():
            starts[name] = max(
                (starts[other] + self._durations[other] for other in self._graph.before(name)), default=0
            )
        return starts

    def latest(self) -> dict[str, int]:
        """The latest start of each task that does not delay the end."""
        starts = self.earliest()
        finish = max((starts[name] + self._durations[name] for name in starts), default=0)
        latest: dict[str, int] = {}
        for name in reversed(self.order()):
            end = min((latest[other] for other in self._graph.after(name)), default=finish)
            latest[name] = end - self._durations[name]
        return latest

    def slack(self, name: str) -> int:
        """By how much a task may begin later without delaying the end."""
        self._check(name)
        return self.latest()[name] - self.earliest()[name]

    def critical(self) -> list[str]:
        """The tasks that nothing may delay, in order."""
        early, late = self.earliest(), self.latest()
        return [name for name in self.order() if early[name] == late[name]]

    def schedule(self, workers: int = 1) -> Schedule:
        """Give every task a worker and a time.

        Tasks are taken in order; each begins as soon as what it waits for is done and some worker is free. Of several
        workers that could begin at the same time the one with the lowest number does.
        """
        if workers < 1:
            raise ValueError(f"a schedule needs workers, got {workers}")
        free = [0] * workers
        ends: dict[str, int] = {}
        jobs: list[Job] = []
        for name in self.order():
            ready = max((ends[other] for other in self._graph.before(name)), default=0)
            worker = min(range(workers), key=lambda index: max(free[index], ready))
            start = max(free[worker], ready)
            ends[name] = free[worker] = start + self._durations[name]
            jobs.append(Job(name, worker, start, ends[name]))
        return Schedule(jobs, workers)

    def _check(self, name: str) -> None:
        if name not in self._durations:
            raise UnknownTask(name)
