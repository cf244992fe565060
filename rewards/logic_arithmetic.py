"""Reads an arithmetic of integers into an exact fraction, without evaluating it as a program.

Answers to the game of 24 and its kin are arithmetics that a model wrote. `eval` would run them, and sympy's
parser evaluates them too; here only digits, + - * / and parentheses are known, and nothing else gets through.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.logic_forms import Unreadable

_TOKEN = re.compile(r"\s*(?:(\d{1,9})|([-+*/()]))", re.ASCII)
_SIGNS = {"×": "*", "·": "*", "÷": "/", "−": "-", "\\times": "*", "\\cdot": "*", "\\div": "/"}
_MAX_NESTING = 32


def arithmetic(text: str) -> tuple[Fraction | None, list[int]]:
    """The value of integers joined by + - * / and parentheses, and these integers; None for a division by zero."""
    for written, sign in _SIGNS.items():
        text = text.replace(written, sign)
    return _Arithmetic(_tokens(text)).read()


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable("no arithmetic of integers with + - * / and parentheses")
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _Arithmetic:
    """A parser by recursive descent, one method a level of precedence."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.used: list[int] = []

    def read(self) -> tuple[Fraction | None, list[int]]:
        """All of the tokens."""
        try:
            value: Fraction | None = self.sum()
        except ZeroDivisionError:
            value = None
        else:
            if self.at < len(self.tokens):
                raise Unreadable("something after the arithmetic")
        return value, self.used

    def sum(self) -> Fraction:
        """Products with + or - between them."""
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        """Factors with * or / between them."""
        value = self.factor()
        while self.peek() in ("*", "/"):
            value = value * self.factor() if self.take() == "*" else value / self.factor()
        return value

    def factor(self) -> Fraction:
        """An integer, or a sum in parentheses, with or without a minus before it."""
        self.depth += 1
        if self.depth > _MAX_NESTING:
            raise Unreadable("an arithmetic that is nested too deep")
        token = self.take()
        if token == "-":
            value = -self.factor()
        elif token == "(":
            value = self.sum()
            if self.take() != ")":
                raise Unreadable("a parenthesis that is not closed")
        elif token.isdigit():
            self.used.append(int(token))
            value = Fraction(int(token))
        else:
            raise Unreadable("an arithmetic that breaks off")
        self.depth -= 1
        return value

    def peek(self) -> str:
        """The next token, or "" at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        """The next token, which is then behind us."""
        token = self.peek()
        self.at += 1
        return token
