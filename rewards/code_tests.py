"""Scores a program by running it in the sandbox against tests. The first file to read of rewards/code_*.py.

    reference   code_reference.py (forms), code_formats.py (rows of known collections)
    tests       code_cases.py (output, calls), code_suite.py (asserts as calls), code_replay.py (suites as they are),
                code_checker.py (an author's own judge)
    runs        code_jobs.py (many at a time, no more than needed), code_calls.py (one call and its answer)
    inside      code_harness.py, code_suite_harness.py, code_encoding.py, cut out by code_inside.py
    comparing   code_compare.py, code_expressions.py

What is protected: expected values, checkers, the number of tests and the tests to come never enter the process that
runs the program, which is a new one with an empty disk for every test. Only bytes leave; they are parsed here and never
evaluated, and compared by type as well as value. So a program can do no better than to tell, for one input, what it
holds to be the right output: it can compute it, or guess.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cispo.errors import ConfigError
from cispo.types import Score, Verdict
from rewards.code_calls import Setting
from rewards.code_jobs import Job, Outcome, run_jobs, short
from rewards.code_program import Solution, find_solution, tricks
from rewards.code_reference import TestPlan, check_reference, read_reference
from sandbox import ProgramPool

__all__ = ["CREDITS", "CodeTests", "CodeTestsConfig", "check_reference"]

CREDITS = ("all", "fraction")

_LETTERS = {
    Verdict.CORRECT: "A",
    Verdict.WRONG: "W",
    Verdict.TIME_LIMIT: "T",
    Verdict.MEMORY_LIMIT: "M",
    Verdict.OUTPUT_LIMIT: "O",
    Verdict.RUNTIME_ERROR: "R",
    Verdict.COMPILE_ERROR: "C",
    Verdict.SYSTEM_ERROR: "S",
}
_T = TypeVar("_T")
_SHOWN_TESTS = 40
_NEVER_GOES_ON = (Verdict.SYSTEM_ERROR, Verdict.COMPILE_ERROR)


@dataclass(frozen=True)
class CodeTestsConfig:
    """How tests become a score.

    Attributes:
        credit: "all" pays 1 when every test passes and else 0; "fraction" pays the share of tests that pass.
        stop_early: with credit "all", run no further test after the first that fails, and try first what failed for
            other answers to the same prompt.
        cache_size: scores that are remembered, because the programs of a group are often the same; 0 is none.
        num_concurrent: tests of one program that are in the sandbox at the same time.
        retries: how often a test is run again after a fault of the sandbox, before its score is masked.
    """

    credit: str = "all"
    stop_early: bool = True
    cache_size: int = 4096
    num_concurrent: int = 4
    retries: int = 1

    def __post_init__(self) -> None:
        if self.credit not in CREDITS:
            raise ConfigError(f"rewards.code.credit must be one of {', '.join(CREDITS)}, got {self.credit!r}")
        for name, least in (("cache_size", 0), ("num_concurrent", 1), ("retries", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"rewards.code.{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class _Task:
    """The tests of one prompt, and how often each failed so far."""

    plan: TestPlan
    num_failures: Counter[int]


class CodeTests:
    """The verifier for programs. Thread-safe; `score` waits for the sandbox."""

    def __init__(self, pool: ProgramPool, config: CodeTestsConfig | None = None) -> None:
        self._pool = pool
        self._config = config or CodeTestsConfig()
        self._scores: _Remembered[Future[Score]] = _Remembered(self._config.cache_size)
        self._tasks: _Remembered[_Task] = _Remembered(max(self._config.cache_size, 1))
        self._lock = threading.Lock()

    def score(self, text: str, reference: Mapping[str, Any]) -> Score:
        """Run the program in `text` against the tests of `reference` (rewards.code_reference).

        The verdict is that of the first test that fails. The note says why, and with a letter for each test how far
        the program came: A accepted, W wrong, T time, M memory, O output, R runtime error, C compile error, S system
        error, and a dot where none was needed. `parts` has "tests", the value, and "tricks", the number of things in
        the source that look like an attempt to deceive. SYSTEM_ERROR comes with the value NaN and is not remembered.

        Raises DataError when `reference` has no such form.
        """
        digest = _digest(reference)
        task = self._task(digest, reference)
        solution = find_solution(text, task.plan.languages)
        if not solution.source.strip():
            return Score(0.0, False, {"tests": 0.0, "tricks": 0.0}, Verdict.UNPARSEABLE, "no program")
        key = digest + _digest(solution)
        mine: Future[Score] = Future()
        with self._lock:
            known = self._scores.get(key)
            if known is None:
                self._scores.put(key, mine)
        if known is not None:
            return known.result()  # waits when another thread is at it
        try:
            score = self._pay(self._outcomes(solution, task), task.plan.num_tests, solution)
        except BaseException as error:
            self._forget(key, mine)
            mine.set_exception(error)
            raise
        if not score.usable:
            self._forget(key, mine)
        mine.set_result(score)
        return score

    def _task(self, digest: bytes, reference: Mapping[str, Any]) -> _Task:
        with self._lock:
            task = self._tasks.get(digest)
        if task is None:
            task = _Task(read_reference(reference), Counter())
            with self._lock:
                self._tasks.put(digest, task)
        return task

    def _forget(self, key: bytes, score: Future[Score]) -> None:
        with self._lock:
            self._scores.drop(key, score)

    # --- running -----------------------------------------------------------------------------------------------

    @property
    def _stops_early(self) -> bool:
        return self._config.stop_early and self._config.credit == "all"

    def _goes_on(self, outcome: Outcome) -> bool:
        return outcome.passed or not (self._stops_early or outcome.verdict in _NEVER_GOES_ON)

    def _run(self, jobs: Sequence[Job], goes_on: Callable[[Outcome], bool]) -> list[Outcome | None]:
        config = self._config
        return run_jobs(self._pool, jobs, goes_on=goes_on, width=config.num_concurrent, retries=config.retries)

    def _outcomes(self, solution: Solution, task: _Task) -> list[Outcome | None]:
        """What each test found, in the order of the reference."""
        plan, limits = task.plan, self._pool.limits
        setting = Setting(solution, plan.preamble)
        if plan.replay is not None:
            return plan.replay.run(setting, limits, self._run, stop_early=self._stops_early)
        order = self._order(task)
        found = self._run([plan.cases[number].job(setting, limits) for number in order], self._goes_on)
        outcomes = dict(zip(order, found, strict=True))
        with self._lock:
            task.num_failures.update(number for number, outcome in outcomes.items() if outcome and not outcome.passed)
        return [outcomes[number] for number in range(len(order))]

    def _order(self, task: _Task) -> list[int]:
        """Tests that failed for others come first: if one decides, it is most likely one of them."""
        numbers = range(len(task.plan.cases))
        if not self._stops_early:
            return list(numbers)
        with self._lock:
            return sorted(numbers, key=lambda number: -task.num_failures[number])

    # --- paying ------------------------------------------------------------------------------------------------

    def _pay(self, outcomes: Sequence[Outcome | None], num_tests: int, solution: Solution) -> Score:
        failures = [(number, found) for number, found in enumerate(outcomes, start=1) if found and not found.passed]
        real = [(number, found) for number, found in failures if found.verdict is not Verdict.SYSTEM_ERROR]
        # One test that truly failed decides when all must pass, whatever became of another.
        deciding = (real or failures) if self._config.credit == "all" else _system_errors_first(failures)
        note = _note(outcomes, deciding)
        num_passed = sum(found is not None and found.passed for found in outcomes)
        correct = not failures and num_passed >= num_tests
        verdict = Verdict.CORRECT if correct else deciding[0][1].verdict if deciding else Verdict.SYSTEM_ERROR
        if verdict is Verdict.SYSTEM_ERROR:
            return Score(float("nan"), False, {}, verdict, note)
        value = num_passed / num_tests if self._config.credit == "fraction" else float(correct)
        parts = {"tests": value, "tricks": float(len(tricks(solution.source)))}
        return Score(value, correct, parts, verdict, note)


def _system_errors_first(failures: Sequence[tuple[int, Outcome]]) -> list[tuple[int, Outcome]]:
    return sorted(failures, key=lambda failure: failure[1].verdict is not Verdict.SYSTEM_ERROR)


def _note(outcomes: Sequence[Outcome | None], failures: Sequence[tuple[int, Outcome]]) -> str:
    """Why the first of `failures` failed, and the verdicts of all tests."""
    letters = "".join(_LETTERS[found.verdict] if found else "." for found in outcomes[:_SHOWN_TESTS])
    letters += "" if len(outcomes) <= _SHOWN_TESTS else f"... of {len(outcomes)}"
    if not failures:
        return f"[{letters}]"
    number, outcome = failures[0]
    return f"{short(f'test {number}: {outcome.note}')} [{letters}]"


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass")).digest()


class _Remembered(Generic[_T]):
    """The latest `size` values by key. Not thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[bytes, _T] = OrderedDict()

    def get(self, key: bytes) -> _T | None:
        return self._values.get(key)

    def put(self, key: bytes, value: _T) -> None:
        self._values[key] = value
        while len(self._values) > self._size:
            self._values.popitem(last=False)

    def drop(self, key: bytes, value: _T) -> None:
        """Forget `value`, unless another took its place."""
        if self._values.get(key) is value:
            del self._values[key]

    def __len__(self) -> int:
        return len(self._values)
