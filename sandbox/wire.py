"""Programs and executions as JSON: what travels between the service and its clients, whatever language they are in.

    {"program": {"source": "print(input())", "stdin": "7"}, "limits": {"cpu_seconds": 1}}
    {"verdict": "OK", "stdout": "7\\n", "stderr": "", "exit_code": 0, ...}

The fields are those of the dataclasses in sandbox/program.py; one that is left out has its default. Bytes are a
string where they are UTF-8, and {"base64": "..."} where they are not, so that text stays readable and nothing is
lost: every value comes out of the wire as it went in.
"""

from __future__ import annotations

import binascii
import dataclasses
import json
import types
import typing
from base64 import b64decode, b64encode
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from sandbox.http_messages import json_bytes
from sandbox.program import Execution, Limits, Program

T = TypeVar("T")


class WireError(ValueError):
    """A message that does not say what it should; the text says what is wrong, for the one who sent it."""


def job_bytes(program: Program, limits: Limits) -> bytes:
    """The body of POST /run."""
    return json_bytes({"program": to_json(program), "limits": to_json(limits)})


def read_object(body: bytes | bytearray, known: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object in a body, with no other names than those of `known`. Raises WireError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits; or 10,000 brackets
        raise WireError(f"the body must be JSON ({str(error)[:200]})") from error
    if not isinstance(value, dict):
        raise WireError(f"the body must be a JSON object, got {_kind(value)}")
    _refuse_unknown(value, known, "the body")
    return value


def read_program(value: Any, where: str = "program") -> Program:
    """A Program from its JSON. Raises WireError, also for what Program itself refuses."""
    return from_json(Program, value, where)


def read_limits(value: Any, default: Limits) -> Limits:
    """Limits from their JSON; a limit that is left out is that of `default`. Raises WireError."""
    if value is None:
        return default
    return from_json(Limits, value, "limits", default=default)


def read_execution(body: bytes) -> Execution:
    """An Execution from a service's answer. Fields that this version does not know are ignored. Raises WireError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the answer is not JSON ({str(error)[:200]})") from error
    if isinstance(value, dict):
        value = {name: part for name, part in value.items() if name in _hints(Execution)}
    return from_json(Execution, value, "execution")


def to_json(instance: Any) -> dict[str, Any]:
    """A dataclass of plain values as a JSON object; fields at their defaults are left out, but for numbers of a limit.

    Limits travel whole, because a service's own defaults may differ.
    """
    fields = dataclasses.fields(instance)
    whole = not isinstance(instance, Program)
    return {f.name: _packed(v) for f in fields if (v := getattr(instance, f.name)) != _default(f) or whole}


def from_json(cls: type[T], value: Any, where: str, default: T | None = None) -> T:
    """The dataclass that a JSON object describes, each value checked against the type of its field.

    Args:
        cls: a frozen dataclass of scalars, bytes, mappings of bytes, tuples of text, and dataclasses of such.
        value: what JSON held.
        where: what to call it in an error.
        default: whence the fields that are left out; None takes the class's own defaults.

    Raises WireError: a wrong type, an unknown or missing field, or a value that the class refuses.
    """
    if not isinstance(value, dict):
        raise WireError(f"{where} must be an object, got {_kind(value)}")
    kind: Any = cls
    hints = _hints(kind)
    _refuse_unknown(value, tuple(hints), where)
    parts = {name: _unpacked(part, hints[name], f"{where}.{name}") for name, part in value.items()}
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = [f.name for f in fields if f.name not in parts and _default(f) is dataclasses.MISSING]
    if default is None and missing:
        raise WireError(f"{where} needs {', '.join(missing)}")
    try:
        return cls(**parts) if default is None else dataclasses.replace(default, **parts)  # type: ignore[type-var]
    except ValueError as error:
        raise WireError(str(error)) from error


def _packed(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {name: _packed(part) for name, part in value.items()}
    return to_json(value) if dataclasses.is_dataclass(value) else value


def _unpacked(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as the type that the field wants."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    origin = typing.get_origin(hint)
    if bytes in options:
        return _bytes(value, where, keep_text=str in options)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        inner = typing.get_args(hint)[1]
        return {name: _unpacked(part, inner, f"{where}[{name!r}]") for name, part in _object(value, where).items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise WireError(f"{where} must be a list, got {_kind(value)}")
        return tuple(_unpacked(part, typing.get_args(hint)[0], where) for part in value)
    return _scalar(value, options, where)


def _scalar(value: Any, options: tuple[Any, ...], where: str) -> Any:
    for option in options:
        if issubclass(option, StrEnum):
            if value in [str(member) for member in option]:
                return option(value)
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                break
        elif isinstance(value, option) and isinstance(value, bool) == (option is bool):
            return value
    wanted = " or ".join("null" if option is type(None) else option.__name__ for option in options)
    raise WireError(f"{where} must be {wanted}, got {_kind(value)}")


def _bytes(value: Any, where: str, *, keep_text: bool) -> bytes | str:
    if isinstance(value, str):
        # A lone surrogate becomes what Program.stdin_bytes would have made of it.
        return value if keep_text else value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict) and list(value) == ["base64"] and isinstance(value["base64"], str):
        try:
            return b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise WireError(f"{where}.base64 cannot be decoded ({error})") from error
    raise WireError(f'{where} must be a string or {{"base64": "..."}}, got {_kind(value)}')


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError(f"{where} must be an object, got {_kind(value)}")
    return value


def _refuse_unknown(value: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise WireError(f"{where} has no field {unknown[0][:80]!r}; it has {', '.join(known)}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    is_container = isinstance(value, dict | list)  # whose text may be of any length and depth
    return type(value).__name__ if is_container else f"{type(value).__name__} {str(value)[:40]!r}"


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
