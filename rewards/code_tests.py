"""Scores a program by running it in the sandbox against tests.

Two kinds of reference:

    {"tests": [{"stdin": "2 3", "stdout": "5"}, ...]}                           one run per test, output compared
    {"entry": "add", "tests": [{"args": [2, 3], "returns": 5}, ...]}            one run, the function called per test

What is protected: expected values never enter the sandbox, so a program can find out neither what is right nor make
a wrong result pass; the comparison is of types as well as values, and of bytes that are never evaluated; printing
does not count in a function test, whose results leave over a descriptor of their own and carry a nonce. What is not
yet: within one function test run a program can read the nonce and the arguments of later calls from its own process
(both are in its memory), and keep state between calls. All that this lets it do is to return a right result early.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sandbox
from cispo.errors import ConfigError, DataError
from cispo.types import Score, Verdict
from rewards.answer_format import answer_text
from rewards.code_harness import encode
from sandbox import Execution, Program, ProgramPool

CREDITS = ("all", "fraction")

_HARNESS = (Path(__file__).parent / "code_harness.py").read_text()
_NOTE_CHARACTERS = 120
_VERDICTS = {
    sandbox.Verdict.TLE: Verdict.TIME_LIMIT,
    sandbox.Verdict.MLE: Verdict.MEMORY_LIMIT,
    sandbox.Verdict.OLE: Verdict.OUTPUT_LIMIT,
    sandbox.Verdict.RE: Verdict.RUNTIME_ERROR,
    sandbox.Verdict.CE: Verdict.COMPILE_ERROR,
    sandbox.Verdict.SE: Verdict.SYSTEM_ERROR,
}


@dataclass(frozen=True)
class CodeTestsConfig:
    """How tests become a score.

    Attributes:
        credit: "all" pays 1 when every test passes and else 0; "fraction" pays the share of tests that pass.
        stop_early: with credit "all", run no further test after the first that fails.
        cache_size: scores that are remembered, because the programs of a group are often the same; 0 is none.
    """

    credit: str = "all"
    stop_early: bool = True
    cache_size: int = 4096

    def __post_init__(self) -> None:
        if self.credit not in CREDITS:
            raise ConfigError(f"rewards.code.credit must be one of {', '.join(CREDITS)}, got {self.credit!r}")
        if self.cache_size < 0:
            raise ConfigError(f"rewards.code.cache_size must not be negative, got {self.cache_size}")


@dataclass(frozen=True)
class _Outcome:
    """What the tests found, before it is paid."""

    verdict: Verdict
    num_passed: int
    note: str = ""


class CodeTests:
    """The verifier for programs. Thread-safe; `score` waits for the sandbox."""

    def __init__(self, pool: ProgramPool, config: CodeTestsConfig | None = None) -> None:
        self._pool = pool
        self._config = config or CodeTestsConfig()
        self._cache: OrderedDict[bytes, Future[Score]] = OrderedDict()
        self._lock = threading.Lock()

    def score(self, text: str, reference: Mapping[str, Any]) -> Score:
        """Run the program in `text` against the tests of `reference` (see the head of this file).

        The verdict is that of the first test that fails; SYSTEM_ERROR comes with the value NaN and is not remembered.
        Raises DataError when `reference` has no such form.
        """
        check_reference(reference)
        source = find_program(text)
        if not source.strip():
            return Score(0.0, False, {"tests": 0.0}, Verdict.UNPARSEABLE, "no program")
        key = hashlib.blake2b(repr((source, reference)).encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            known = self._cache.get(key)
            mine: Future[Score] = Future()
            if known is None:
                self._remember(key, mine)
        if known is not None:
            return known.result()  # waits when another thread is at it
        try:
            score = self._pay(self._run_tests(source, reference), len(reference["tests"]))
        except BaseException as error:
            self._forget(key, mine)
            mine.set_exception(error)
            raise
        if not score.usable:
            self._forget(key, mine)
        mine.set_result(score)
        return score

    def _remember(self, key: bytes, score: Future[Score]) -> None:
        self._cache[key] = score
        while len(self._cache) > self._config.cache_size:
            self._cache.popitem(last=False)

    def _forget(self, key: bytes, score: Future[Score]) -> None:
        with self._lock:
            if self._cache.get(key) is score:
                del self._cache[key]

    def _pay(self, outcome: _Outcome, num_tests: int) -> Score:
        if outcome.verdict is Verdict.SYSTEM_ERROR:
            return Score(float("nan"), False, {}, outcome.verdict, outcome.note)
        correct = outcome.verdict is Verdict.CORRECT
        value = outcome.num_passed / num_tests if self._config.credit == "fraction" else float(correct)
        return Score(value, correct, {"tests": value}, outcome.verdict, outcome.note)

    def _run_tests(self, source: str, reference: Mapping[str, Any]) -> _Outcome:
        if "entry" in reference:
            return self._run_function_tests(source, reference["entry"], reference["tests"])
        return self._run_output_tests(source, reference["tests"])

    def _run_output_tests(self, source: str, tests: Sequence[Mapping[str, str]]) -> _Outcome:
        """One run per test. Stops at a system error, at a program that does not compile, and as configured."""
        failure: _Outcome | None = None
        num_passed = 0
        for number, test in enumerate(tests, start=1):
            execution = self._pool.run(Program(source, stdin=test["stdin"]))
            outcome = _judge_output(execution, test["stdout"], number)
            num_passed += outcome.num_passed
            if outcome.verdict is Verdict.SYSTEM_ERROR:
                return outcome
            if outcome.verdict is not Verdict.CORRECT:
                failure = failure or outcome
                if self._stops_early or outcome.verdict is Verdict.COMPILE_ERROR:
                    break
        return _Outcome(failure.verdict, num_passed, failure.note) if failure else _Outcome(Verdict.CORRECT, num_passed)

    @property
    def _stops_early(self) -> bool:
        return self._config.stop_early and self._config.credit == "all"

    def _run_function_tests(self, source: str, entry: str, tests: Sequence[Mapping[str, Any]]) -> _Outcome:
        """One run for all tests."""
        nonce = secrets.token_hex(16)
        calls = [repr(tuple(test["args"])) for test in tests]
        files = {"solution.py": source.encode("utf-8", "surrogatepass")}
        execution = self._pool.run(Program(_HARNESS, stdin=repr((nonce, entry, calls)), files=files))
        results = _read_results(execution.stdout, nonce)
        return _judge_results(execution, results, entry, [encode(test["returns"]) for test in tests])


def check_reference(reference: Any) -> None:
    """Raise DataError unless `reference` has one of the two forms at the head of this file."""
    fault = _reference_fault(reference)
    if fault:
        raise DataError(f"the reference of a code task needs {fault}, got {_short(repr(reference))}")


def _reference_fault(reference: Any) -> str:
    """What the reference lacks; "" if nothing."""
    if not isinstance(reference, Mapping):
        return "to be an object with 'tests'"
    keys = ("args", "returns") if "entry" in reference else ("stdin", "stdout")
    tests = reference.get("tests")
    if (
        not _is_list(tests)
        or not tests
        or not all(isinstance(test, Mapping) and set(keys) <= set(test) for test in tests)
    ):
        return f"a non-empty list 'tests' of objects with {' and '.join(keys)}"
    if "entry" not in reference:
        texts = all(isinstance(test[key], str) for test in tests for key in keys)
        return "" if texts else "strings as the stdin and stdout of its 'tests'"
    if not isinstance(reference["entry"], str) or not reference["entry"].isidentifier():
        return "the name of a function as 'entry'"
    return "" if all(_is_list(test["args"]) for test in tests) else "a list as the args of each of its 'tests'"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def find_program(text: str) -> str:
    """The program in a model's answer: its last complete ```python block, or all of it when there is none.

    The answer is what comes after the think block: a draft inside it does not count, nor does unfinished thinking.
    """
    answer = answer_text(text) or ""
    block: list[str] | None = None
    program: str | None = None
    for line in answer.splitlines(keepends=True):
        fence = line.strip().lower()
        if block is None:
            block = [] if fence in ("```python", "```python3", "```py") else None
        elif fence == "```":
            program, block = "".join(block), None
        else:
            block.append(line)
    return answer if program is None else program


def same_output(printed: bytes, expected: str) -> bool:
    """Line by line, ignoring white space at the ends of lines and empty lines at the end."""
    return _lines(printed) == _lines(expected.encode("utf-8", "surrogatepass"))


def _lines(output: bytes) -> list[bytes]:
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


def _judge_output(execution: Execution, expected: str, number: int) -> _Outcome:
    if execution.verdict is not sandbox.Verdict.OK:
        return _Outcome(_VERDICTS[execution.verdict], 0, f"test {number}: {_last_line(execution.stderr)}")
    if same_output(execution.stdout, expected):
        return _Outcome(Verdict.CORRECT, 1)
    printed = execution.stdout[: 4 * _NOTE_CHARACTERS].decode(errors="replace").strip()
    return _Outcome(Verdict.WRONG, 0, _short(f"test {number}: expected {expected.strip()!r}, got {printed!r}"))


def _read_results(stdout: bytes, nonce: str) -> dict[str, str]:
    """What the harness told, by number of the call; the first line for each counts."""
    results: dict[str, str] = {}
    for line in stdout.decode("ascii", errors="replace").split("\n"):
        sign, _, rest = line.partition(" ")
        number, _, what = rest.partition(" ")
        if sign == nonce:
            results.setdefault(number, what)
    return results


def _judge_results(execution: Execution, results: Mapping[str, str], entry: str, expected: Sequence[str]) -> _Outcome:
    wanted = {str(number): f"= {value}" for number, value in enumerate(expected)}
    num_passed = sum(results.get(number) == value for number, value in wanted.items())
    if results.get("-") == "compile_error":
        return _Outcome(Verdict.COMPILE_ERROR, 0, _last_line(execution.stderr))
    if results.get("-") == "no_entry":
        return _Outcome(Verdict.RUNTIME_ERROR, 0, f"no function named {entry}")
    if execution.verdict is not sandbox.Verdict.OK:
        return _Outcome(_VERDICTS[execution.verdict], num_passed, _last_line(execution.stderr))
    for number, value in wanted.items():
        got = results.get(number, "! the program ended before this call returned")
        if got != value:
            verdict = Verdict.WRONG if got.startswith("= ") else Verdict.RUNTIME_ERROR
            return _Outcome(verdict, num_passed, _short(f"test {int(number) + 1}: expected {value[2:]}, got {got[2:]}"))
    return _Outcome(Verdict.CORRECT, num_passed)


def _last_line(stderr: bytes) -> str:
    lines = stderr[-4096:].decode(errors="replace").strip().splitlines()
    return _short(lines[-1]) if lines else ""


def _short(note: str) -> str:
    return note if len(note) <= _NOTE_CHARACTERS else note[: _NOTE_CHARACTERS - 3] + "..."
