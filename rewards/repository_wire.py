"""What passes between tests and the program under test: plain data by value, everything else as a number.

Both ends run inside the sandbox, in different processes, and the program's end may send whatever it likes. So nothing
here evaluates, unpickles or looks up a name that came over the wire: a frame is its length and JSON, and decoding
builds values of the types below, exactly. A value of any other type, subclasses included, is left to the ends, which
send a reference (a JSON object that holds no tag of this file).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 4 << 20
_EXACT_IN_JSON = 1 << 53

Refer = Callable[[Any], dict[str, Any]]
Resolve = Callable[[dict[str, Any]], Any]


class BrokenWire(Exception):
    """The other end is gone, or sent what is no frame."""


def encode(value: Any, refer: Refer) -> Any:
    """JSON for `value`; `refer` gives the reference for what is not plain data."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -_EXACT_IN_JSON < value < _EXACT_IN_JSON else {"int": hex(value)}
    if kind is list:
        return [encode(item, refer) for item in value]
    if kind is tuple or kind is set or kind is frozenset:
        return {kind.__name__: [encode(item, refer) for item in value]}
    if kind is dict:
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    if kind is bytes or kind is bytearray:
        return {kind.__name__: value.hex()}
    to_text = _TO_TEXT.get(f"{kind.__module__}.{kind.__qualname__}")
    return {kind.__name__: to_text(value)} if to_text else refer(value)


def decode(data: Any, resolve: Resolve) -> Any:
    """The inverse of `encode`. Raises whatever a constructor makes of hostile data (ValueError, TypeError, ...)."""
    if type(data) is list:
        return [decode(item, resolve) for item in data]
    if type(data) is not dict:
        return data
    if len(data) != 1:
        return resolve(data)
    ((tag, body),) = data.items()
    if tag in _CONTAINERS:
        return _CONTAINERS[tag]([decode(item, resolve) for item in body])
    if tag == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in body}
    return _FROM_TEXT[tag](body) if tag in _FROM_TEXT else resolve(data)


_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_TO_TEXT: dict[str, Callable[[Any], Any]] = {
    "datetime.date": lambda value: value.isoformat(),
    "datetime.datetime": lambda value: value.isoformat(),
    "datetime.time": lambda value: value.isoformat(),
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "decimal.Decimal": str,
    "fractions.Fraction": str,
}


def _date(text: str) -> Any:
    import datetime

    return datetime.date.fromisoformat(text)


def _datetime(text: str) -> Any:
    import datetime

    return datetime.datetime.fromisoformat(text)


def _time(text: str) -> Any:
    import datetime

    return datetime.time.fromisoformat(text)


def _timedelta(parts: list[int]) -> Any:
    import datetime

    return datetime.timedelta(*parts)


def _decimal(text: str) -> Any:
    import decimal

    return decimal.Decimal(text)


def _fraction(text: str) -> Any:
    import fractions

    return fractions.Fraction(text)


_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "date": _date,
    "datetime": _datetime,
    "time": _time,
    "timedelta": _timedelta,
    "Decimal": _decimal,
    "Fraction": _fraction,
}


class Wire:
    """Frames over two pipes."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: list[Any]) -> None:
        """Raises BrokenWire when nobody reads, ValueError when the message is too long to be sent."""
        body = json.dumps(message).encode("ascii")
        if len(body) > MAX_FRAME_BYTES:
            raise ValueError(f"a value may take at most {MAX_FRAME_BYTES} bytes on its way, got {len(body)}")
        frame = memoryview(len(body).to_bytes(4, "big") + body)
        try:
            while frame:
                frame = frame[os.write(self._writer, frame) :]
        except OSError as error:
            raise BrokenWire(str(error)) from error

    def receive(self) -> list[Any]:
        """The next message, a non-empty list that begins with a string. Raises BrokenWire."""
        size = int.from_bytes(self._read(4), "big")
        if size > MAX_FRAME_BYTES:
            raise BrokenWire(f"a frame of {size} bytes")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise BrokenWire(f"no JSON: {error}") from error
        if type(message) is not list or not message or type(message[0]) is not str:
            raise BrokenWire("no message")
        return message

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._reader, size)
            if not part:
                raise BrokenWire("the other end is gone")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
