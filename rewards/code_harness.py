"""Runs inside the sandbox and calls the stranger's function. Given to the sandbox as text; outside only for `encode`.

Reads the repr of (nonce, entry, calls) from standard input, each call being the repr of its arguments, and the
program from solution.py. Each result leaves at once as one line, so that a call that never returns spoils only what
comes after it:

    NONCE NUMBER = ENCODED      the call returned
    NONCE NUMBER ! MESSAGE      the call raised
    NONCE - compile_error | no_entry

What the right results are never comes in here. What the program itself prints goes nowhere. Neither json nor
anything else is imported: that would cost more CPU than most programs.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # never true: no import may cost a run anything
    from collections.abc import Iterable
    from typing import Any


def encode(value: Any) -> str:
    """Text that differs whenever type or value do: 1, 1.0 and True are three things, a tuple is not a list.

    Zero has no sign, NaN is itself, the order of sets and dicts does not matter. Raises TypeError for anything but
    plain data. Subclasses are refused, because they can claim to equal everything.
    """
    kind = type(value)
    if value is None or kind is bool or kind is bytes:
        return repr(value)
    if kind is int:
        return str(value) if abs(value) < 1 << 64 else hex(value)  # str() refuses very large ones
    if kind is float:
        return repr(value + 0.0)
    if kind is str:
        return ascii(value)
    if kind is list or kind is tuple:
        return _enclose(kind.__name__, map(encode, value))
    if kind is set or kind is frozenset:
        return _enclose(kind.__name__, sorted(map(encode, value)))
    if kind is dict:
        return _enclose("dict", sorted(f"{encode(key)}: {encode(item)}" for key, item in value.items()))
    raise TypeError(f"a result must be plain data, got {kind.__name__}")


def _enclose(name: str, parts: Iterable[str]) -> str:
    return f"{name}({', '.join(parts)})"


def _literal(text: str) -> Any:
    """The inverse of repr for plain data. `text` is ours, not the program's."""
    return eval(text, {"__builtins__": {"set": set, "frozenset": frozenset}, "nan": float("nan"), "inf": float("inf")})


def _one_call(function: Any, arguments: str) -> str:
    try:
        # Made anew for each call: what one call does to its arguments is not seen by the next.
        return "= " + encode(function(*_literal(arguments)))
    except (Exception, SystemExit) as error:
        return "! " + ascii(f"{type(error).__name__}: {error}"[:200])


def _main() -> None:
    nonce, entry, calls = _literal(sys.stdin.read())
    results, nowhere = posix.dup(1), posix.open("/dev/null", posix.O_RDWR)
    posix.dup2(nowhere, 0)
    posix.dup2(nowhere, 1)

    def tell(number: object, what: str) -> None:
        posix.write(results, f"{nonce} {number} {what}\n".encode())

    try:
        with open("solution.py", "rb") as file:  # noqa: PTH123
            code = compile(file.read(), "solution.py", "exec", dont_inherit=True)
    except Exception:
        tell("-", "compile_error")
        posix._exit(1)
    namespace: dict[str, Any] = {"__name__": "solution"}
    exec(code, namespace)
    if entry not in namespace:
        tell("-", "no_entry")
        posix._exit(1)
    for number, arguments in enumerate(calls):
        tell(number, _one_call(namespace[entry], arguments))
    posix._exit(0)


if __name__ == "__main__":
    _main()
