"""Suites of asserts as calls that are judged one by one, so that no expected value is ever near the solution.

    def check(candidate):
        assert candidate([1, 2]) == 3                   the call f([1, 2]), and the condition RESULT == 3
        for x, y in [(1, 2), (2, 4)]:                   loops over what is written there are unrolled
            assert abs(candidate(x) - y) < 1e-6

An assert may be any condition that rewards.code_expressions can work out, with any number of calls whose arguments it
can work out. A suite that does more (objects, exceptions, arguments that are looked at after the call, loops whose
length depends on a result) is not translated: rewards.code_replay runs it as it is.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cispo.types import Verdict
from rewards.code_calls import MAX_DECODED, Answer, Call, Setting, call_job, call_of
from rewards.code_cases import CaseLimits
from rewards.code_encoding import Refused, decode, encode
from rewards.code_expressions import MODULES, CallFailed, evaluate, unknown_part
from rewards.code_jobs import Job, Outcome, short
from sandbox import Limits

MAX_ASSERTS = 2000


class UntranslatableSuite(Exception):
    """The suite does more than call and compare; its text says what."""


@dataclass(frozen=True)
class AssertCase:
    """One assert: its calls, each a run of its own, and the condition on their results.

    Attributes:
        condition: an expression in which only the calls are names; constants are in it.
        calls: by those names, in the order of the text.
        source: the assert as it was written.
        limits: of each call.
    """

    condition: ast.expr
    calls: Mapping[str, Call]
    source: str
    limits: CaseLimits = CaseLimits()

    def job(self, setting: Setting, limits: Limits) -> Job:
        """The first call; each next one follows from the one before."""
        return self._next_job(replace(setting, limits=self.limits.within(limits)), {})

    def _next_job(self, setting: Setting, results: Mapping[str, Any]) -> Job:
        name, call = list(self.calls.items())[len(results)]

        def judge(answer: Answer) -> Outcome | Job:
            known = {**results, name: _result(answer)}
            return self._judge(known) if len(known) == len(self.calls) else self._next_job(setting, known)

        return call_job(call, setting, judge)

    def _judge(self, results: Mapping[str, Any]) -> Outcome:
        try:
            if evaluate(self.condition, results):
                return Outcome(Verdict.CORRECT)
        except CallFailed as failed:
            outcome: Outcome = failed.args[0]
            return replace(outcome, note=short(f"{outcome.note} in {self.source}"))
        except Exception as error:  # as in the suite itself: a condition that cannot be worked out does not hold
            return Outcome(Verdict.WRONG, short(f"{self.source}: {type(error).__name__}: {error}"))
        got = ", ".join(_shown(value) for value in results.values())
        return Outcome(Verdict.WRONG, short(f"{self.source}, got {got}"))


def _result(answer: Answer) -> Any:
    if answer.returned is None:
        return CallFailed(answer.outcome)
    if len(answer.returned) > MAX_DECODED:
        return CallFailed(Outcome(Verdict.WRONG, "the result is too long to be looked at"))
    try:
        return decode(answer.returned)
    except ValueError:
        return CallFailed(Outcome(Verdict.WRONG, "the result is no value"))


def _shown(value: Any) -> str:
    try:
        text = ascii(value)
    except ValueError:  # Python writes no number of more than 4,300 digits, wherever in the value it is
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def translate(suite: str, entry: str, limits: CaseLimits) -> tuple[AssertCase, ...]:
    """The asserts of `suite` on the function `entry`. Raises UntranslatableSuite."""
    try:
        tree = ast.parse(suite)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UntranslatableSuite(str(error)) from error
    translator = _Translator(entry, limits)
    translator.run_module(tree.body)
    if not translator.cases:
        raise UntranslatableSuite("it has no assert")
    return tuple(translator.cases)


@dataclass(frozen=True)
class _Bound:
    """An expression without variables: constants are in it, calls are names."""

    expression: ast.expr
    calls: Mapping[str, Call]


class _Translator:
    """Walks through a suite as Python would, and collects asserts."""

    def __init__(self, entry: str, limits: CaseLimits) -> None:
        self.cases: list[AssertCase] = []
        self.entry = entry
        self.aliases = {entry}
        self.names: dict[str, Any] = {}
        self.passed: dict[int, Any] = {}  # containers that calls may have changed since, by identity
        self.num_calls = 0
        self._limits = limits

    def run_module(self, statements: list[ast.stmt]) -> None:
        """Statements first, then check and the functions named test_..., with the names that they left."""
        functions = [node for node in statements if isinstance(node, ast.FunctionDef)]
        self._run(node for node in statements if not isinstance(node, ast.FunctionDef))
        names = dict(self.names)
        for function in functions:
            self.names, self.aliases = dict(names), {self.entry, *_parameters(function)}
            self._run(function.body)

    def _run(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            step = _STEPS.get(type(statement))
            if step is None:
                raise UntranslatableSuite(f"a statement {type(statement).__name__}")
            step(self, statement)

    def add_assert(self, node: ast.Assert) -> None:
        bound = self._bound(node.test)
        if not bound.calls:
            if self._worked_out(bound):
                return  # it holds whatever the solution does
            raise UntranslatableSuite("an assert that calls nothing and does not hold")
        if len(self.cases) >= MAX_ASSERTS:
            raise UntranslatableSuite(f"more than {MAX_ASSERTS} asserts")
        self.cases.append(AssertCase(bound.expression, bound.calls, ast.unparse(node)[:120], self._limits))

    def skip_expression(self, node: ast.Expr) -> None:
        """A comment in quotes, or the call of check, which is run anyway."""
        value = node.value
        is_call_of_check = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "check"
        if not (isinstance(value, ast.Constant) or is_call_of_check):
            raise UntranslatableSuite(f"a statement {ast.unparse(node)[:60]}")

    def import_names(self, node: ast.Import | ast.ImportFrom) -> None:
        """Modules whose functions are known; of typing nothing can come that a condition uses."""
        module = (node.module or ".") if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            if module in MODULES and alias.name in MODULES[module]:
                self.names[alias.asname or alias.name] = MODULES[module][alias.name]
            elif (module or alias.name) not in (*MODULES, "typing") or alias.asname or module in MODULES:
                raise UntranslatableSuite(f"the import {ast.unparse(node)}")

    def assign(self, node: ast.Assign) -> None:
        if len(node.targets) != 1:
            raise UntranslatableSuite("an assignment to several names")
        bound = self._bound(node.value)
        if not bound.calls:
            self._give(node.targets[0], self._worked_out(bound))
        elif isinstance(node.targets[0], ast.Name):
            self.names[node.targets[0].id] = bound
        else:
            raise UntranslatableSuite("a result that is taken apart")

    def unroll(self, node: ast.For) -> None:
        items = self._worked_out(self._bound(node.iter))
        if node.orelse:
            raise UntranslatableSuite("a loop with an else")
        for item in items:
            self._give(node.target, item)
            self._run(node.body)

    def choose(self, node: ast.If) -> None:
        if any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)):
            return  # what a file does when it is run by itself
        self._run(node.body if self._worked_out(self._bound(node.test)) else node.orelse)

    def _give(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
            self.aliases.discard(target.id)
        elif isinstance(target, ast.Tuple | ast.List) and len(target.elts) == len(value):
            for part, item in zip(target.elts, value, strict=True):
                self._give(part, item)
        else:
            raise UntranslatableSuite(f"an assignment to {ast.unparse(target)[:60]}")

    def _bound(self, node: ast.expr) -> _Bound:
        binder = _Binder(self)
        expression = binder.visit(copy.deepcopy(node))
        unknown = unknown_part(expression, binder.calls)
        if unknown:
            raise UntranslatableSuite(f"{unknown} in {ast.unparse(node)[:80]}")
        if any(identity in self.passed for value in binder.looked_at for identity in _containers(value)):
            raise UntranslatableSuite("an argument that is looked at after the call, which may have changed it")
        return _Bound(expression, binder.calls)

    def _worked_out(self, bound: _Bound) -> Any:
        if bound.calls:
            raise UntranslatableSuite("a path that depends on a result")
        try:
            return evaluate(bound.expression, {})
        except Exception as error:
            raise UntranslatableSuite(f"{type(error).__name__}: {error}") from error

    def call(self, node: ast.Call) -> Call:
        """The call that `node` makes, its arguments worked out."""
        if any(isinstance(part, ast.Starred) for part in node.args) or any(part.arg is None for part in node.keywords):
            raise UntranslatableSuite("a call with unpacked arguments")
        binder = _Binder(self)
        values = [binder.visit(copy.deepcopy(part)) for part in (*node.args, *(part.value for part in node.keywords))]
        if binder.calls or any(unknown_part(value, {}) for value in values):
            raise UntranslatableSuite(f"the arguments of {ast.unparse(node)[:80]}")
        results = [self._worked_out(_Bound(value, {})) for value in values]
        if any(identity in self.passed for value in binder.looked_at for identity in _containers(value)):
            raise UntranslatableSuite("an argument that is passed twice, and may be changed between")
        self.passed.update((id(part), part) for value in binder.looked_at for part in _containers(value).values())
        try:
            results = decode(encode(results), yielded=list)
        except Refused as error:
            raise UntranslatableSuite(str(error)) from error
        keywords = {str(part.arg): value for part, value in zip(node.keywords, results[len(node.args) :], strict=True)}
        return call_of(self.entry, results[: len(node.args)], keywords)


class _Binder(ast.NodeTransformer):
    """Puts constants in the place of names, and names in the place of calls."""

    def __init__(self, translator: _Translator) -> None:
        self._translator = translator
        self.calls: dict[str, Call] = {}
        self.looked_at: list[Any] = []

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if ast.unparse(node.func).replace("()", "") not in self._translator.aliases:
            self.generic_visit(node)
            return node
        self._translator.num_calls += 1
        name = f"call {self._translator.num_calls}"  # no identifier, so no name of the suite
        self.calls[name] = self._translator.call(node)
        return ast.Name(name)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self._translator.names.get(node.id, node)
        if value is node or node.id in self._translator.aliases:
            return node
        if isinstance(value, _Bound):
            self.calls |= value.calls
            return value.expression
        self.looked_at.append(value)
        return ast.Constant(value)


def _containers(value: Any) -> dict[int, Any]:
    """All of `value` that a call could change, by identity."""
    found: dict[int, Any] = {}
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, list | dict | set):
            found[id(part)] = part
        if isinstance(part, list | tuple | set | dict):
            todo += part.values() if isinstance(part, dict) else part
    return found


def _parameters(function: ast.FunctionDef) -> list[str]:
    """The names under which check(candidate) or test_...() knows the function; no other functions are run."""
    parameters = [argument.arg for argument in function.args.args]
    is_check = function.name == "check" and len(parameters) == 1
    if function.decorator_list or not (is_check or (function.name.startswith("test") and not parameters)):
        raise UntranslatableSuite(f"the function {function.name}")
    return parameters


_STEPS: Mapping[type, Callable[[_Translator, Any], None]] = {
    ast.Assert: _Translator.add_assert,
    ast.Assign: _Translator.assign,
    ast.For: _Translator.unroll,
    ast.If: _Translator.choose,
    ast.Expr: _Translator.skip_expression,
    ast.Import: _Translator.import_names,
    ast.ImportFrom: _Translator.import_names,
    ast.Pass: lambda translator, node: None,
}
