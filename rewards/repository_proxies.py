"""The tests' side: objects of the project as tests see them, without a line of the project running here.

A test imports the project's modules and uses them as always. What it gets are stand-ins: a call, an attribute, an
index is sent to the program's process (rewards.repository_server) and the answer comes back. Plain data (None,
numbers, text, lists, dates, ...) comes back by value and is then an ordinary object of this process, so that
`assertEqual(total(x), 3)` compares two ints of ours. Everything else stays where it is, and a stand-in refuses
whatever would let the program decide a comparison that the test means to make itself:

- `==`, `!=`, `<`, `in` and their like: a program could return an object that equals everything. A test of such a
  method calls it by its name, `left.__eq__(right)`, and gets plain True or False.
- operators with plain data, and operators that give plain data: `abs(result - 0.5) < 1e-9` is such a comparison.
- the questions that are asked of text: `startswith`, `isdigit`.
- suppressing an exception at the end of a `with` block, which may be the assertion that failed.

A refusal fails the test, also one that catches everything. So does the end of the program's process.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NoReturn

from rewards.repository_wire import BrokenWire, Wire, decode, encode

_TEXT_QUESTIONS = {name for name in dir(str) if name.startswith("is")} | {"startswith", "endswith"}


class TestIsOver(BaseException):
    """The test has failed whatever comes after; not an Exception, so that no `except Exception` hides it."""

    __test__ = False


class Session:
    """The conversation with the program's process.

    Attributes:
        fault: why the running test has failed whatever it does, or "".
        program_ended: the process that answered the running test is gone.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._objects: dict[int, Any] = {}
        self._error_classes: dict[int, type[BaseException]] = {}
        self._functions: list[Callable[..., Any]] = []
        self.fault = ""
        self.program_ended = False

    def request(self, *message: Any) -> Any:
        """Send a request, serve callbacks, and return what the program returns or raise what it raises."""
        if self.program_ended:
            self.give_up(self.fault or "the program's process is gone")
        try:
            self._wire.send([message[0], *(self._encode(operand) for operand in message[1:])])
            while True:
                answer = self._wire.receive()
                if answer[0] != "callback":
                    return self._take(answer)
                self._call_back(*answer[1:])
        except BrokenWire as error:
            self.program_ended = True
            self.give_up(f"the program's process is gone ({error})")

    def give_up(self, fault: str) -> NoReturn:
        """Fail the running test."""
        self.fault = self.fault or fault
        raise TestIsOver(fault)

    def begin_test(self) -> None:
        """From here on a fresh process answers. Raises TestIsOver if there is none."""
        self.fault = ""
        self.request("fork")

    def end_test(self, collected: SessionState) -> None:
        """End that process and forget what it held."""
        if not self.program_ended:
            try:
                self._wire.send(["end"])
                answer = self._wire.receive()
            except BrokenWire as error:
                self.fault = self.fault or f"the program's process is gone ({error})"
                return
            if answer != ["ended", 0]:
                self.fault = self.fault or "the program did not end when it was told to"
        self.program_ended = False
        self._objects, self._error_classes = dict(collected[0]), dict(collected[1])
        del self._functions[collected[2] :]

    def state(self) -> SessionState:
        """What is known so far, to go back to."""
        return dict(self._objects), dict(self._error_classes), len(self._functions)

    def _take(self, answer: list[Any]) -> Any:
        if answer[0] == "ended":
            self.program_ended = True
            self.give_up("the program ended its process")
        try:
            if answer[0] == "return":
                return decode(answer[1], self._resolve)
            error = self._error(answer[1]) if answer[0] == "raise" else None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as fault:
            self.give_up(f"the program sent what is no value: {type(fault).__name__}")
        if error is None:
            self.give_up("the program sent what is no answer")
        raise error

    def _call_back(self, number: int, args: Any, kwargs: Any) -> None:
        """Call a function that the test gave away. An assertion that fails in it has failed for good."""
        try:
            function = self._functions[number]
            result = function(*decode(args, self._resolve), **decode(kwargs, self._resolve))
            answer = ["return", self._encode(result)]
        except Exception as error:
            if isinstance(error, AssertionError):
                self.fault = self.fault or str(error) or "an assertion failed in a callback"
            answer = ["raise", self._describe_error(error)]
        self._wire.send(answer)

    def _encode(self, value: Any) -> Any:
        return encode(value, self._refer)

    def _refer(self, value: Any) -> dict[str, Any]:
        kind = type(value)
        if kind is RemoteObject:
            return {"object": number_of(value)}
        if isinstance(value, BaseException):
            return {"object": value.remote_number} if hasattr(value, "remote_number") else self._describe_error(value)
        if isinstance(value, type):
            return self._refer_to_class(value)
        if kind is BuiltinFunctionType and value.__module__ in ("builtins", "_operator"):
            return {value.__module__.lstrip("_").removesuffix("s"): value.__name__}
        if kind in (FunctionType, MethodType, BuiltinFunctionType) or callable(value):
            if value not in self._functions:
                self._functions.append(value)
            return {"function": self._functions.index(value), "name": getattr(value, "__name__", "test_function")}
        return self.give_up(f"a test may give plain data, functions and objects of the project, not a {kind.__name__}")

    def _refer_to_class(self, kind: type) -> dict[str, Any]:
        for number, known in self._error_classes.items():
            if known is kind:
                return {"object": number}
        if vars(builtins).get(kind.__name__) is kind:
            return {"builtin": kind.__name__}
        return self.give_up(f"a test may not give the project its own class {kind.__name__}")

    def _describe_error(self, error: BaseException) -> dict[str, Any]:
        """For the program to raise: its own exception, a builtin one, or (of a class of the test's) a RuntimeError."""
        if hasattr(error, "remote_number"):
            return {"object": error.remote_number}
        kind = type(error)
        is_known = kind in self._error_classes.values() or vars(builtins).get(kind.__name__) is kind
        args = [arg for arg in error.args if arg is None or type(arg) in (bool, int, float, str)]
        return {
            "error": self._refer_to_class(kind) if is_known else {"builtin": "RuntimeError"},
            "args": encode(args if is_known else [f"{kind.__name__}: {error}"], self._refer),
        }

    def _resolve(self, reference: dict[str, Any]) -> Any:
        if "object" in reference:
            number = int(reference["object"])
            if number not in self._objects:
                self._objects[number] = RemoteObject(self, number, str(reference["class"]), bool(reference["is_class"]))
            return self._objects[number]
        if "function" in reference:
            return self._functions[int(reference["function"])]
        return self._class(reference)

    def _class(self, reference: dict[str, Any]) -> type:
        """A builtin class, or a class of ours that stands for an exception class of the project's."""
        if "builtin" in reference:
            kind = getattr(builtins, str(reference["builtin"]))
            if not isinstance(kind, type):
                raise ValueError("a class was expected")
            # What unittest lets pass, or what ends this process, is not the program's to raise.
            return RuntimeError if kind in (BaseException, KeyboardInterrupt, GeneratorExit) else kind
        number = int(reference["exception"])
        if number not in self._error_classes:
            bases = tuple(self._class(base) for base in reference["bases"])
            if not bases or not all(issubclass(base, BaseException) for base in bases):
                raise ValueError("an exception class inherits from exceptions")
            self._error_classes[number] = type(str(reference["name"]), bases, {"__module__": "project"})
        return self._error_classes[number]

    def _error(self, description: dict[str, Any]) -> BaseException:
        kind = self._class(description["class"])
        args = decode(description["args"], _no_reference)
        text, number = str(description["text"]), int(description["error"])
        if kind.__module__ == "builtins":
            return kind(*args) if kind not in (UnicodeDecodeError, UnicodeEncodeError) else ValueError(text)
        return _raised_class(kind, self, number, text)(*args)


