"""Works out expressions of a test suite on our side, a small and bounded part of Python.

The expression is the author's, and so are its constants; what a model's function returned is put in by name. Nothing
is ever executed: names, calls and operators are looked up in the tables below, and what is not there makes the suite
one that cannot be translated.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

_MAX_ITEMS = 1_000_000
_MAX_BITS = 20_000


class Unknown(Exception):
    """The expression uses what is not in the tables."""


class CallFailed(Exception):
    """A name stands for a call that gave no result; its argument says why."""


FUNCTIONS: Mapping[str, Any] = {
    "abs": abs, "len": len, "sorted": sorted, "set": set, "frozenset": frozenset, "list": list, "tuple": tuple,
    "dict": dict, "round": round, "min": min, "max": max, "sum": sum, "any": any, "all": all, "str": str, "int": int,
    "float": float, "bool": bool, "bytes": bytes, "type": type, "isinstance": isinstance, "zip": zip, "divmod": divmod,
    "enumerate": enumerate, "reversed": reversed,
}  # fmt: skip
"""Functions of the language. `range` is beside them, because it must be bounded."""

MODULES: Mapping[str, Mapping[str, Any]] = {
    "math": {
        name: getattr(math, name)
        for name in ("isclose", "isnan", "isinf", "sqrt", "pi", "e", "inf", "nan", "floor", "ceil", "fabs", "gcd")
    }
}
_METHODS: Mapping[type, tuple[str, ...]] = {
    str: ("lower", "upper", "strip", "lstrip", "rstrip", "split", "startswith", "endswith", "join", "count", "index"),
    dict: ("keys", "values", "items", "get"),
    list: ("count", "index"),
    tuple: ("count", "index"),
}
_COMPARES: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda item, container: item in container, ast.NotIn: lambda item, container: item not in container,
}  # fmt: skip
_ARITHMETIC: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: Mapping[type, Callable[[Any], Any]] = {
    ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert,
}  # fmt: skip


def evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of `node`, with `names` for what it does not know itself.

    Raises Unknown for what is not in the tables, CallFailed as above, and what the operation itself raises.
    """
    work_out = _NODES.get(type(node))
    if work_out is None:
        raise Unknown(f"{type(node).__name__} in a suite")
    return work_out(node, names)


def _name(node: ast.Name, names: Mapping[str, Any]) -> Any:
    if node.id in names:
        value = names[node.id]
        if isinstance(value, CallFailed):
            raise value
        return value
    if node.id == "range":
        return _bounded_range
    if node.id in FUNCTIONS:
        return FUNCTIONS[node.id]
    raise Unknown(f"the name {node.id!r}")


def _bounded_range(*arguments: int) -> list[int]:
    numbers = range(*arguments)
    if len(numbers) > _MAX_ITEMS:
        raise Unknown(f"a range of {len(numbers)} numbers")
    return list(numbers)


def _items(nodes: list[ast.expr], names: Mapping[str, Any]) -> list[Any]:
    items: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            items += evaluate(node.value, names)
        else:
            items.append(evaluate(node, names))
    return items


def _dict(node: ast.Dict, names: Mapping[str, Any]) -> dict[Any, Any]:
    if None in node.keys:
        raise Unknown("a dict unpacked in a dict")
    keys = [key for key in node.keys if key is not None]
    return dict(zip(_items(keys, names), _items(node.values, names), strict=True))


def _bool(node: ast.BoolOp, names: Mapping[str, Any]) -> Any:
    value: Any = None
    for part in node.values:
        value = evaluate(part, names)
        if bool(value) is isinstance(node.op, ast.Or):
            break
    return value


def _compare(node: ast.Compare, names: Mapping[str, Any]) -> Any:
    left, value = evaluate(node.left, names), True
    for kind, part in zip(node.ops, node.comparators, strict=True):
        right = evaluate(part, names)
        value = _COMPARES[type(kind)](left, right)
        if not value:
            break
        left = right
    return value


def _binary(node: ast.BinOp, names: Mapping[str, Any]) -> Any:
    work_out = _ARITHMETIC.get(type(node.op))
    if work_out is None:
        raise Unknown(f"the operator {type(node.op).__name__}")
    left, right = evaluate(node.left, names), evaluate(node.right, names)
    _check_size(node.op, left, right)
    return work_out(left, right)


