"""Runs inside the sandbox: makes one call of the stranger's code and tells what came of it.

It reads the repr of (nonce, preamble, solution, steps, wants) from standard input. A step is (name, arguments,
keyword arguments): the first names a function or a class of the solution, those after it methods of what the first
returned. `wants` is what to tell: "last" result, "all" results (that of a constructor is None), or "arguments" for the
last result with the arguments as the call left them. One line leaves, over a descriptor made before the stranger's
first line ran:

    NONCE = ENCODED             it returned (rewards.code_encoding)
    NONCE ! [[NAMES], TEXT]     it raised an exception with these classes
    NONCE ~ TEXT                it returned something that is not plain data
    NONCE - compile TEXT        the solution does not compile
    NONCE - entry null          it has no such function

The same module holds `check_one_output`, which runs an author's checker: in a process of its own, where the stranger's
program is not. It reads the repr of (nonce, checker, given, output, expected) and tells yes or no.

This process is the stranger's as much as ours, and nothing here relies on it: one process makes one call, so there is
no other call to spy on and no result but its own to forge; what is right is never in here. What the program prints
goes nowhere. Given to the sandbox as text, together with `encode`.
"""

from __future__ import annotations

import posix
import sys
from typing import Any

from rewards.code_encoding import Refused, encode


def literal(text: str) -> Any:
    """The inverse of repr for plain data. `text` is ours, not the program's."""
    known = {"set": set, "frozenset": frozenset, "iter": iter}
    return eval(text, {"__builtins__": known, "nan": float("nan"), "inf": float("inf")})


def make_teller(nonce: str) -> Any:
    """A function that writes a line to where standard output led; what anybody prints from now on goes nowhere."""
    results, nowhere, process = posix.dup(1), posix.open("/dev/null", posix.O_RDWR), posix.getpid()
    posix.dup2(nowhere, 0)
    posix.dup2(nowhere, 1)

    def tell(what: str) -> None:
        line = memoryview(f"{nonce} {what}\n".encode())
        while line and posix.getpid() == process:  # a copy made by fork has nothing to say
            line = line[posix.write(results, line) :]

    return tell


class _NoEntry(Exception):
    """The solution has no such function."""


def _load(texts: Any) -> dict[str, Any]:
    """Run the preamble and the solution in a module that can be looked up, as dataclasses do."""
    sys.modules["solution"] = module = type(sys)("solution")
    for text in texts:
        if text:
            exec(compile(text, "solution.py", "exec", dont_inherit=True), vars(module))
    return vars(module)


def _find(names: dict[str, Any], name: str) -> Any:
    """A name of the solution, or a method of its class Solution, as the sites with that habit have it."""
    if name in names:
        return names[name]
    if hasattr(names.get("Solution"), name):
        return getattr(names["Solution"](), name)
    raise _NoEntry


def _make_call(names: dict[str, Any], steps: Any, wants: str) -> str:
    results = []
    for number, (name, arguments, keywords) in enumerate(steps):
        if number == 0:
            function = _find(names, name)
            first = result = function(*arguments, **keywords)
        else:
            result = getattr(first, name)(*arguments, **keywords)
        results.append(None if number == 0 and isinstance(function, type) else result)
    if wants == "all":
        return encode(results)
    return encode((result, list(arguments))) if wants == "arguments" else encode(result)


def _classes_and_text(error: BaseException) -> str:
    names = [str(kind.__name__) for kind in type(error).__mro__]
    try:
        text = str(error)[:200]
    except Exception:
        text = ""
    return encode([names, text])


def make_one_call() -> None:
    """See the head of this file."""
    nonce, preamble, solution, steps, wants = literal(sys.stdin.read())
    tell = make_teller(nonce)
    try:
        compile(solution, "solution.py", "exec", dont_inherit=True)
    except Exception as error:  # whatever the compiler makes of hostile text, it is the text's fault
        tell(f"- compile {encode(str(error)[:200])}")
        posix._exit(0)
    try:
        told = f"= {_make_call(_load((preamble, solution)), steps, wants)}"
    except MemoryError:
        raise  # the sandbox has a verdict for it
    except _NoEntry:
        told = "- entry null"
    except Refused as error:
        told = f"~ {encode(str(error))}"
    except BaseException as error:
        told = f"! {_classes_and_text(error)}"
    tell(told)
    posix._exit(0)


def check_one_output() -> None:
    """See the head of this file. Only True and False are verdicts; all else ends in a traceback."""
    nonce, checker, given, output, expected = literal(sys.stdin.read())
    tell = make_teller(nonce)
    sys.modules["checker"] = module = type(sys)("checker")
    exec(compile(checker, "checker.py", "exec", dont_inherit=True), vars(module))
    verdict = vars(module)["check"](given, output, expected)
    if verdict is not True and verdict is not False:
        raise TypeError(f"check must return True or False, got {verdict!r}")
    tell("yes" if verdict else "no")
    posix._exit(0)
