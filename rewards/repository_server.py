"""The program's side of a repository's tests: imports the patched project and does what the tests ask of it.

Nothing here is trusted once the project's first line has run, for that can change anything in this process. It need
not be: the tests, what they expect, and the report live in another process (rewards.repository_runner), to which this
one gives answers. A false answer is a wrong result like any other.

Requests, each answered by ["return", value] or ["raise", error]:

    path FOLDERS | import NAME | get OBJECT NAME | set OBJECT NAME VALUE | del OBJECT NAME
    call OBJECT ARGS KWARGS | op NAME ARGS
    fork | end                  a child of this process answers between them, so each test begins as the imports left it

Before it answers, it may ask for a function that the test gave it: ["callback", NUMBER, ARGS, KWARGS].
"""

from __future__ import annotations

import builtins
import importlib
import operator
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rewards.repository_wire import BrokenWire, Wire, decode, encode

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "len": len, "iter": iter, "next": next, "reversed": reversed, "str": str, "repr": repr, "format": format,
    "bool": bool, "hash": hash, "int": int, "float": float, "index": operator.index, "round": round, "dir": dir,
    "isinstance": isinstance, "issubclass": issubclass,
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value, error: type(value).__exit__(value, type(error) if error else None, error, None),
}  # fmt: skip
_BUILTIN_CLASSES = {kind for kind in vars(builtins).values() if isinstance(kind, type)}


class Server:
    """Holds the project's objects by number and answers requests about them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id(); every object here stays alive
        self._test_functions: dict[int, Any] = {}  # by the test's number

    def serve(self) -> NoReturn:
        """Answer until the test's side is gone."""
        try:
            while True:
                message = self._wire.receive()
                if message[0] == "fork":
                    self._fork()
                elif message[0] == "end":  # only a child gets this
                    os._exit(0)
                else:
                    self._reply(message)
        except BrokenWire:
            os._exit(1)

    def _fork(self) -> None:
        """The child goes on serving; the parent waits for its end and tells of it."""
        child = os.fork()
        if child == 0:
            self._wire.send(["return", None])
            return
        _, status = os.waitpid(child, 0)
        self._wire.send(["ended", status])

    def _reply(self, message: list[Any]) -> None:
        try:
            self._wire.send(["return", self._encode(self._perform(*message))])
        except BrokenWire:
            raise
        except BaseException as error:  # whatever the project raises belongs to the test
            self._wire.send(["raise", self._describe_error(error)])

    def _perform(self, request: str, *operands: Any) -> Any:
        values = [decode(operand, self._resolve) for operand in operands]
        if request == "call":
            function, args, kwargs = values
            return function(*args, **kwargs)
        if request == "op":
            name, args = values
            return (_OPERATIONS.get(name) or getattr(operator, name))(*args)
        actions: dict[str, Callable[..., Any]] = {
            "import": importlib.import_module, "get": getattr, "set": setattr, "del": delattr, "path": sys.path.extend,
        }  # fmt: skip
        return actions[request](*values)

    def _call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._wire.send(["callback", number, self._encode(list(args)), self._encode(kwargs)])
        while True:
            message = self._wire.receive()
            if message[0] == "return":
                return decode(message[1], self._resolve)
            if message[0] == "raise":
                raise decode(message[1], self._resolve)
            if message[0] == "end":  # the test is over in the middle of its own function
                os._exit(0)
            self._reply(message)

    def _encode(self, value: Any) -> Any:
        return encode(value, self._refer)

    def _refer(self, value: Any) -> dict[str, Any]:
        for number, known in self._test_functions.items():
            if known is value:
                return {"function": number}
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._describe_class(value)
        if isinstance(value, type) and value in _BUILTIN_CLASSES:
            return {"builtin": value.__name__}
        return {"object": self._number(value), "class": type(value).__name__, "is_class": isinstance(value, type)}

    def _describe_class(self, kind: type[BaseException]) -> dict[str, Any]:
        """Of an exception class the other side needs to know what it inherits from."""
        if kind in _BUILTIN_CLASSES:
            return {"builtin": kind.__name__}
        bases = [self._describe_class(base) for base in kind.__bases__ if issubclass(base, BaseException)]
        return {"exception": self._number(kind), "name": kind.__name__, "bases": bases}

    def _describe_error(self, error: BaseException) -> dict[str, Any]:
        try:
            args = encode(list(error.args), _refuse)
        except Exception:
            args = [str(error)]
        return {
            "class": self._describe_class(type(error)),
            "args": args,
            "text": str(error),
            "error": self._number(error),
        }

    def _number(self, value: Any) -> int:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return number

    def _resolve(self, reference: dict[str, Any]) -> Any:
        """What the test's side means by a reference."""
        if "object" in reference:
            return self._objects[reference["object"]]
        if "builtin" in reference:
            return getattr(builtins, reference["builtin"])
        if "operator" in reference:
            return getattr(operator, reference["operator"])
        if "error" in reference:
            kind = decode(reference["error"], self._resolve)
            return kind(*decode(reference["args"], self._resolve))
        return self._test_function(reference["function"], reference["name"])

    def _test_function(self, number: int, name: str) -> Callable[..., Any]:
        """A function of the test as one of ours."""
        if number not in self._test_functions:

            def test_function(*args: Any, **kwargs: Any) -> Any:
                return self._call_back(number, args, kwargs)

            test_function.__name__ = test_function.__qualname__ = name
            self._test_functions[number] = test_function
        return self._test_functions[number]


def _refuse(value: Any) -> dict[str, Any]:
    raise TypeError(type(value).__name__)
