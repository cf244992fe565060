"""The reference of a code task, as rows of prompt files have it, into the tests that it means.

    {"tests": [{"stdin": "2 3", "stdout": "5"}, ...]}                            a program, its output compared
    {"entry": "add", "tests": [{"args": [2, 3], "returns": 5}, ...]}             a function, called once per test
    {"class": "Stack", "tests": [{"operations": [["Stack", []], ["push", [1]]], "returns": [null, null]}, ...]}
    {"entry": "add", "suite": "def check(candidate):\\n    assert candidate(2, 3) == 5"}

docs/rewards.md has all keys. What cannot be used is a DataError when the prompt file is read.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cispo.errors import DataError
from rewards.code_calls import Call, Step, call_of
from rewards.code_cases import CallCase, Case, CaseLimits, OutputCase
from rewards.code_checker import Checker
from rewards.code_compare import OUTPUT_MODES, VALUE_MODES, Tolerance
from rewards.code_encoding import Refused, encode
from rewards.code_formats import as_own_form
from rewards.code_program import FENCES
from rewards.code_replay import Replay
from rewards.code_suite import UntranslatableSuite, translate
from sandbox.program import LANGUAGES

MAX_SECONDS = 60.0
MAX_MEMORY_MB = 4096

_KEYS = (
    "tests", "entry", "class", "suite", "language", "languages", "preamble", "setup", "compare", "tolerance",
    "seconds", "memory_mb", "checker", "values",
)  # fmt: skip
_TEST_KEYS = (
    "stdin", "stdout", "args", "kwargs", "returns", "raises", "args_after", "operations", "compare", "tolerance",
    "seconds", "memory_mb",
)  # fmt: skip
_CALLABLE_LANGUAGES = ("python", "numpy")


@dataclass(frozen=True)
class TestPlan:
    """What a program must do.

    Attributes:
        languages: in which it may be written; the first is that of an answer without a block of code.
        preamble: an author's code that runs before it.
        cases: tests that are judged one by one.
        replay: instead of cases, a suite that itself decides.
    """

    languages: tuple[str, ...]
    preamble: str
    cases: tuple[Case, ...] = ()
    replay: Replay | None = None

    @property
    def num_tests(self) -> int:
        """How many tests there are to pass."""
        return self.replay.num_tests if self.replay else len(self.cases)

    __test__ = False  # the name is not meant for pytest


class _Fault(ValueError):
    """What a reference lacks; its text goes on after "needs". Never leaves this file."""


def check_reference(reference: Any) -> None:
    """Raise DataError unless `reference` has one of the forms at the head of this file."""
    read_reference(reference)


def read_reference(reference: Any) -> TestPlan:
    """The tests that `reference` means. Raises DataError with what it lacks."""
    try:
        return _plan(as_own_form(reference))
    except (_Fault, DataError) as fault:
        shown = repr(reference)
        shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
        raise DataError(f"the reference of a code task needs {fault}, got {shown}") from None


def _plan(reference: Any) -> TestPlan:
    if not isinstance(reference, Mapping):
        raise _Fault("to be an object with 'tests'")
    _check_keys(reference, _KEYS)
    is_called = any(key in reference for key in ("entry", "class", "suite"))
    plan = TestPlan(_languages(reference, is_called), _text(reference, "preamble"))
    if "suite" in reference:
        return _suite_plan(reference, plan)
    tests = _tests(reference, is_called)
    make_case: Callable[[Mapping[str, Any], Mapping[str, Any]], Case] = (
        _operations_case if "class" in reference else _call_case if "entry" in reference else _output_case
    )
    return replace(plan, cases=tuple(make_case(reference, test) for test in tests))


def _check_keys(record: Mapping[str, Any], known: Sequence[str]) -> None:
    """A key that is nearly one of ours is a slip; any other is somebody else's and passed over."""
    for key in record:
        near = [] if key in known else difflib.get_close_matches(str(key), known, n=1, cutoff=0.85)
        if near:
            raise _Fault(f"the key {near[0]!r} to be spelt so, not {key!r}")


