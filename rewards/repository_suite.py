"""Runs named tests in the tests' process, with the project's modules at the other side of a session.

Test files are imported from memory: on disk the project could change them. Imports of the project's modules give
stand-ins (rewards.repository_proxies). Plain `unittest` runs the tests, one at a time, each against a fresh process of
the project's; besides test cases there may be functions. Only a test that unittest calls a success has passed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import unittest
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from rewards.repository_proxies import RemoteObject, Session, SessionState

_MESSAGE_CHARACTERS = 200


def run_suite(session: Session, job: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Do the job that rewards.repository_runner describes, in the project's folder; `tell` takes the report."""
    session.request("path", [str(Path.cwd() / root) for root in job["roots"]])
    sys.meta_path.insert(0, TestModules(session, job["tests"], job["modules"]))
    TestRun(session, tell).run(job["names"], stop_early=job["stop_early"])


class ProjectModule(ModuleType):
    """A module of the project: its names are asked for when they are first used."""

    __path__: list[str] = []

    def __init__(self, session: Session, name: str) -> None:
        super().__init__(name)
        self.__dict__["_remote"] = session.request("import", name)

    def __getattr__(self, name: str) -> Any:
        remote = self.__dict__["_remote"]
        if type(remote) is not RemoteObject or name == "__all__":  # by which it could put a `len` of its own in a test
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
