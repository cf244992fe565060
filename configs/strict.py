"""Plain dictionaries -> frozen dataclasses, strictly, and back.

Strict means: every key exists, every value has the field's type, nothing is filled in silently but the dataclass's own
defaults. All faults are collected and raised together, each with the full path of its key and the nearest right one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cispo.errors import ConfigError

T = TypeVar("T")

CrossChecks = tuple[tuple[tuple[str, ...], Callable[[T], list[str]]], ...]
"""(names of fields, what is wrong between them); the `cross_checks()` of a dataclass."""


def from_dict(cls: type[T], values: Mapping[str, Any], *, path: str = "") -> T:
    """An instance of the dataclass `cls` from `values`; raises ConfigError with every fault found."""
    faults: list[str] = []
    instance = _build(cls, values, path, faults)
    if faults:
        raise ConfigError(*faults)
    return typing.cast(T, instance)


def to_dict(config: Any) -> dict[str, Any]:
    """The plain dictionary (JSON- and YAML-like) that `from_dict` turns back into an equal dataclass."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def nearest(key: str, known: Sequence[str]) -> str:
    """ " Did you mean ...?" for a wrong key, or the list of the right ones."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def _build(cls: Any, values: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(values, Mapping):
        faults.append(f"{path or 'the configuration'} must be a mapping of keys; got {values!r}.")
        return None
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in values:
        if key not in names:
            faults.append(f"unknown key {_join(path, str(key))!r}: {nearest(str(key), names)}")
    num_before = len(faults)
    faults.extend(f"{_join(path, name)} is needed and has no default." for name in _required(cls) if name not in values)
    arguments: dict[str, Any] = {}
    for name in names:
        if name in values:
            num_faults = len(faults)
            converted = _convert(hints[name], values[name], _join(path, name), faults)
            if len(faults) == num_faults:
                arguments[name] = converted
    if len(faults) == num_before:
        return _instance(cls, arguments, path, faults)
    _check_the_rest(cls, arguments, [name for name in names if name in values and name not in arguments], path, faults)
    return None


def _check_the_rest(cls: Any, arguments: Mapping[str, Any], wrong: Sequence[str], path: str, faults: list[str]) -> None:
    """What holds whatever `wrong` fields are: what a parent says of its own, and what others are together."""
    for parent in cls.__mro__[1:]:
        own = [field.name for field in dataclasses.fields(parent)] if dataclasses.is_dataclass(parent) else []
        if own and not {*own} & {*wrong}:
            _instance(parent, {name: arguments[name] for name in own if name in arguments}, path, faults)
    if hasattr(cls, "cross_checks"):
        faults += _cross_faults(cls, arguments, wrong)


def _cross_faults(cls: Any, arguments: Mapping[str, Any], wrong: Sequence[str]) -> list[str]:
    """What is wrong between those fields of `cls` that by themselves are not."""
    partial = object.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.name not in wrong:
            value = arguments[field.name] if field.name in arguments else _default(field)
            object.__setattr__(partial, field.name, value)
    return [fault for needed, check in cls.cross_checks() if not {*needed} & {*wrong} for fault in check(partial)]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _instance(cls: Any, arguments: Mapping[str, Any], path: str, faults: list[str]) -> Any:
    try:
        return cls(**arguments)
    except ConfigError as error:
        faults.extend(error.faults)
    except (TypeError, ValueError) as error:
        faults.append(f"{path or 'the configuration'}: {error}")
    return None


def _required(cls: Any) -> list[str]:
    nothing = dataclasses.MISSING
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return [field.name for field in fields if field.default is nothing and field.default_factory is nothing]


def _convert(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    """`value` as the type `hint`; appends to `faults` where it cannot be."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path, faults)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path, faults)
    if origin is tuple:
        return _convert_tuple(arguments, value, path, faults)
    if origin in (dict, Mapping):
        return _convert_dict(arguments[1], value, path, faults)
    return _convert_scalar(hint, value, path, faults)


def _convert_union(options: Sequence[Any], value: Any, path: str, faults: list[str]) -> Any:
    for option in options:
        attempt: list[str] = []
        converted = _convert(option, value, path, attempt)
        if not attempt:
            return converted
    faults.append(f"{path} must be {' or '.join(_name(option) for option in options)}; got {value!r}.")
    return None


def _convert_tuple(arguments: Sequence[Any], value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        faults.append(f"{path} must be a list; got {value!r}.")
        return None
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = [arguments[0]] * len(value)
    if len(arguments) != len(value):
        faults.append(f"{path} must be a list of {len(arguments)} values; got {list(value)!r}.")
        return None
    return tuple(
        _convert(hint, entry, f"{path}[{i}]", faults)
        for i, (hint, entry) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_dict(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(f"{path} must be a mapping; got {value!r}.")
        return None
    return {str(key): _convert(hint, entry, _join(path, str(key)), faults) for key, entry in value.items()}


def _convert_scalar(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    if hint is float:
        number = _number(value)
        if number is not None:
            return number
    elif hint is int and isinstance(value, float) and value.is_integer() or _is_exactly(hint, value):
        return hint(value) if hint is int else value
    faults.append(f"{path} must be {_name(hint)}; got {value!r}.")
    return None


def _is_exactly(hint: Any, value: Any) -> bool:
    """bool is an int to Python; a step count of True is a mistake to a person."""
    if hint is type(None):
        return value is None
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)


def _number(value: Any) -> float | None:
    """YAML 1.1 reads 1e-4 as a string; so would a person be surprised to hear that it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # an integer of 400 digits
        return None
    return None if math.isnan(number) else number


def _name(hint: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in plain:
        return plain[hint]
    return "a list" if typing.get_origin(hint) is tuple else str(getattr(hint, "__name__", hint))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
