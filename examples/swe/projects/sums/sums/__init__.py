"""Arithmetic from text."""

from sums.errors import SumError
from sums.evaluation import evaluate, names
from sums.parser import parse
from sums.printing import show

__all__ = ["SumError", "evaluate", "names", "parse", "show"]
