"""Scores a diff by applying it to a repository and running the repository's tests in the sandbox.

    {"repository": {"pkg/sets.py": "..."} or "path/of/folder" or "path/of/archive.tar",
     "tests": {"tests/test_sets.py": "..."},
     "fail_to_pass": ["tests/test_sets.py::UnionTest::test_touching"], "pass_to_pass": [...]}

The answer is the last complete ```diff block after the think block. It is applied outside, to files in memory
(rewards.repository_patch), and may not touch tests or what configures them. The sandbox then gets the patched tree
without its tests, and the tests as they were, over a channel that the project's process never holds. Every named test
must report that it passed; what is missing has failed. Exit codes and printed text count for nothing.

What protects the report is described in rewards.repository_runner and rewards.repository_proxies: tests and project run
in two processes, and what a test compares is plain data in its own. What this does not stop is a patch that answers
what the tests ask instead of mending the fault; the hidden tests of a task must ask enough.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import sandbox
from cispo.errors import ConfigError, DataError
from cispo.types import Score, Verdict
from rewards.answer_format import answer_text
from rewards.repository_files import is_test, path_fault, read_snapshot
from rewards.repository_patch import PatchError, apply_diff, find_diff
from sandbox import Execution, Limits, Program, ProgramPool

CREDITS = ("all", "fraction")
PROJECT = "project"
"""Where the patched tree lies in the sandbox, as rewards.repository_runner has it."""

_HERE = Path(__file__).parent
_RUNNER = (_HERE / "repository_runner.py").read_text()
_PARTS = {
    f"rewards/{name}.py": (_HERE / f"{name}.py").read_bytes()
    for name in ("repository_wire", "repository_server", "repository_proxies", "repository_suite")
}
_LIMITS = ("cpu_seconds", "wall_seconds", "memory_bytes")
_NOTE_CHARACTERS = 160
_VERDICTS = {
    sandbox.Verdict.TLE: Verdict.TIME_LIMIT,
    sandbox.Verdict.MLE: Verdict.MEMORY_LIMIT,
    sandbox.Verdict.OLE: Verdict.OUTPUT_LIMIT,
}


@dataclass(frozen=True)
class RepositoryTestsConfig:
    """How the tests of a repository become a score.

    Attributes:
        credit: "all" pays 1 when every named test passes and else 0; "fraction" pays the share of fail_to_pass tests
            that pass, and 0 when one of pass_to_pass fails.
        root: the folder that the paths of repositories are relative to; "" is the working directory.
    """

    credit: str = "all"
    root: str = ""

    def __post_init__(self) -> None:
        if self.credit not in CREDITS:
            raise ConfigError(f"rewards.repository.credit must be one of {', '.join(CREDITS)}, got {self.credit!r}")


@dataclass(frozen=True)
class TestReport:
    """What became of each named test.

    Attributes:
        passed: names of the tests that reported that they passed.
        failed: why each other test that was run did not, in the order of running.
        system_error: why the report says nothing about the patch; "" if it does.
    """

    __test__ = False

    passed: tuple[str, ...] = ()
    failed: Mapping[str, tuple[Verdict, str]] = field(default_factory=dict)
    system_error: str = ""


class RepositoryTests:
    """The verifier for patches. Thread-safe; `score` waits for the sandbox."""

    def __init__(self, pool: ProgramPool, config: RepositoryTestsConfig | None = None) -> None:
        self._pool = pool
        self._config = config or RepositoryTestsConfig()

    def score(self, text: str, reference: Mapping[str, Any]) -> Score:
        """Apply the diff in `text` and run the tests of `reference` (see the head of this file).

        The verdict is UNPARSEABLE for a diff that is missing, broken or refused, else that of the first test that
        fails; SYSTEM_ERROR comes with the value NaN. Raises DataError when `reference` has no such form.
        """
        check_reference(reference)
        diff = find_diff(answer_text(text) or "")
        if not diff:
            return Score(0.0, False, {"tests": 0.0}, Verdict.UNPARSEABLE, "no complete ```diff block")
        try:
            report = self.report(diff, reference, stop_early=self._config.credit == "all")
        except PatchError as error:
            return Score(0.0, False, {"tests": 0.0}, Verdict.UNPARSEABLE, str(error)[:_NOTE_CHARACTERS])
        return self._pay(report, reference)

    def report(self, diff: str, reference: Mapping[str, Any], *, stop_early: bool = False) -> TestReport:
        """Run the named tests on the repository after `diff` ("" leaves it as it is), up to the first that fails.

        Raises PatchError when the diff cannot or may not be applied, DataError for the reference.
        """
        check_reference(reference)
        repository = read_snapshot(reference["repository"], Path(self._config.root) if self._config.root else None)
        patched = apply_diff(repository, diff) if diff else repository
        names = [*reference["fail_to_pass"], *reference["pass_to_pass"]]
        tests = _tests(repository, reference, names)
        roots = reference.get("roots") or _roots(patched)
        modules = _modules(repository, patched, tests, roots)
        passed: list[str] = []
        failed: dict[str, tuple[Verdict, str]] = {}
        while names:
            # A test that ends the job, say by taking all of its time, takes no other test down with it.
            job = {"tests": tests, "names": names, "roots": roots, "modules": modules, "stop_early": stop_early}
            result = self._run(patched, job, reference)
            passed += result.passed
            failed |= result.failed
            if result.system_error or stop_early and failed:
                return TestReport(tuple(passed), failed, result.system_error)
            names = [name for name in names if name not in failed and name not in passed]
        return TestReport(tuple(passed), failed)

    def _run(self, tree: Mapping[str, bytes], job: Mapping[str, Any], reference: Mapping[str, Any]) -> TestReport:
        """One job. At least one of the names is among those that passed or failed, or it is a system error."""
        nonce = secrets.token_hex(16)
        files = {name: content for name, content in tree.items() if not is_test(name) and name not in job["tests"]}
        in_box = {f"{PROJECT}/{name}": content for name, content in files.items()}
        program = Program(_RUNNER, stdin=json.dumps({"nonce": nonce, **job}), files=_PARTS | in_box)
        execution = self._pool.run(program, _limits(reference, self._pool.limits))
        return _read_report(execution, nonce, job["names"])

    def _pay(self, report: TestReport, reference: Mapping[str, Any]) -> Score:
        if report.system_error:
            return Score(float("nan"), False, {}, Verdict.SYSTEM_ERROR, report.system_error)
        if not report.failed:
            return Score(1.0, True, {"tests": 1.0}, Verdict.CORRECT)
        name, (verdict, why) = next(iter(report.failed.items()))
        value = 0.0
        if self._config.credit == "fraction" and not report.failed.keys() & set(reference["pass_to_pass"]):
            value = len(set(report.passed) & set(reference["fail_to_pass"])) / len(reference["fail_to_pass"])
        return Score(value, False, {"tests": value}, verdict, f"{name}: {why}"[:_NOTE_CHARACTERS])


def check_reference(reference: Any) -> None:
    """Raise DataError unless `reference` has the form at the head of this file."""
    fault = _reference_fault(reference)
    if fault:
        raise DataError(f"the reference of a repository task needs {fault}")


def _reference_fault(reference: Any) -> str:
    """What the reference lacks; "" if nothing."""
    if not isinstance(reference, Mapping):
        return f"to be an object, not {type(reference).__name__}"
    if not isinstance(reference.get("repository"), Mapping | str) or not reference["repository"]:
        return "a 'repository': an object of files, or the path of a folder or tar archive"
    for key in ("fail_to_pass", "pass_to_pass"):
        names = reference.get(key)
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and "::" in name for name in names):
            return f"a list {key!r} of names like tests/test_a.py::TestA::test_b"
    names = [*reference["fail_to_pass"], *reference["pass_to_pass"]]
    if not reference["fail_to_pass"] or len(set(names)) < len(names):
        return "at least one test in 'fail_to_pass', and each name once"
    tests = reference.get("tests", {})
    if not isinstance(tests, Mapping) or not all(
        isinstance(path, str) and isinstance(text, str) and not path_fault(path) for path, text in tests.items()
    ):
        return "an object of texts by path as its 'tests'"
    return _options_fault(reference)


def _options_fault(reference: Mapping[str, Any]) -> str:
    roots, limits = reference.get("roots", []), reference.get("limits", {})
    if not isinstance(roots, list) or not all(
        isinstance(root, str) and (root == "." or not path_fault(root)) for root in roots
    ):
        return "a list of folders inside it as its 'roots'"
    if not isinstance(limits, Mapping) or not all(
        key in _LIMITS and type(value) in (int, float) and value > 0 for key, value in limits.items()
    ):
        return f"positive numbers for some of {', '.join(_LIMITS)} as its 'limits'"
    return ""


def _limits(reference: Mapping[str, Any], limits: Limits) -> Limits:
    own = reference.get("limits", {})
    return Limits(**{**vars(limits), **own})


def _tests(repository: Mapping[str, bytes], reference: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The test files: those of the reference, and of the repository as it was before the patch."""
    tests = {name: content.decode("utf-8", "replace") for name, content in repository.items() if is_test(name)}
    tests |= reference.get("tests", {})
    missing = sorted({name.partition("::")[0] for name in names} - set(tests))
    if missing:
        raise DataError(f"a repository task names tests in {', '.join(missing)}, which is not among its test files")
    return tests


