"""An author's checker, for tasks with several right outputs.

    def check(stdin, output, expected): return sorted(output.split()) == sorted(expected.split())

It is Python, with the three values as data: what the test gave (its stdin, or the list of a call's arguments), what
the program printed or returned, and what the author has to compare it with. It runs in a job of its own, where the
model's program is not. Where it fails it is asked about the expected output, too. If it fails there as well, that says
nothing about the program: SYSTEM_ERROR. If not, the output was what it could not read, and is wrong: else a program
could have its sample masked by printing nonsense.
"""

from __future__ import annotations

import ast
import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cispo.types import Verdict
from rewards.code_inside import program_text
from rewards.code_jobs import Job, Outcome, failure, short
from sandbox import Execution, Program


@dataclass(frozen=True)
class Checker:
    """The source of a module with a function `check(stdin, output, expected) -> bool`."""

    source: str

    @property
    def fault(self) -> str:
        """Why it cannot be used; "" if it can."""
        try:
            tree = ast.parse(self.source)
        except (SyntaxError, ValueError, RecursionError) as error:
            return f"a checker that compiles ({error})"
        if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
            return ""
        return "a checker with a function check(stdin, output, expected)"

    def job(self, given: Any, output: Any, expected: Any) -> Job:
        """The job that finds out whether `output` is right."""

        def judge(said: bool | str) -> Outcome | Job:
            if isinstance(said, str):
                return self._blamed(said, given, output, expected)
            if said:
                return Outcome(Verdict.CORRECT)
            return Outcome(Verdict.WRONG, short(f"the checker refuses {output!r}"))

        return self._asked(given, output, expected, judge)

    def _blamed(self, why: str, given: Any, output: Any, expected: Any) -> Job:
        """Whose fault it is that the checker failed: the output's, if what is expected gets a verdict."""

        def judge(said: bool | str) -> Outcome:
            if isinstance(said, str):
                return Outcome(Verdict.SYSTEM_ERROR, short(f"the task's checker failed: {why}"))
            return Outcome(Verdict.WRONG, short(f"the checker fails on {output!r}: {why}"))

        return self._asked(given, expected, expected, judge)

    def _asked(self, given: Any, output: Any, expected: Any, judge: Callable[[bool | str], Outcome | Job]) -> Job:
        """A run of the checker; `judge` gets its verdict, or why it has none."""
        nonce = secrets.token_hex(8)
        stdin = ascii((nonce, self.source.encode("utf-8", "surrogatepass"), given, output, expected))
        verdicts = {f"{nonce} yes\n".encode(): True, f"{nonce} no\n".encode(): False}

        def read(execution: Execution) -> Outcome | Job:
            failed = failure(execution)
            if failed:
                return judge(failed.note or str(failed.verdict))
            return judge(verdicts.get(execution.stdout, "it ended without a verdict"))

        return Job(Program(_harness(), stdin=stdin), read)


@functools.cache
def _harness() -> str:
    return program_text("check_one_output")
