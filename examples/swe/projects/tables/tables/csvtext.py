"""Comma-separated values as RFC 4180 has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class CsvError(ValueError):
    """A text that is no CSV; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


def read_csv(text: str, delimiter: str = ",") -> list[list[str]]:
    """The rows of `text`, each a list of its cells. Empty lines are skipped. Raises CsvError.

    A quoted cell may hold delimiters, line ends, and quotes written twice.
    """
    rows: list[list[str]] = []
    reader = _Reader(text, delimiter)
    while not reader.at_end:
        row = reader.row()
        if row != [""]:
            rows.append(row)
    return rows


class _Reader:
    def __init__(self, text: str, delimiter: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._delimiter = delimiter
        self._index = 0
        self._line = 1

    @property
    def at_end(self) -> bool:
        return self._index >= len(self._text)

    def row(self) -> list[str]:
        """One row, and the line end after it."""
        cells = [self._cell()]
        while self._next_is(self._delimiter):
            self._index += 1
            cells.append(self._cell())
        if self._next_is("\n"):
            self._index += 1
            self._line += 1
        return cells

    def _next_is(self, character: str) -> bool:
        return self._text[self._index : self._index + 1] == character

    def _cell(self) -> str:
        return self._quoted() if self._next_is('"') else self._plain()

    def _plain(self) -> str:
        start = self._index
        while not self.at_end and self._text[self._index] not in (self._delimiter, "\n"):
            if self._text[self._index] == '"':
                raise CsvError("a quote inside a cell that does not begin with one", self._line)
            self._index += 1
        return self._text[start : self._index]

    def _quoted(self) -> str:
        began = self._line
        parts: list[str] = []
        while self._next_is('"'):
            end = self._text.find('"', self._index + 1)
            if end < 0:
                raise CsvError("a quoted cell does not end", began)
            part = self._text[self._index + 1 : end]
            self._line += part.count("\n")
            parts.append(part)
            self._index = end + 1
        if not (self.at_end or self._next_is(self._delimiter) or self._next_is("\n")):
            raise CsvError("text after the end of a quoted cell", self._line)
        return '"'.join(parts)


def write_csv(rows: Iterable[Sequence[str]], delimiter: str = ",") -> str:
    """The text that `read_csv` reads as `rows`, with a line end after each row."""
    return "".join(delimiter.join(_written(cell, delimiter) for cell in row) + "\n" for row in rows)


def _written(cell: str, delimiter: str) -> str:
    if any(special in cell for special in (delimiter, '"', "\n", "\r")):
        return '"' + cell.replace('"', '""') + '"'
    return cell
