"""A tree as text again, with the parentheses that it needs and no others."""

from __future__ import annotations

from sums.tree import PRECEDENCE, RIGHT_TO_LEFT, SIGN_PRECEDENCE, Binary, Call, Name, Node, Number, Signed

_ATOM = 9


def show(node: Node) -> str:
    """Text that `parse` reads as a tree of the same form."""
    if isinstance(node, Number):
        return str(node.value)
    if isinstance(node, Name):
        return node.name
    if isinstance(node, Call):
        return f"{node.name}({', '.join(map(show, node.arguments))})"
    if isinstance(node, Signed):
        return node.sign + _enclosed(node.operand, SIGN_PRECEDENCE)
    precedence = PRECEDENCE[node.sign]
    from_right = node.sign in RIGHT_TO_LEFT
    left = _enclosed(node.left, precedence + 1 if from_right else precedence)
    right = _enclosed(node.right, precedence if from_right else precedence + 1)
    return f"{left} {node.sign} {right}"


def _enclosed(node: Node, loosest: int) -> str:
    """The text of an operand, in parentheses where it would otherwise be read apart."""
    return f"({show(node)})" if _precedence(node) < loosest else show(node)


def _precedence(node: Node) -> int:
    if isinstance(node, Binary):
        return PRECEDENCE[node.sign]
    return SIGN_PRECEDENCE if isinstance(node, Signed) else _ATOM