def _check_size(kind: ast.operator, left: Any, right: Any) -> None:
    """Numbers and repetitions that a stranger could make grow without end are not worked out."""
    if isinstance(left, str | bytes) and isinstance(kind, ast.Mod):
        raise Unknown("a text formatted with %")
    if isinstance(kind, ast.Pow | ast.Mult) and isinstance(left, int) and isinstance(right, int):
        num_bits = left.bit_length() * abs(right) if isinstance(kind, ast.Pow) else max(left, right).bit_length()
        if num_bits > _MAX_BITS:
            raise Unknown(f"a number of {num_bits} bits")
    for sized, times in ((left, right), (right, left)):
        is_repetition = isinstance(kind, ast.Mult) and isinstance(times, int) and hasattr(sized, "__len__")
        if is_repetition and len(sized) * times > _MAX_ITEMS:
            raise Unknown(f"{times} repetitions of {len(sized)} items")


def _subscript(node: ast.Subscript, names: Mapping[str, Any]) -> Any:
    value = evaluate(node.value, names)
    if not isinstance(node.slice, ast.Slice):
        return value[evaluate(node.slice, names)]
    bounds = (node.slice.lower, node.slice.upper, node.slice.step)
    return value[slice(*(None if bound is None else evaluate(bound, names) for bound in bounds))]


def _attribute(node: ast.Attribute, names: Mapping[str, Any]) -> Any:
    """A name of a module that is known, or a method of plain data that changes nothing."""
    if isinstance(node.value, ast.Name) and node.value.id in MODULES:
        if node.attr in MODULES[node.value.id]:
            return MODULES[node.value.id][node.attr]
        raise Unknown(f"{node.value.id}.{node.attr}")
    value = evaluate(node.value, names)
    if node.attr not in _METHODS.get(type(value), ()):
        raise Unknown(f"the method {node.attr!r} of {type(value).__name__}")
    return getattr(value, node.attr)


def _call(node: ast.Call, names: Mapping[str, Any]) -> Any:
    function = evaluate(node.func, names)
    if any(keyword.arg is None for keyword in node.keywords):
        raise Unknown("keyword arguments out of a dict")
    keywords = {str(keyword.arg): evaluate(keyword.value, names) for keyword in node.keywords}
    if function is bytes:
        raise Unknown("bytes of a given number")
    return function(*_items(node.args, names), **keywords)


def _if_else(node: ast.IfExp, names: Mapping[str, Any]) -> Any:
    return evaluate(node.body if evaluate(node.test, names) else node.orelse, names)


_NODES: Mapping[type, Callable[[Any, Mapping[str, Any]], Any]] = {
    ast.Constant: lambda node, names: node.value,
    ast.Name: _name,
    ast.List: lambda node, names: _items(node.elts, names),
    ast.Tuple: lambda node, names: tuple(_items(node.elts, names)),
    ast.Set: lambda node, names: set(_items(node.elts, names)),
    ast.Dict: _dict,
    ast.BoolOp: _bool,
    ast.Compare: _compare,
    ast.BinOp: _binary,
    ast.UnaryOp: lambda node, names: _UNARY[type(node.op)](evaluate(node.operand, names)),
    ast.Subscript: _subscript,
    ast.Attribute: _attribute,
    ast.Call: _call,
    ast.IfExp: _if_else,
}


def unknown_part(node: ast.expr, names: Mapping[str, Any]) -> str:
    """What in `node` could not be worked out whatever the names stand for; "" if nothing."""
    modules = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    for part in ast.walk(node):
        if isinstance(part, ast.expr) and not isinstance(part, ast.Starred | ast.Slice) and type(part) not in _NODES:
            return type(part).__name__
        if isinstance(part, ast.Name) and not _is_known(part.id, names, may_be_module=id(part) in modules):
            return part.id
        if isinstance(part, ast.Attribute) and not _is_attribute_known(part):
            return f".{part.attr}"
        if isinstance(part, ast.BinOp) and type(part.op) not in _ARITHMETIC:
            return type(part.op).__name__
    return ""


def _is_known(name: str, names: Mapping[str, Any], *, may_be_module: bool) -> bool:
    return name in names or name in FUNCTIONS or name == "range" or (may_be_module and name in MODULES)


def _is_attribute_known(node: ast.Attribute) -> bool:
    if isinstance(node.value, ast.Name) and node.value.id in MODULES:
        return node.attr in MODULES[node.value.id]
    return any(node.attr in methods for methods in _METHODS.values())