def _roots(files: Mapping[str, bytes]) -> list[str]:
    """Where imports begin: the repository's own folder, and src if it has one."""
    return ["src", "."] if any(name.startswith("src/") and name.endswith(".py") for name in files) else ["."]


def _modules(
    repository: Mapping[str, bytes], patched: Mapping[str, bytes], tests: Mapping[str, str], roots: Sequence[str]
) -> list[str]:
    """The names that tests import from the project.

    Not among them are names of the standard library, whose modules a test means when it says `import math`, and new
    ones in the place of a folder of tests, whence a test takes its own.
    """
    folders = {".".join(folder.parts) for path in tests for folder in PurePosixPath(path).parents}
    taken = folders - _importable(repository, tests, roots)
    found = _importable(patched, tests, roots)
    return sorted(name for name in found - taken if name.partition(".")[0] not in sys.stdlib_module_names)


def _importable(files: Mapping[str, bytes], tests: Mapping[str, str], roots: Sequence[str]) -> set[str]:
    """The names under which the files can be imported, tests left out."""
    modules: set[str] = set()
    for name in files:
        path = PurePosixPath(name)
        root = next((root for root in roots if path.is_relative_to(root)), None)
        if root is None or path.suffix != ".py" or is_test(name) or name in tests:
            continue
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        modules |= {".".join(parts[:size]) for size in range(1, len(parts) + 1)}
    return modules


