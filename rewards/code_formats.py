"""Rows of well-known collections of programming tasks, told by their keys, in the form of rewards.code_reference.

| collection | keys |
| APPS, TACO | inputs, outputs, and fn_name where a function is asked for |
| CodeContests | public_tests, private_tests, generated_tests, each {"input": [...], "output": [...]} |
| LiveCodeBench | public_test_cases, private_test_cases, and metadata with func_name |
| HumanEval, HumanEval+ | test, entry_point, prompt |
| MBPP, MBPP+ | test_list, test_setup_code or test_imports |

Everything else of a row is passed over, save that our own keys (compare, tolerance, seconds, ...) keep their meaning.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cispo.errors import DataError

_OPTIONS = ("language", "languages", "preamble", "compare", "tolerance", "seconds", "memory_mb", "checker")


def as_own_form(reference: Any) -> Any:
    """`reference` itself or, if its keys are those of a collection, in our own form.

    Raises DataError where it should be a collection's row and is not; the text goes on after "needs".
    """
    if not isinstance(reference, Mapping):
        return reference
    for key, convert in _COLLECTIONS.items():
        if reference.get(key) is not None:
            options = {name: reference[name] for name in _OPTIONS if reference.get(name) is not None}
            return convert(reference) | options
    return reference


def _apps(row: Mapping[str, Any]) -> dict[str, Any]:
    inputs, outputs = row.get("inputs"), row.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise DataError("as many outputs as inputs")
    if not row.get("fn_name"):
        pairs = zip(map(_joined, inputs), map(_joined, outputs), strict=True)
        return {"tests": [{"stdin": stdin, "stdout": stdout} for stdin, stdout in pairs]}
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        outputs = [output[0] for output in outputs]  # the collection wraps results in a list, but not everywhere
    pairs = zip(inputs, outputs, strict=True)
    tests = [{"args": arguments, "returns": result} for arguments, result in pairs]
    return {"entry": row["fn_name"], "tests": tests, "compare": "json"}


def _joined(lines: Any) -> Any:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else lines


def _code_contests(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = []
    for key in ("public_tests", "private_tests", "generated_tests"):
        part = row.get(key) or {"input": [], "output": []}
        try:
            tests += [{"stdin": a, "stdout": b} for a, b in zip(part["input"], part["output"], strict=True)]
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"as many outputs as inputs in {key!r}") from error
    return {"tests": tests}


def _live_code_bench(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = [test for key in ("public_test_cases", "private_test_cases") for test in _parsed(row.get(key) or [], key)]
    if not all(isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in tests):
        raise DataError("objects with input and output as its test cases")
    if not any(test.get("testtype") == "functional" for test in tests):
        return {"tests": [{"stdin": test["input"], "stdout": test["output"]} for test in tests]}
    name = _parsed(row.get("metadata") or {}, "metadata").get("func_name")
    calls = [
        {
            "args": [_parsed(line, "input") for line in str(test["input"]).splitlines() if line.strip()],
            "returns": _parsed(test["output"], "output"),
        }
        for test in tests
    ]
    return {"entry": name, "tests": calls, "compare": "json"}


def _parsed(value: Any, key: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        # The collection also packs its private tests with pickle, which would run whatever a stranger put there.
        raise DataError(f"JSON in {key!r} (unpack what is pickled first)") from None


def _human_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt = row.get("prompt") or ""
    return {"entry": row["entry_point"], "suite": row.get("test"), "preamble": prompt, "setup": prompt}


def _mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    asserts, imports = row["test_list"], row.get("test_imports") or []
    if not isinstance(asserts, list) or not all(isinstance(line, str) for line in [*asserts, *imports]):
        raise DataError("a list of lines as 'test_list'")
    suite = "\n".join([*imports, *asserts])
    setup = row.get("test_setup_code") or ""
    return {"entry": row.get("entry_point") or _called_first(suite), "suite": suite, "preamble": setup, "setup": setup}


def _called_first(suite: str) -> str:
    """The function that the first assert calls and that is none of the language's own."""
    try:
        statements: Sequence[ast.stmt] = ast.parse(suite).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"asserts that compile ({error})") from error
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id):
                return node.func.id
    raise DataError("asserts that call a function")


_COLLECTIONS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "inputs": _apps,
    "public_tests": _code_contests,
    "public_test_cases": _live_code_bench,
    "test_list": _mbpp,  # before the next, because some versions have both keys
    "entry_point": _human_eval,
}
