"""An author's checker, for tasks with several right outputs.

    def check(stdin, output, expected): return sorted(output.split()) == sorted(expected.split())

It is Python, with the three values as data: what the test gave (its stdin, or the list of a call's arguments), what
the program printed or returned, and what the author has to compare it with. It runs in a job of its own, where the
model's program is not. A checker that fails says nothing about the program: the verdict is SYSTEM_ERROR.
"""

from __future__ import annotations

import ast
import functools
import secrets
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
        nonce = secrets.token_hex(8)
        stdin = ascii((nonce, self.source.encode("utf-8", "surrogatepass"), given, output, expected))

        def judge(execution: Execution) -> Outcome:
            failed = failure(execution)
            if failed:
                return Outcome(
                    Verdict.SYSTEM_ERROR, short(f"the task's checker failed: {failed.note or failed.verdict}")
                )
            if execution.stdout == f"{nonce} yes\n".encode():
                return Outcome(Verdict.CORRECT)
            if execution.stdout == f"{nonce} no\n".encode():
                return Outcome(Verdict.WRONG, short(f"the checker refuses {output!r}"))
            return Outcome(Verdict.SYSTEM_ERROR, "the task's checker failed: it ended without a verdict")

        return Job(Program(_harness(), stdin=stdin), judge)


@functools.cache
def _harness() -> str:
    return program_text("check_one_output")