def _read_report(execution: Execution, nonce: str, names: Sequence[str]) -> TestReport:
    """Believes only lines with the nonce; the first word on each test counts."""
    if execution.verdict is sandbox.Verdict.SE:
        return TestReport(system_error=execution.stderr[-200:].decode(errors="replace"))
    passed: list[str] = []
    failed: dict[str, tuple[Verdict, str]] = {}
    is_over = False
    for line in execution.stdout.decode("ascii", errors="replace").splitlines():
        sign, _, told = line.partition(" ")
        word, _, rest = told.partition(" ")
        number, _, message = rest.partition(" ")
        if sign != nonce:
            continue
        if word == "exposed":
            return TestReport(system_error="this sandbox does not keep tests and project apart (PR_SET_DUMPABLE)")
        is_over |= word == "end"
        if word == "passed":
            passed.append(names[int(number)])
        elif word in ("failed", "raised"):
            failed[names[int(number)]] = (_verdict(word, message), message.strip("'\""))
    if not is_over:
        culprit = next(name for name in names if name not in passed and name not in failed)
        verdict = _VERDICTS.get(execution.verdict, Verdict.RUNTIME_ERROR)
        failed[culprit] = (verdict, f"the tests ended with {execution.verdict}")
    return TestReport(tuple(passed), failed)


def _verdict(word: str, message: str) -> Verdict:
    if word == "failed":
        return Verdict.WRONG
    is_syntax = message.strip("'\"").startswith(("SyntaxError", "IndentationError", "TabError"))
    return Verdict.COMPILE_ERROR if is_syntax else Verdict.RUNTIME_ERROR