def _raised_class(kind: type[BaseException], session: Session, number: int, text: str) -> type[BaseException]:
    """A subclass for one raised exception: its text, and its other attributes asked for when they are read."""

    def get(self: BaseException, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return session.request("get", RemoteObject(session, number, kind.__name__, False), name)

    own = {"remote_number": number, "__getattr__": get, "__str__": lambda self: text, "__init__": _take_anything}
    return type(kind.__name__, (kind,), own | {"__module__": "project"})


def _take_anything(self: BaseException, *args: Any) -> None:
    self.args = args


def _no_reference(reference: dict[str, Any]) -> Any:
    raise ValueError("plain data was expected")


SessionState = tuple[dict[int, Any], dict[int, type[BaseException]], int]


class RemoteObject:
    """An object of the project that is not plain data."""

    __slots__ = ("_is_class", "_kind", "_number", "_session")

    def __init__(self, session: Session, number: int, kind: str, is_class: bool) -> None:
        for name, value in zip(RemoteObject.__slots__, (is_class, kind, number, session), strict=True):
            object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        # Operators find their methods in the class and do not come here; a test that names one, as in x.__eq__, does.
        if name == "__class__":
            return RemoteObject
        if name in _TEXT_QUESTIONS and not _own(self, "_is_class"):
            _refuse(self, f"{name}()")
        return _own(self, "_session").request("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _own(self, "_session").request("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _own(self, "_session").request("del", self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it over there."""
        return _own(self, "_session").request("call", self, list(args), kwargs)

    def __enter__(self) -> Any:
        return _ask("enter", self)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        _ask("exit", self, error if isinstance(error, Exception) else None)

    def __iter__(self) -> Any:
        iterator = _ask("iter", self)
        if type(iterator) is not RemoteObject:
            _refuse(self, "iter() that gives no iterator")
        return iterator

    def __instancecheck__(self, value: Any) -> bool:
        return _ask("isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return _ask("issubclass", value, self) is True

    def __mro_entries__(self, _bases: Any) -> NoReturn:
        _refuse(self, "a subclass in a test")

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        _refuse(self, "copy()")


def number_of(value: RemoteObject) -> int:
    """The number by which the program's side knows it."""
    return _own(value, "_number")


def _own(value: RemoteObject, name: str) -> Any:
    return object.__getattribute__(value, name)


def _ask(name: str, *operands: Any) -> Any:
    remote = next(operand for operand in operands[::-1] if type(operand) is RemoteObject)
    return _own(remote, "_session").request("op", name, list(operands))


def _refuse(value: RemoteObject, what: str) -> NoReturn:
    kind = _own(value, "_kind")
    session: Session = _own(value, "_session")
    session.give_up(
        f"the project gave an object of class {kind} where the test uses {what}, which decides nothing unless it "
        "works on plain data; compare plain data, or call the method by its name"
    )


def _asking(name: str) -> Callable[..., Any]:
    return lambda self, *operands: _ask(name, self, *operands)


def _refusing(what: str) -> Callable[..., Any]:
    return lambda self, *_: _refuse(self, what)


def _operator(name: str, *, is_reflected: bool = False) -> Callable[..., Any]:
    """An operator between objects of the project, which must give such an object."""

    def operate(self: RemoteObject, *others: Any) -> Any:
        if not all(type(other) is RemoteObject for other in others):
            _refuse(self, f"the operator {name} with plain data")
        result = _ask(name, *(*others, self) if is_reflected else (self, *others))
        if type(result) is not RemoteObject:
            _refuse(self, f"the operator {name} for plain data")
        return result

    return operate


for _name in ("len", "next", "str", "repr", "format", "bool", "hash", "int", "float", "index", "round", "reversed"):
    setattr(RemoteObject, f"__{_name}__", _asking(_name))
for _name in ("getitem", "setitem", "delitem"):
    setattr(RemoteObject, f"__{_name}__", _asking(_name))
for _name, _sign in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "contains": "in"}.items():
    setattr(RemoteObject, f"__{_name}__", _refusing(_sign))
for _name in ("neg", "pos", "invert", "abs"):
    setattr(RemoteObject, f"__{_name}__", _operator(_name))
for _name in (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "or",
    "xor",
):
    _function = _name if hasattr(operator, _name) else _name + "_"
    setattr(RemoteObject, f"__{_name}__", _operator(_function))
    setattr(RemoteObject, f"__r{_name}__", _operator(_function, is_reflected=True))
    setattr(RemoteObject, f"__i{_name}__", _operator("i" + _name))
