"""Runs inside the sandbox and makes the statements of a test suite, with a stand-in for the solution.

The solution is not in this process. The stand-in looks results up in a table of calls made before; a call that is not
in it is told, and made elsewhere before the suite is run again (rewards.code_replay). It reads the repr of (nonce,
setup, suite, name, is_class, table) from standard input, the suite being one whose statements report. Lines:

    NONCE call STEPS            a call that is not in the table, encoded
    NONCE refused TEXT          a call that cannot be made elsewhere
    NONCE N passed | open       a statement that held, or needs a result first
    NONCE N failed [KIND, TEXT] a statement that raised
    NONCE end null              the suite's last statement is done
"""

from __future__ import annotations

import posix
import sys
from typing import Any

from rewards.code_encoding import Refused, encode
from rewards.code_harness import literal, make_teller


class OpenCall(BaseException):
    """The result of a call is not known yet."""


class FailedCall(BaseException):
    """A call that gave nothing to go on with; its argument is the verdict."""


class Calls:
    """Answers calls out of the table."""

    def __init__(self, table: Any, tell: Any) -> None:
        self.table, self.tell = table, tell
        self.told: set[str] = set()
        self.raised: list[BaseException] = []

    def answer(self, steps: Any) -> Any:
        """The result of the last of `steps`; changes its arguments as the call did. Raises what the call raised."""
        try:
            key = encode([(name, list(arguments), keywords) for name, arguments, keywords in steps])
        except Refused as error:
            self.tell(f"refused {encode(str(error))}")
            raise OpenCall from error
        if key not in self.table:
            if key not in self.told:
                self.told.add(key)
                self.tell(f"call {key}")
            raise OpenCall
        kind, *content = literal(self.table[key])  # made anew, so that nobody can change what another is given
        if kind == "failed":
            raise FailedCall(content[0])
        if kind == "raised":
            self.raised.append(make_exception(*content))
            raise self.raised[-1]
        result, after = content
        for given, left in zip(steps[-1][1], after, strict=True):
            change(given, left)
        return result


def make_exception(names: Any, text: Any) -> BaseException:
    """An exception that `except` clauses take for the one that was raised, by the names of its classes."""
    kinds = [getattr(sys.modules["builtins"], name, None) for name in names]
    kind = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)] or [Exception]
    try:
        return type(names[0], (kind[0],), {})(text) if kind[0].__name__ != names[0] else kind[0](text)
    except TypeError:
        return Exception(text)


def change(given: Any, left: Any) -> None:
    """What the call did to an argument, done to the suite's own."""
    if type(given) is not type(left) or given == left:
        return
    if isinstance(given, list):
        given[:] = left
    elif isinstance(given, dict | set):
        given.clear()
        given.update(left)


class StandInObject:
    """An object of the solution: what was done to it so far, to be done again elsewhere."""

    def __init__(self, calls: Any, steps: Any) -> None:
        self._calls, self._steps = calls, steps

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def method(*arguments: Any, **keywords: Any) -> Any:
            self._steps.append((name, arguments, keywords))
            return self._calls.answer(self._steps)

        return method


def run_suite() -> None:
    """See the head of this file."""
    nonce, setup, suite, name, is_class, table = literal(sys.stdin.read())
    tell = make_teller(nonce)
    calls = Calls(table, tell)

    def stand_in(*arguments: Any, **keywords: Any) -> Any:
        steps = [(name, arguments, keywords)]
        return StandInObject(calls, steps) if is_class else calls.answer(steps)

    def report(number: int, error: Any = None) -> None:
        if error is None:
            tell(f"{number} passed")
        elif isinstance(error, OpenCall):
            tell(f"{number} open")
        else:
            kind = "call" if isinstance(error, FailedCall) else "raised" if error in calls.raised else "failed"
            text = str(error) if kind == "call" else f"{type(error).__name__}: {error}"[:200]
            tell(f"{number} failed {encode([kind, text])}")

    sys.modules["suite"] = module = type(sys)("suite")
    names = vars(module)
    exec(compile(setup, "setup.py", "exec", dont_inherit=True), names)
    names[name] = stand_in
    names["suite_report"], names["suite_open_call"] = report, OpenCall
    exec(compile(suite, "suite.py", "exec", dont_inherit=True), names)
    tell("end null")
    posix._exit(0)
