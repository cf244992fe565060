"""A directed graph: an edge from a to b says that a comes before b."""

from __future__ import annotations

from collections.abc import Iterable


class CycleError(ValueError):
    """Things that wait for each other; `cycle` begins and ends with the same node."""

    def __init__(self, cycle: list[str]) -> None:
        super().__init__("a cycle: " + " -> ".join(cycle))
        self.cycle = cycle


class Graph:
    """Nodes by name, in the order in which they were added."""

    def __init__(self, edges: Iterable[tuple[str, str]] = ()) -> None:
        self._after: dict[str, list[str]] = {}
        self._before: dict[str, list[str]] = {}
        for before, after in edges:
            self.add_edge(before, after)

    def add_node(self, name: str) -> None:
        """A node without edges; nothing if it is there."""
        self._after.setdefault(name, [])
        self._before.setdefault(name, [])

    def add_edge(self, before: str, after: str) -> None:
        """An edge between two nodes, which are added if they are not there. A second one changes nothing."""
        self.add_node(before)
        self.add_node(after)
        if after not in self._after[before]:
            self._after[before].append(after)
            self._before[after].append(before)

    def nodes(self) -> list[str]:
        """All nodes, in the order in which they were added."""
        return list(self._after)

    def after(self, name: str) -> list[str]:
        """The nodes that come directly after `name`."""
        return list(self._after[name])

    def before(self, name: str) -> list[str]:
        """The nodes that come directly before `name`."""
        return list(self._before[name])

    def reachable(self, name: str) -> set[str]:
        """All nodes that come after `name`, directly or not; itself only if it is on a cycle."""
        found: set[str] = set()
        waiting = list(self._after[name])
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(self._after[node])
        return found

    def order(self) -> list[str]:
        """All nodes, each after everything that comes before it; else in the order in which they were added.

        The next node is always the one added first among those that nothing holds back. Raises CycleError.
        """
        missing = {name: len(before) for name, before in self._before.items()}
        ordered: list[str] = []
        while missing:
            ready = next((name for name, count in missing.items() if count == 0), None)
            if ready is None:
                raise CycleError(self._cycle(missing))
            ordered.append(ready)
            del missing[ready]
            for name in self._after[ready]:
                missing[name] -= 1
        return ordered

    def _cycle(self, names: Iterable[str]) -> list[str]:
        """One cycle among nodes each of which has one of them before it."""
        among = set(names)
        path = [next(name for name in self._after if name in among)]
        while True:
            before = next(name for name in self._before[path[-1]] if name in among)
            if before in path:
                cycle = [*path[path.index(before) :], before]
                return cycle[::-1]
            path.append(before)
