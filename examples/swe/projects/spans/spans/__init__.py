"""Sets of half-open intervals."""

from spans.slots import first_free, free_slots
from spans.spanset import SpanSet
from spans.text import SpanSyntaxError, parse, render

__all__ = ["SpanSet", "SpanSyntaxError", "first_free", "free_slots", "parse", "render"]
