"""A key for the arguments of a call."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any


def make_key(args: Sequence[Any], kwargs: Mapping[str, Any], typed: bool = False) -> Hashable:
    """Equal for calls with equal arguments, whatever the order of the named ones.

    Lists, dicts and sets among the arguments count by what they hold. With `typed` 1, 1.0 and True are three
    arguments, at every depth.

    Raises TypeError for an argument that can be no part of a key.
    """
    positional = tuple(_frozen(arg, typed) for arg in args)
    named = tuple((name, _frozen(kwargs[name], typed)) for name in sorted(kwargs))
    return positional, named


def _frozen(value: Any, typed: bool) -> Hashable:
    """Something hashable that stands for `value`; containers of different kinds never stand for the same."""
    if isinstance(value, list | tuple):
        return (type(value).__name__, tuple(_frozen(item, typed) for item in value))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(_frozen(item, typed) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((_frozen(key, typed), _frozen(item, typed)) for key, item in value.items()))
    hash(value)
    return (type(value).__name__, value) if typed else value
