"""The text of a program that runs inside the sandbox, cut out of our own modules.

Compiling it is a part of every run, so it holds only what is reached from one function, without docstrings,
annotations and comments, and imports only what the interpreter has loaded anyway.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_MODULES = ("code_encoding", "code_harness", "code_suite_harness")
_IMPORTS = "import posix, sys\n"


def program_text(entry: str) -> str:
    """The source of `entry`, a function without arguments in one of our modules, and of what it uses; calls it."""
    definitions = _definitions()
    wanted, todo = set(), [entry]
    while todo:
        name = todo.pop()
        if name in definitions and name not in wanted:
            wanted.add(name)
            todo += [node.id for node in ast.walk(definitions[name]) if isinstance(node, ast.Name)]
    body: list[ast.stmt] = [node for name, node in definitions.items() if name in wanted]
    return _IMPORTS + ast.unparse(ast.Module(body, type_ignores=[])) + f"\n{entry}()\n"


def _definitions() -> dict[str, ast.stmt]:
    """Functions, classes and constants of our modules by name, in their order."""
    definitions: dict[str, ast.stmt] = {}
    for module in _MODULES:
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
        for node in tree.body:
            for name in _names_of(node):
                definitions[name] = _Stripped().visit(node)
    return definitions


def _names_of(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


class _Stripped(ast.NodeTransformer):
    """Takes away what costs time to compile and does nothing."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        node.body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.Assign | None:
        return ast.copy_location(ast.Assign([node.target], node.value), node) if node.value else None
