"""CSV in, aligned text tables out."""

from tables.csvtext import CsvError, read_csv, write_csv
from tables.layout import align, shorten
from tables.table import Table

__all__ = ["CsvError", "Table", "align", "read_csv", "shorten", "write_csv"]
