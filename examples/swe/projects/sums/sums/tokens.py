"""Text into tokens."""

from __future__ import annotations

import re
from typing import NamedTuple

from sums.errors import SumError

_TOKEN = re.compile(
    r"""(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
      | (?P<sign>//|[-+*/%^(),])""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")


class Token(NamedTuple):
    """A piece of text; `kind` is number, name, sign or end."""

    kind: str
    text: str
    position: int


def tokenize(text: str) -> list[Token]:
    """The tokens of `text`, with one of kind "end" after them. Raises SumError."""
    tokens: list[Token] = []
    position = _skip_space(text, 0)
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise SumError(f"unexpected character {text[position]!r}", position)
        tokens.append(Token(str(match.lastgroup), match[0], position))
        position = _skip_space(text, match.end())
    tokens.append(Token("end", "", len(text)))
    return tokens


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