def _languages(reference: Mapping[str, Any], is_called: bool) -> tuple[str, ...]:
    named = reference.get("languages") or [reference.get("language") or "python"]
    possible = [name for name in FENCES if name in LANGUAGES]
    if is_called:
        possible = [name for name in possible if name in _CALLABLE_LANGUAGES]
    if not _is_list(named) or not all(name in possible for name in named):
        raise _Fault(f"its 'language' to be one of {', '.join(possible)}")
    return tuple(named)


def _text(reference: Mapping[str, Any], key: str) -> str:
    value = reference.get(key) or ""
    if not isinstance(value, str):
        raise _Fault(f"a string as {key!r}")
    return value


def _tests(reference: Mapping[str, Any], is_called: bool) -> Sequence[Mapping[str, Any]]:
    tests = reference.get("tests")
    if not _is_list(tests) or not tests or not all(isinstance(test, Mapping) for test in tests):
        raise _Fault("a non-empty list 'tests' of objects")
    for test in tests:
        _check_keys(test, _TEST_KEYS)
    return tests


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


# --- kinds of tests --------------------------------------------------------------------------------------------


def _output_case(reference: Mapping[str, Any], test: Mapping[str, Any]) -> OutputCase:
    checker = _checker(reference)
    if "stdin" not in test or ("stdout" not in test and checker is None):
        raise _Fault("a non-empty list 'tests' of objects with stdin and stdout")
    stdin, stdout = test["stdin"], test.get("stdout", "" if checker else None)
    if not isinstance(stdin, str) or not isinstance(stdout, str):
        raise _Fault("strings as the stdin and stdout of its 'tests'")
    mode, tolerance = _comparison(reference, test, OUTPUT_MODES)
    return OutputCase(stdin, stdout, mode, tolerance, checker, _limits(reference, test))


def _call_case(reference: Mapping[str, Any], test: Mapping[str, Any]) -> CallCase:
    entry = _entry(reference, "entry")
    after, raises, checker = test.get("args_after"), test.get("raises") or "", _checker(reference)
    if "args" not in test or not ("returns" in test or raises or after is not None or checker):
        raise _Fault("a non-empty list 'tests' of objects with args and returns (or raises, or args_after)")
    arguments, keywords, returns, after = (
        _value(reference, value) for value in (test["args"], test.get("kwargs") or {}, test.get("returns"), after)
    )
    if not _is_list(arguments):
        raise _Fault("a list as the args of each of its 'tests'")
    if not isinstance(keywords, Mapping) or not all(isinstance(key, str) for key in keywords):
        raise _Fault("an object as the kwargs of its 'tests'")
    if not isinstance(raises, str) or (after is not None and not _is_list(after)):
        raise _Fault("the name of an exception as 'raises' and a list as 'args_after' of its 'tests'")
    case = CallCase(call_of(entry, arguments, keywords), returns, raises=raises, checker=checker)
    if after is not None:
        call = call_of(entry, arguments, keywords, wants="arguments")
        case = replace(case, call=call, returns=(returns, list(after)), only_arguments="returns" not in test)
    return _compared(reference, test, case)


def _operations_case(reference: Mapping[str, Any], test: Mapping[str, Any]) -> CallCase:
    """An object that is made and then used; the result of every step counts, None that of making it."""
    name, operations = _entry(reference, "class"), _value(reference, test.get("operations"))
    returns = _value(reference, test.get("returns"))
    if not _is_list(operations) or not operations or not all(map(_is_operation, operations)):
        raise _Fault("as 'operations' of its 'tests' lists of [name, args]")
    if not _is_list(returns) or len(returns) != len(operations) or operations[0][0] != name:
        raise _Fault("as 'returns' of its 'tests' one result per operation, the first of which makes the object")
    call = Call(tuple(Step(method, tuple(arguments)) for method, arguments in operations), wants="all")
    return _compared(reference, test, CallCase(call, list(returns)))


