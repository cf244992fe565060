"""Functions that keep their results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keep.cache import Cache
from keep.keys import make_key

_NOTHING = object()


def remember(
    cache: Cache | None = None,
    *,
    typed: bool = False,
    unless: Callable[[Any], bool] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function look into `cache` (default: a new one) before it computes.

    Args:
        typed: arguments of different types are different, as in `make_key`.
        unless: results for which this is true are given back and not kept. Exceptions never are.

    The decorated function has `cache`, and `forget(*args, **kwargs)` drops the result of one call.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kept = Cache() if cache is None else cache

        @functools.wraps(function)
        def remembering(*args: Any, **kwargs: Any) -> Any:
            key = make_key(args, kwargs, typed)
            found = kept.get(key, _NOTHING)
            if found is not _NOTHING:
                return found
            result = function(*args, **kwargs)
            if unless is None or not unless(result):
                kept.put(key, result)
            return result

        def forget(*args: Any, **kwargs: Any) -> bool:
            return kept.delete(make_key(args, kwargs, typed))

        remembering.cache = kept  # type: ignore[attr-defined]
        remembering.forget = forget  # type: ignore[attr-defined]
        return remembering

    return decorate
