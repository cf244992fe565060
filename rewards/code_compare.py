"""Whether what a program printed, or what a function returned, is what was expected. Runs outside the sandbox."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.code_encoding import encode

OUTPUT_MODES = ("lines", "exact", "tokens", "floats", "unordered")
VALUE_MODES = ("exact", "equal", "json")

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class Tolerance:
    """How far a float may be from the expected one: |got - expected| <= max(absolute, relative * |expected|)."""

    absolute: float = 0.0
    relative: float = 0.0

    def allows(self, got: float, expected: float) -> bool:
        """NaN is near NaN only, an infinity near itself only."""
        if math.isnan(expected) or math.isnan(got):
            return math.isnan(expected) and math.isnan(got)
        if math.isinf(expected) or math.isinf(got):
            return got == expected
        return abs(got - expected) <= max(self.absolute, self.relative * abs(expected))


def same_output(printed: bytes, expected: str, mode: str = "lines", tolerance: Tolerance | None = None) -> bool:
    """Compare what was printed.

    Args:
        printed: all of standard output.
        expected: the right output.
        mode: "lines" ignores white space at the ends of lines and empty lines at the end; "exact" ignores nothing;
            "tokens" splits at white space; "floats" does, too, and compares tokens that are expected to be floats
            as numbers, while integers and words must be the same text; "unordered" is "lines" in any order.
        tolerance: for "floats"; None is 1e-6, absolute and relative.
    """
    if mode == "floats":
        return _same_numbers(printed, expected, tolerance or Tolerance(1e-6, 1e-6))
    return _OUTPUTS[mode](printed, expected.encode("utf-8", "surrogatepass"))


def _lines(output: bytes) -> list[bytes]:
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


_OUTPUTS: Mapping[str, Callable[[bytes, bytes], bool]] = {
    "lines": lambda printed, expected: _lines(printed) == _lines(expected),
    "exact": lambda printed, expected: printed == expected,
    "tokens": lambda printed, expected: printed.split() == expected.split(),
    "unordered": lambda printed, expected: Counter(_lines(printed)) == Counter(_lines(expected)),
}


def _same_numbers(printed: bytes, expected: str, tolerance: Tolerance) -> bool:
    got, wanted = printed.split(), expected.encode("utf-8", "surrogatepass").split()
    return len(got) == len(wanted) and all(
        left == right or _near(left.decode(errors="replace"), right.decode(errors="replace"), tolerance)
        for left, right in zip(got, wanted, strict=True)
    )


def _near(got: str, expected: str, tolerance: Tolerance) -> bool:
    if _INTEGER.fullmatch(expected) or not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(got)):
        return False
    return tolerance.allows(float(got), float(expected))


def same_value(got: Any, expected: Any, mode: str = "exact", tolerance: Tolerance | None = None) -> bool:
    """Compare plain data.

    Args:
        got: what was returned, as rewards.code_encoding.decode gives it.
        expected: the right value.
        mode: "exact" wants the same types all through; "equal" is Python's ==, so 1, 1.0 and True are equal and a tuple
            is no list; "json" compares what JSON would say of both: a tuple is a list, keys are strings, 1 is 1.0, and
            neither is true.
        tolerance: for floats that are expected, at any depth, but not as keys and in sets; None is none.
    """
    if mode == "equal" and tolerance is None:
        return bool(got == expected)
    if mode == "json":
        got, expected = _as_json(got), _as_json(expected)
    if isinstance(expected, float) and not isinstance(got, bool) and isinstance(got, int | float):
        return _same_float(got, expected, mode, tolerance)
    if isinstance(expected, bool) or isinstance(got, bool):
        return got == expected and (mode == "equal" or type(got) is type(expected))
    if mode == "exact" or not isinstance(expected, int | float):
        return type(got) is type(expected) and _same_content(got, expected, mode, tolerance)
    return bool(got == expected)


def _same_float(got: float, expected: float, mode: str, tolerance: Tolerance | None) -> bool:
    if mode == "exact" and type(got) is not float:
        return False
    if tolerance is None:
        return got == expected or (got != got and expected != expected)
    try:
        return tolerance.allows(float(got), expected)
    except OverflowError:  # an integer beyond every float
        return False


def _same_content(got: Any, expected: Any, mode: str, tolerance: Tolerance | None) -> bool:
    if isinstance(expected, list | tuple):
        pairs = zip(got, expected, strict=False)
        return len(got) == len(expected) and all(same_value(a, b, mode, tolerance) for a, b in pairs)
    if isinstance(expected, dict):
        return _typed_keys(got, mode) == _typed_keys(expected, mode) and all(
            same_value(got[key], value, mode, tolerance) for key, value in expected.items()
        )
    if isinstance(expected, set | frozenset):
        return _typed_keys(got, mode) == _typed_keys(expected, mode)
    return bool(got == expected)


def _typed_keys(values: Any, mode: str) -> set[Any]:
    return {encode(key) for key in values} if mode == "exact" else set(values)


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else _json_key(key): item for key, item in value.items()}
    return value


def _json_key(key: Any) -> str:
    return {True: "true", False: "false", None: "null"}[key] if key is None or isinstance(key, bool) else str(key)
