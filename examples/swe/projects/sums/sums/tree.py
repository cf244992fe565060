"""What a parsed sum is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A literal."""

    value: int | float
    position: int


@dataclass(frozen=True)
class Name:
    """A variable."""

    name: str
    position: int


@dataclass(frozen=True)
class Signed:
    """A sign before an operand."""

    sign: str
    operand: Node
    position: int


@dataclass(frozen=True)
class Binary:
    """An operator between two operands; `position` is that of the operator."""

    sign: str
    left: Node
    right: Node
    position: int


@dataclass(frozen=True)
class Call:
    """A function of its arguments."""

    name: str
    arguments: tuple[Node, ...]
    position: int


Node = Number | Name | Signed | Binary | Call

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2, "^": 4}
SIGN_PRECEDENCE = 3
RIGHT_TO_LEFT = {"^"}
