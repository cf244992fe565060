"""Tokens into a tree, by precedence climbing."""

from __future__ import annotations

from sums.errors import SumError
from sums.tokens import Token, tokenize
from sums.tree import PRECEDENCE, RIGHT_TO_LEFT, SIGN_PRECEDENCE, Binary, Call, Name, Node, Number, Signed

MAX_DEPTH = 100


def parse(text: str) -> Node:
    """The tree of `text`. Raises SumError."""
    parser = _Parser(tokenize(text))
    tree = parser.expression(1)
    parser.expect("end", "")
    return tree


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._depth = 0

    def expression(self, loosest: int) -> Node:
        """An operand and all operators after it that bind at least as tightly as `loosest`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise SumError("nested too deeply", self._token.position)
        left = self._operand()
        while self._token.kind == "sign" and PRECEDENCE.get(self._token.text, 0) >= loosest:
            sign = self._take()
            precedence = PRECEDENCE[sign.text]
            right = self.expression(precedence if sign.text in RIGHT_TO_LEFT else precedence + 1)
            left = Binary(sign.text, left, right, sign.position)
        self._depth -= 1
        return left

    def expect(self, kind: str, text: str) -> Token:
        """Take the token that must come next."""
        token = self._token
        if token.kind != kind or token.text != text:
            wanted = repr(text) if text else "the end"
            raise SumError(f"expected {wanted}, found {_shown(token)}", token.position)
        return self._take()

    @property
    def _token(self) -> Token:
        return self._tokens[self._index]

    def _take(self) -> Token:
        token = self._token
        if token.kind != "end":
            self._index += 1
        return token

    def _next_is(self, text: str) -> bool:
        return self._token.kind == "sign" and self._token.text == text

    def _operand(self) -> Node:
        token = self._take()
        if token.kind == "number":
            return Number(_value(token.text), token.position)
        if token.kind == "name":
            return self._call(token) if self._next_is("(") else Name(token.text, token.position)
        if token.text in ("+", "-"):
            return Signed(token.text, self.expression(SIGN_PRECEDENCE), token.position)
        if token.text == "(":
            inner = self.expression(1)
            self.expect("sign", ")")
            return inner
        raise SumError(f"expected a number, found {_shown(token)}", token.position)

    def _call(self, name: Token) -> Call:
        self.expect("sign", "(")
        arguments: list[Node] = []
        while not self._next_is(")"):
            arguments.append(self.expression(1))
            if not self._next_is(","):
                break
            self._take()
        self.expect("sign", ")")
        return Call(name.text, tuple(arguments), name.position)


def _value(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def _shown(token: Token) -> str:
    return repr(token.text) if token.text else "the end"
