"""A test suite's text: why it cannot be run apart from the solution, or how it must be changed to report.

Each statement of the module, of `check` and of the functions named test_... becomes

    try: STATEMENT
    except BaseException as error: suite_report(N, error)
    else: suite_report(N)

so that one that fails or waits does not keep the others from being tried. The body of a loop goes on with the next item
when it needs a result that is not known yet, so that one run finds all calls of a loop.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator

_UNTOUCHED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def suite_fault(suite: str, setup: str, name: str) -> str:
    """Why the suite cannot be run without the solution beside it; "" if nothing is seen to speak against it."""
    try:
        tree, before = ast.parse(suite), ast.parse(setup)
    except (SyntaxError, ValueError, RecursionError) as error:
        return f"it does not compile ({error})"
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        return "it has no assert"
    faults = [*_structure_faults(tree), *_argument_faults(tree, name), *_import_faults(tree), *_import_faults(before)]
    known = {*dir(builtins), *_defined(tree), *_defined(before), name, "__name__", "__file__"}
    faults += [
        f"{used!r} is defined nowhere but, perhaps, in the solution" for used in _used(tree) if used not in known
    ]
    return faults[0] if faults else ""


def _structure_faults(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(parent) for parent in node.bases):
            yield f"{node.name} is a TestCase; write its tests as functions"
        if isinstance(node, ast.FunctionDef) and _is_test(node):
            if node.decorator_list:
                yield f"{node.name} is decorated (fixtures and parameters are pytest's)"
            if len(node.args.args) != (node.name == "check"):
                yield f"{node.name} has parameters that nobody gives"
            if any(isinstance(part, ast.Return) for part in _without_functions(node.body)):
                yield f"{node.name} returns between its asserts"


def _argument_faults(tree: ast.Module, name: str) -> Iterator[str]:
    """Functions cannot travel to another process."""
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in (name, "candidate"):
            for argument in call.args:
                if isinstance(argument, ast.Lambda) or (isinstance(argument, ast.Name) and argument.id in functions):
                    yield f"a function is an argument in {ast.unparse(call)[:60]}"


def _is_test(node: ast.FunctionDef) -> bool:
    return node.name == "check" or node.name.startswith("test")


def _without_functions(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes but those of functions inside."""
    todo: list[ast.AST] = list(statements)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(node)


def _import_faults(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            if module.partition(".")[0] not in sys.stdlib_module_names:
                yield f"it imports {module}, which is not in the standard library"


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def _used(tree: ast.Module) -> Iterator[str]:
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


def reporting(suite: str, name: str) -> tuple[str, tuple[int, ...]]:
    """The suite whose statements report, and the numbers of those with an assert in them."""
    tree = ast.parse(suite)
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and _is_test(node)]
    reporter = _Reporter()
    for test in tests:
        test.body = reporter.wrapped(test.body)
    called = {node.func.id for node in _without_functions(tree.body) if _is_plain_call(node)}  # type: ignore[attr-defined]
    tree.body = reporter.wrapped([node for node in tree.body if not _is_main_guard(node)])
    for test in tests:
        if test.name not in called:
            tree.body += ast.parse(f"{test.name}({name if test.args.args else ''})").body
    seed = ast.parse("import random\nrandom.seed(0)").body
    text = ast.unparse(ast.fix_missing_locations(ast.Module(seed + tree.body, type_ignores=[])))
    return text, tuple(reporter.asserting)


def _is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


class _Reporter(ast.NodeTransformer):
    """Wraps statements, and counts them."""

    def __init__(self) -> None:
        self.num_statements = 0
        self.asserting: list[int] = []

    def wrapped(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Each statement that does something in a `try` of its own."""
        return [self._wrapped(node) for node in statements]

    def _wrapped(self, node: ast.stmt) -> ast.stmt:
        if isinstance(node, _UNTOUCHED) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return node
        number = self.num_statements
        self.num_statements += 1
        if any(isinstance(part, ast.Assert) for part in ast.walk(node)):
            self.asserting.append(number)
        (wrapper,) = ast.parse(
            f"try: pass\nexcept BaseException as suite_error: suite_report({number}, suite_error)\n"
            f"else: suite_report({number})"
        ).body
        assert isinstance(wrapper, ast.Try)
        wrapper.body = [self.visit(node)]
        return wrapper

    def visit_For(self, node: ast.For) -> ast.For:
        self.generic_visit(node)
        (wrapper,) = ast.parse("try: pass\nexcept suite_open_call: pass").body
        assert isinstance(wrapper, ast.Try)
        wrapper.body = node.body
        node.body = [wrapper]
        return node
