"""The value of a tree."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

from sums.errors import SumError
from sums.parser import parse
from sums.tree import Binary, Call, Name, Node, Number, Signed

Value = int | float

MAX_BITS = 4096
_OPERATORS: dict[str, Callable[[Value, Value], Value]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "^": operator.pow,
}
# Function, and how few and how many arguments it takes; None is any number.
_FUNCTIONS: dict[str, tuple[Callable[..., Value], int, int | None]] = {
    "abs": (abs, 1, 1),
    "max": (max, 1, None),
    "min": (min, 1, None),
    "round": (round, 1, 2),
    "sqrt": (math.sqrt, 1, 1),
}


def evaluate(text: str, values: Mapping[str, Value] | None = None) -> Value:
    """The value of `text`, with `values` for its names. Raises SumError."""
    return _value(parse(text), values or {})


def names(text: str) -> list[str]:
    """The names that `text` needs values for, each once, in the order in which they appear."""
    found: dict[str, None] = {}
    _collect(parse(text), found)
    return list(found)


def _collect(node: Node, found: dict[str, None]) -> None:
    if isinstance(node, Name):
        found[node.name] = None
    elif isinstance(node, Signed):
        _collect(node.operand, found)
    elif isinstance(node, Binary):
        _collect(node.left, found)
        _collect(node.right, found)
    elif isinstance(node, Call):
        for argument in node.arguments:
            _collect(argument, found)


def _value(node: Node, values: Mapping[str, Value]) -> Value:
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Name):
        if node.name not in values:
            raise SumError(f"no value for {node.name}", node.position)
        return values[node.name]
    if isinstance(node, Signed):
        operand = _value(node.operand, values)
        return -operand if node.sign == "-" else operand
    if isinstance(node, Call):
        return _called(node, [_value(argument, values) for argument in node.arguments])
    return _combined(node, _value(node.left, values), _value(node.right, values))


def _combined(node: Binary, left: Value, right: Value) -> Value:
    if node.sign in ("/", "//", "%") and right == 0:
        raise SumError("division by zero", node.position)
    if node.sign == "^":
        _check_power(node, left, right)
    try:
        return _OPERATORS[node.sign](left, right)
    except OverflowError as error:
        raise SumError("the result is too large", node.position) from error


def _check_power(node: Binary, left: Value, right: Value) -> None:
    if left == 0 and right < 0:
        raise SumError("division by zero", node.position)
    if left < 0 and right != int(right):
        raise SumError("a negative number has no such power", node.position)
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_BITS:
        raise SumError("the result is too large", node.position)


def _called(node: Call, arguments: list[Value]) -> Value:
    if node.name not in _FUNCTIONS:
        raise SumError(f"no function {node.name}", node.position)
    function, fewest, most = _FUNCTIONS[node.name]
    if len(arguments) < fewest or (most is not None and len(arguments) > most):
        raise SumError(f"{node.name} does not take {len(arguments)} arguments", node.position)
    try:
        return function(*arguments)
    except (TypeError, ValueError, OverflowError) as error:
        raise SumError(f"{node.name}: {error}", node.position) from error
