"""A table: a head, rows of text, and what one does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tables.layout import align, is_number, number, shorten, width

Row = list[str]


class Table:
    """An immutable table. All rows are as long as the head: short ones are filled with empty cells."""

    def __init__(self, head: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> None:
        if len(set(head)) < len(head):
            raise ValueError(f"column names must differ, got {', '.join(head)}")
        for row in rows:
            if len(row) > len(head):
                raise ValueError(f"a row has {len(row)} cells, but there are {len(head)} columns")
        self._head = list(head)
        self._rows = [[*row, *[""] * (len(head) - len(row))] for row in rows]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[str]]) -> Table:
        """The first row is the head."""
        if not rows:
            raise ValueError("a table needs at least a head")
        return cls(rows[0], rows[1:])

    @property
    def head(self) -> Row:
        """The names of the columns."""
        return list(self._head)

    @property
    def rows(self) -> list[Row]:
        """The rows without the head."""
        return [list(row) for row in self._rows]

    def column(self, name: str) -> Row:
        """The cells of one column."""
        index = self._index(name)
        return [row[index] for row in self._rows]

    def select(self, *names: str) -> Table:
        """The named columns, in that order."""
        indices = [self._index(name) for name in names]
        return Table(names, [[row[index] for index in indices] for row in self._rows])

    def where(self, name: str, test: Callable[[str], bool]) -> Table:
        """The rows whose cell in the column passes the test."""
        index = self._index(name)
        return Table(self._head, [row for row in self._rows if test(row[index])])

    def sorted_by(self, name: str, reverse: bool = False) -> Table:
        """Rows in the order of a column, as numbers if it is numeric; equal rows keep their order either way.

        Empty cells come last, also in reverse.
        """
        index = self._index(name)
        filled = [row for row in self._rows if row[index].strip()]
        empty = [row for row in self._rows if not row[index].strip()]

        def key(row: Row) -> float | str:
            return number(row[index]) if self.is_numeric(name) else row[index].casefold()

        return Table(self._head, sorted(filled, key=key, reverse=reverse) + empty)

    def total(self, name: str) -> float:
        """The sum of a numeric column; empty cells count nothing. Raises ValueError for another column."""
        if not self.is_numeric(name):
            raise ValueError(f"column {name} holds cells that are no numbers")
        return sum(number(cell) for cell in self.column(name) if cell.strip())

    def is_numeric(self, name: str) -> bool:
        """Whether a column has numbers and, besides empty cells, nothing else."""
        filled = [cell for cell in self.column(name) if cell.strip()]
        return bool(filled) and all(map(is_number, filled))

    def text(self, max_width: int = 40) -> str:
        """The table as lines of text; a cell takes at most `max_width` places."""
        cells = [[shorten(cell, max_width) for cell in row] for row in [self._head, *self._rows]]
        widths = [max(width(row[index]) for row in cells) for index in range(len(self._head))]
        sides = ["right" if self.is_numeric(name) else "left" for name in self._head]
        lines = [" | ".join(align(*parts) for parts in zip(row, widths, sides, strict=True)).rstrip() for row in cells]
        rule = "-+-".join("-" * places for places in widths)
        return "\n".join([lines[0], rule, *lines[1:]])

    def _index(self, name: str) -> int:
        if name not in self._head:
            raise KeyError(name)
        return self._head.index(name)
