"""Plain data as text and back, so that a stranger's value can be compared without being trusted.

`encode` runs inside the sandbox, in the stranger's process, and on our side for the expected value: two values are
the same if their texts are. It imports nothing, because that would cost more CPU than most programs. `decode` runs
on our side only: it builds plain data from text that may be hostile, and never evaluates it.

The text is JSON. What JSON has no form for is an object with one key: {"f": "0.5"} float, {"t": [...]} tuple,
{"s": [...]} set, {"z": [...]} frozenset, {"d": [[key, value], ...]} dict, {"b": "6869"} bytes, {"i": "0x..."} a large
integer, {"u": [code points]} a string with lone surrogates, {"o": ["Counter", [...]]} a dict of `collections`,
{"y": [...]} an iterator or a range, by what it yields.
"""

from __future__ import annotations

import json
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

MAX_DEPTH = 64


class Refused(ValueError):
    """A value that is not plain data; its text says why."""


def encode(value: Any, depth: int = 0) -> str:
    """Text that differs whenever type or value do: 1, 1.0 and True are three things, a tuple is not a list.

    Zero has no sign, NaN is itself, the order of sets and dicts does not matter. A generator, a range or another
    iterator of the language is what it yields, and no list. Raises Refused for everything else: subclasses, because
    they can claim to equal anything, and what contains itself or is nested deeper than 64.
    """
    kind = type(value)
    if depth > MAX_DEPTH:
        raise Refused("the result is nested too deep")
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value) if -(1 << 64) < value < 1 << 64 else f'{{"i":"{hex(value)}"}}'  # str() refuses huge ones
    if kind is float:
        return f'{{"f":"{value + 0.0!r}"}}'
    if kind is str:
        return _encode_text(value)
    if kind is bytes:
        return f'{{"b":"{value.hex()}"}}'
    return _encode_container(value, kind, depth + 1)


def _encode_container(value: Any, kind: type, depth: int) -> str:
    if kind is list:
        return _enclose(encode(item, depth) for item in value)
    if kind is tuple:
        return f'{{"t":{_enclose(encode(item, depth) for item in value)}}}'
    if kind is set or kind is frozenset:
        return f'{{"{"s" if kind is set else "z"}":{_enclose(sorted(encode(item, depth) for item in value))}}}'
    if kind is dict:
        return f'{{"d":{_encode_items(value, depth)}}}'
    module = kind.__module__
    if module == "collections" and kind.__name__ in ("Counter", "OrderedDict", "defaultdict"):
        return f'{{"o":["{kind.__name__}",{_encode_items(value, depth)}]}}'
    if kind is range or (module in ("builtins", "itertools") and _is_iterator(kind)):
        return f'{{"y":{_enclose(encode(item, depth) for item in value)}}}'
    raise Refused(f"a result must be plain data, got {kind.__name__}")


def _is_iterator(kind: type) -> bool:
    return hasattr(kind, "__next__") or kind.__name__ in ("dict_keys", "dict_values", "dict_items")


def _encode_items(value: Any, depth: int) -> str:
    return _enclose(sorted(f"[{encode(key, depth)},{encode(item, depth)}]" for key, item in dict.items(value)))


def _encode_text(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    codes = [ord(letter) for letter in text]
    if any(0xD800 <= code < 0xE000 for code in codes):
        return f'{{"u":{codes}}}'
    return '"' + "".join(_escaped(code) for code in codes) + '"'


def _escaped(code: int) -> str:
    if 32 <= code < 127 and code not in (34, 92):
        return chr(code)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _enclose(parts: Iterable[str]) -> str:
    return "[" + ",".join(parts) + "]"


# --- on our side only ------------------------------------------------------------------------------------------


class Yielded:
    """What an iterator of the stranger's yielded: can be gone through, is no list, and equals nothing but itself."""

    __hash__ = None  # type: ignore[assignment]  # no key, for which two of them would have to be told apart

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = list(items)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __repr__(self) -> str:
        """As the harness reads it (rewards.code_harness.literal)."""
        return f"iter({self._items!r})"


def decode(text: str, *, yielded: Callable[[list[Any]], Any] = Yielded) -> Any:
    """The value that `encode` gave `text` for; a dict of `collections` becomes a plain one, an iterator `yielded`.

    Raises ValueError for any other text, whatever a stranger may have put in it.
    """
    try:
        node = json.loads(text, parse_float=_no_such_form, parse_constant=_no_such_form)
        return _restored(node, 0, {**_FORMS, "y": lambda content, restore: yielded(list(map(restore, content)))})
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        raise ValueError(f"not an encoded value: {type(error).__name__}") from error


def _no_such_form(text: str) -> Any:
    raise ValueError(f"a number like {text} is never written")


def _restored(node: Any, depth: int, forms: Mapping[str, Any]) -> Any:
    if depth > 2 * MAX_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(node, list):
        return [_restored(item, depth + 1, forms) for item in node]
    if not isinstance(node, dict):
        return node
    ((tag, content),) = node.items()
    return forms[tag](content, lambda item: _restored(item, depth + 1, forms))


def _restored_items(pairs: Any, restore: Callable[[Any], Any]) -> dict[Any, Any]:
    return {restore(key): restore(value) for key, value in pairs}


_FORMS: Mapping[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "f": lambda content, restore: float(content),
    "i": lambda content, restore: int(content, 16),
    "b": lambda content, restore: bytes.fromhex(content),
    "u": lambda content, restore: "".join(map(chr, content)),
    "t": lambda content, restore: tuple(map(restore, content)),
    "s": lambda content, restore: set(map(restore, content)),
    "z": lambda content, restore: frozenset(map(restore, content)),
    "d": _restored_items,
    "o": lambda content, restore: _restored_items(content[1], restore),
}
