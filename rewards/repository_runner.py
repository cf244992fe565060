"""Runs inside the sandbox: the tests of a repository in one process, the patched project in another.

The project's process is forked off before this one has read anything: neither the tests nor what they expect nor the
nonce of the report was ever in its memory, and none of it lies in a file. This process cannot be opened by it
(PR_SET_DUMPABLE is 0, which the child itself tries out before the project's first line) and holds the only
descriptor of the report. All that the project can do is answer (rewards.repository_server), be silent, or end.

Standard input is a JSON object: {"nonce", "tests": {path: text}, "names": [...], "modules": [...],
"roots": [...], "stop_early": false}. The report has one line each for

    NONCE passed NUMBER
    NONCE failed NUMBER MESSAGE      an assertion did not hold
    NONCE raised NUMBER MESSAGE      anything else: an exception, a skip, the end of the project's process
    NONCE exposed                    this machine does not keep the two processes apart; nothing was run
    NONCE end
"""

from __future__ import annotations

import _ctypes
import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NoReturn

from rewards.repository_proxies import RemoteObject, Session, SessionState
from rewards.repository_server import Server
from rewards.repository_wire import Wire

PROJECT = "project"
"""The folder of the patched tree, below the working directory."""

_MESSAGE_CHARACTERS = 200
_PR_SET_DUMPABLE = 4
_EXPOSED, _APART = b"exposed", b"apart"


def start_program() -> Wire:
    """Fork the project's process. Call it before anything secret is read. Raises OSError when it is not apart."""
    _set_dumpable(0)
    requests, answers, signs = os.pipe(), os.pipe(), os.pipe()
    tests_process = os.getpid()
    if os.fork() == 0:
        _become_program((requests[0], answers[1], signs[1]), tests_process)
    for descriptor in (requests[0], answers[1], signs[1]):
        os.close(descriptor)
    sign = os.read(signs[0], 16)
    os.close(signs[0])
    if sign != _APART:
        raise OSError("a child can open the memory or the descriptors of its parent")
    return Wire(answers[0], requests[1])


def _become_program(descriptors: tuple[int, int, int], tests_process: int) -> NoReturn:
    reader, writer, sign = descriptors
    _keep_only(descriptors)
    os.write(sign, _EXPOSED if _can_open(tests_process) else _APART)
    os.close(sign)
    _set_dumpable(1)
    _enter_project()
    Server(Wire(reader, writer)).serve()


def _keep_only(descriptors: Sequence[int]) -> None:
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    before = 2
    for descriptor in sorted(descriptors):
        os.closerange(before + 1, descriptor)
        before = descriptor
    os.closerange(before + 1, 1024)


def _can_open(process: int) -> bool:
    """Whether this process can look into that one: then the tests would have no secrets and no say."""
    for name in ("mem", "fd/0", "fd/1", "environ"):
        try:
            os.close(os.open(f"/proc/{process}/{name}", os.O_RDONLY))
        except OSError:
            continue
        return True
    return False


def _set_dumpable(is_dumpable: int) -> None:
    """prctl(PR_SET_DUMPABLE), through the extension module: importing the package ctypes costs ten times as much."""
    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    prctl = _ctypes.dlsym(program, "prctl")
    if _ctypes.call_function(prctl, (_PR_SET_DUMPABLE, is_dumpable, 0, 0, 0)) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")


def _enter_project() -> None:
    """Work in the project's folder, and import nothing more from here, where the project may write."""
    sys.path[:] = [folder for folder in sys.path if folder != str(Path.cwd())]
    os.chdir(PROJECT)
    # The project may have a module of the same name.
    for name in [name for name in sys.modules if name.partition(".")[0] == "rewards"]:
        del sys.modules[name]


class ProjectModule(ModuleType):
    """A module of the project: its names are asked for when they are first used."""

    __path__: list[str] = []

    def __init__(self, session: Session, name: str) -> None:
        super().__init__(name)
        self.__dict__["_remote"] = session.request("import", name)

    def __getattr__(self, name: str) -> Any:
        remote = self.__dict__["_remote"]
        if type(remote) is not RemoteObject:
            raise AttributeError(name)
        return getattr(remote, name)


class TestModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds test files in memory and the project's modules at the other side; all else is Python's own."""

    __test__ = False

    def __init__(self, session: Session, tests: dict[str, str], modules: Sequence[str]) -> None:
        self._session = session
        self._files = {_module_name(path): (path, text) for path, text in tests.items() if path.endswith(".py")}
        self._modules = set(modules)
        folders = {str(parent).replace("/", ".") for path in tests for parent in PurePosixPath(path).parents}
        self._folders = folders - self._modules
        self._packages = {name.partition(".")[0] for name in modules}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """See importlib."""
        if fullname in self._files or fullname in self._folders:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in self._folders)
        if fullname.partition(".")[0] in self._packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """See importlib."""
        name = spec.name
        is_test = name in self._files or name in self._folders
        return ModuleType(name) if is_test else ProjectModule(self._session, name)

    def exec_module(self, module: ModuleType) -> None:
        """See importlib."""
        if module.__name__ in self._files and not isinstance(module, ProjectModule):
            path, text = self._files[module.__name__]
            exec(compile(text, path, "exec", dont_inherit=True), vars(module))


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class _Result(unittest.TestResult):
    """How one test ended; `outcome` stays empty when nothing was said."""

    def __init__(self) -> None:
        super().__init__()
        self.outcome: tuple[str, str] | None = None

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.outcome = self.outcome or ("passed", "")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._bad("failed", str(err[1]))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._bad("raised", f"{type(err[1]).__name__}: {err[1]}")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._bad(
                "failed" if isinstance(err[1], AssertionError) else "raised", f"{type(err[1]).__name__}: {err[1]}"
            )

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._bad("raised", f"skipped: {reason}")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._bad("raised", "an expected failure")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._bad("raised", "an unexpected success")

    def _bad(self, kind: str, message: str) -> None:
        if self.outcome is None or self.outcome[0] == "passed":
            self.outcome = (kind, message)


class TestRun:
    """One run of named tests against a session."""

    __test__ = False

    def __init__(self, session: Session, tell: Callable[[str], None]) -> None:
        self._session = session
        self._tell = tell
        self._modules: dict[str, ModuleType | BaseException] = {}

    def run(self, names: Sequence[str], *, stop_early: bool) -> None:
        """Import all test files, then run each test, up to the first failure, in a fresh process of the project's."""
        for name in names:
            self._load(name)
        collected = self._session.state()
        for number, name in enumerate(names):
            kind, message = self._run_one(name, collected)
            self._tell(f"{kind} {number} {ascii(message[:_MESSAGE_CHARACTERS])}")
            if stop_early and kind != "passed":
                break

    def _load(self, name: str) -> None:
        path = name.partition("::")[0]
        if path in self._modules:
            return
        try:
            __import__(_module_name(path))
            self._modules[path] = sys.modules[_module_name(path)]
        except BaseException as error:  # the project may raise SystemExit
            self._modules[path] = error
        self._session.fault = ""

    def _run_one(self, name: str, collected: SessionState) -> tuple[str, str]:
        path, _, inner = name.partition("::")
        module = self._modules[path]
        if isinstance(module, BaseException):
            return "raised", f"{type(module).__name__}: {module}"
        result = _Result()
        try:
            self._session.begin_test()
            unittest.TestSuite([_test_case(module, inner)]).run(result)
        except BaseException as error:
            result.outcome = "raised", f"{type(error).__name__}: {error}"
        self._session.end_test(collected)
        if self._session.fault:
            return "raised", self._session.fault
        return result.outcome or ("raised", "the test said nothing")


def _test_case(module: ModuleType, name: str) -> unittest.TestCase:
    """The test `Class::method` or `function` of a module. Raises LookupError when there is none."""
    class_name, _, method = name.rpartition("::")
    found = vars(module).get(class_name or method)
    if class_name and isinstance(found, type) and issubclass(found, unittest.TestCase) and hasattr(found, method):
        return found(method)
    if not class_name and callable(found) and type(found) is not RemoteObject:
        return unittest.FunctionTestCase(found)
    raise LookupError(f"{module.__name__} has no test {name}")


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the project may send signals, and this one would raise here
    report = os.dup(1)
    wire: Wire | None = None
    with contextlib.suppress(OSError):
        wire = start_program()
    job = json.loads(sys.stdin.buffer.read())
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)

    def tell(what: str) -> None:
        os.write(report, f"{job['nonce']} {what}\n".encode("ascii"))

    if wire is None:
        tell("exposed")
        os._exit(0)
    _enter_project()
    session = Session(wire)
    session.request("path", [str(Path.cwd() / root) for root in job["roots"]])
    sys.meta_path.insert(0, TestModules(session, job["tests"], job["modules"]))
    TestRun(session, tell).run(job["names"], stop_early=job["stop_early"])
    tell("end")
    os._exit(0)


if __name__ == "__main__":
    _main()