def _is_operation(operation: Any) -> bool:
    return _is_list(operation) and len(operation) == 2 and isinstance(operation[0], str) and _is_list(operation[1])


def _compared(reference: Mapping[str, Any], test: Mapping[str, Any], case: CallCase) -> CallCase:
    try:
        encode(case.returns)
    except Refused as fault:
        raise _Fault(f"plain data as the returns of its 'tests' ({fault})") from None
    mode, tolerance = _comparison(reference, test, VALUE_MODES)
    return replace(case, mode=mode, tolerance=tolerance, limits=_limits(reference, test))


def _suite_plan(reference: Mapping[str, Any], plan: TestPlan) -> TestPlan:
    """A suite as calls that are judged one by one or, where it is too rich for that, run as it is."""
    is_class = "class" in reference
    entry, suite = _entry(reference, "class" if is_class else "entry"), _text(reference, "suite")
    limits = _limits(reference, {})
    try:
        if is_class:
            raise UntranslatableSuite("objects are used over several statements")
        return replace(plan, cases=translate(suite, entry, limits))
    except UntranslatableSuite:
        replay = Replay(suite, entry, is_class=is_class, setup=_text(reference, "setup"), limits=limits)
        if replay.fault:
            raise _Fault(f"a suite that can be run apart from the solution: {replay.fault}") from None
        return replace(plan, replay=replay)


# --- single keys -----------------------------------------------------------------------------------------------


def _entry(reference: Mapping[str, Any], key: str) -> str:
    entry = reference.get(key)
    parts = entry.split(".") if isinstance(entry, str) else []
    if not 1 <= len(parts) <= (2 if key == "entry" else 1) or not all(part.isidentifier() for part in parts):
        raise _Fault(f"the name of a {'function' if key == 'entry' else 'class'} as {key!r}")
    return str(entry)


def _value(reference: Mapping[str, Any], value: Any) -> Any:
    """The value itself or, with values "python", what its text means: so tuples, sets and the like can be written."""
    kind = reference.get("values") or "json"
    if kind not in ("json", "python"):
        raise _Fault('its \'values\' to be "json" or "python"')
    if kind == "json" or not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _Fault(f"literals of Python in its 'tests', not {value[:60]!r}") from None


def _comparison(
    reference: Mapping[str, Any], test: Mapping[str, Any], modes: Sequence[str]
) -> tuple[str, Tolerance | None]:
    mode = test.get("compare") or reference.get("compare") or modes[0]
    if mode not in modes:
        raise _Fault(f"its 'compare' to be one of {', '.join(modes)}")
    tolerance = test.get("tolerance") or reference.get("tolerance")
    if tolerance is None:
        return mode, None
    if not isinstance(tolerance, Mapping):
        tolerance = {"absolute": tolerance, "relative": tolerance}
    absolute, relative = (tolerance.get(key) or 0.0 for key in ("absolute", "relative"))
    if not all(_is_number(value) for value in (absolute, relative)):
        raise _Fault("as 'tolerance' a number or an object with absolute and relative")
    return mode, Tolerance(absolute, relative)


def _limits(reference: Mapping[str, Any], test: Mapping[str, Any]) -> CaseLimits:
    seconds, memory_mb = (test.get(key) or reference.get(key) or 0 for key in ("seconds", "memory_mb"))
    if not _is_number(seconds) or seconds > MAX_SECONDS:
        raise _Fault(f"as 'seconds' a number up to {MAX_SECONDS:.0f}")
    if not _is_number(memory_mb) or memory_mb > MAX_MEMORY_MB or 0 < memory_mb < 16:
        raise _Fault(f"as 'memory_mb' a number from 16 to {MAX_MEMORY_MB}")
    return CaseLimits(float(seconds), int(memory_mb))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _checker(reference: Mapping[str, Any]) -> Checker | None:
    source = _text(reference, "checker")
    if not source:
        return None
    checker = Checker(source)
    if checker.fault:
        raise _Fault(checker.fault)
    return checker
