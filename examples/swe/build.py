"""Makes prompts.jsonl from the projects and bugs of this folder: one repository task for each bug.

    python examples/swe/build.py             write examples/swe/prompts.jsonl
    python examples/swe/build.py --check     also run every task: buggy, mended, and the tests that must tell them apart
    python examples/swe/build.py --find      first write into task.json which tests each bug makes fail

A bug is a folder in bugs/: `bug.diff` puts it into its project, `issue.md` is what a user says of it, `task.json` names
the project, the files shown with the issue, the tests that it makes fail, and limits if the usual ones will not do.
The gold patch is the diff's inverse. All other tests of the project must go on passing.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.repository_files import is_test, read_snapshot
from rewards.repository_patch import apply_diff
from rewards.repository_tests import RepositoryTests
from sandbox import Limits, SandboxPool

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts.jsonl"
TASK = "swe"
LIMITS = Limits(cpu_seconds=10, wall_seconds=60)
"""For --check and --find; a run has its own in `sandbox.limits`."""

_INSTRUCTIONS = (
    "Mend the fault that this issue describes. Answer with one unified diff in a block that begins with ```diff, with "
    "paths as in a/{file} and b/{file}. Change no tests.\n\n"
)


@dataclass(frozen=True)
class Bug:
    """One bug with everything that a task needs.

    Attributes:
        id: name of its folder.
        issue: what a user says of it.
        mended, buggy: the project's files without and with the bug, tests left out.
        tests: the test files.
        shown: files whose text is in the prompt.
        fail_to_pass, pass_to_pass: names of tests that the bug makes fail, and of all others.
        limits: of a run of the tests, where the usual ones will not do.
    """

    id: str
    issue: str
    mended: Mapping[str, bytes]
    buggy: Mapping[str, bytes]
    tests: Mapping[str, str]
    shown: tuple[str, ...]
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    limits: Mapping[str, float]

    @property
    def gold(self) -> str:
        """The diff that mends it."""
        return "".join(_diff(name, self.buggy[name], self.mended[name]) for name in sorted(self.mended))

    def row(self) -> dict[str, Any]:
        """The line of prompts.jsonl."""
        return {
            "id": self.id,
            "task": TASK,
            "prompt": self.prompt(),
            "reference": self.reference(),
            "gold": f"```diff\n{self.gold}```",
        }

    def prompt(self) -> str:
        """What the model sees."""
        files = "\n".join(f"### {name}\n```python\n{self.buggy[name].decode()}```\n" for name in self.shown)
        return _INSTRUCTIONS.format(file=self.shown[0]) + f"{self.issue}\n{files}\n"

    def reference(self) -> dict[str, Any]:
        """What the verifier needs; see rewards.repository_tests."""
        return {
            "repository": {name: content.decode() for name, content in self.buggy.items()},
            "tests": dict(self.tests),
            "fail_to_pass": list(self.fail_to_pass),
            "pass_to_pass": list(self.pass_to_pass),
            "limits": dict(self.limits),
        }


def read_bugs() -> list[Bug]:
    """All bugs, in the order of their ids."""
    return [_read_bug(folder) for folder in sorted((HERE / "bugs").iterdir())]


def _read_bug(folder: Path) -> Bug:
    task = json.loads((folder / "task.json").read_text())
    project = read_snapshot(str(HERE / "projects" / task["project"]))
    mended = {name: content for name, content in project.items() if not is_test(name)}
    tests = {name: content.decode() for name, content in project.items() if is_test(name)}
    names = [name for path, text in tests.items() for name in test_names(path, text)]
    unknown = set(task["fail_to_pass"]) - set(names)
    if unknown:
        raise ValueError(f"{folder.name} names tests that are not there: {', '.join(sorted(unknown))}")
    return Bug(
        id=folder.name,
        issue=(folder / "issue.md").read_text(),
        mended=mended,
        buggy=apply_diff(mended, (folder / "bug.diff").read_text()),
        tests=tests,
        shown=tuple(task["shown"]),
        fail_to_pass=tuple(task["fail_to_pass"]),
        pass_to_pass=tuple(name for name in names if name not in task["fail_to_pass"]),
        limits=task.get("limits", {}),
    )


def test_names(path: str, text: str) -> list[str]:
    """The tests of a file, as path::Class::method and path::function."""
    names = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            names.append(f"{path}::{node.name}")
        elif isinstance(node, ast.ClassDef):
            methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            names += [f"{path}::{node.name}::{name}" for name in methods if name.startswith("test")]
    return names


def _diff(name: str, before: bytes, after: bytes) -> str:
    lines = [content.decode().splitlines(keepends=True) for content in (before, after)]
    return "".join(difflib.unified_diff(*lines, f"a/{name}", f"b/{name}"))


def faults(bug: Bug, verifier: RepositoryTests) -> list[str]:
    """What is wrong with a task; nothing if the bug fails exactly its tests and the gold patch passes all."""
    found = []
    if failing(bug, verifier) != set(bug.fail_to_pass):
        found.append(f"{bug.id}: the bug makes {sorted(failing(bug, verifier))} fail, not {sorted(bug.fail_to_pass)}")
    score = verifier.score(bug.row()["gold"], bug.reference())
    if not score.correct:
        found.append(f"{bug.id}: the gold patch is {score.verdict}: {score.note}")
    return found


def failing(bug: Bug, verifier: RepositoryTests) -> set[str]:
    """The tests that fail on the buggy project. Raises RuntimeError when the sandbox fails."""
    reference = bug.reference() | {"fail_to_pass": [*bug.fail_to_pass, *bug.pass_to_pass], "pass_to_pass": []}
    report = verifier.report("", reference)
    if report.system_error:
        raise RuntimeError(f"the sandbox failed: {report.system_error}")
    return set(report.failed)


def _find(bug: Bug, verifier: RepositoryTests) -> Bug:
    """The bug with the tests that it makes fail, also in its task.json."""
    names = failing(bug, verifier)
    every = sorted((*bug.fail_to_pass, *bug.pass_to_pass))
    file = HERE / "bugs" / bug.id / "task.json"
    task = json.loads(file.read_text()) | {"fail_to_pass": [name for name in every if name in names]}
    file.write_text(json.dumps(task, indent=2) + "\n")
    return replace(
        bug,
        fail_to_pass=tuple(task["fail_to_pass"]),
        pass_to_pass=tuple(name for name in every if name not in names),
    )


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description="Makes prompts.jsonl from the projects and bugs of this folder.")
    parser.add_argument("--check", action="store_true", help="run every task, buggy and mended")
    parser.add_argument("--find", action="store_true", help="write which tests each bug makes fail")
    parser.add_argument("--out", type=Path, default=PROMPTS, help="where to write, default: prompts.jsonl beside this")
    options = parser.parse_args()
    bugs = read_bugs()
    found: list[str] = []
    if options.check or options.find:
        with SandboxPool(1, LIMITS) as pool:
            verifier = RepositoryTests(pool)
            bugs = [_find(bug, verifier) for bug in bugs] if options.find else bugs
            found = [fault for bug in bugs for fault in faults(bug, verifier)]
    options.out.write_text("".join(json.dumps(bug.row()) + "\n" for bug in bugs))
    longest = max(len(bug.prompt()) for bug in bugs)
    print(f"{options.out}: {len(bugs)} tasks, the longest prompt has {longest} characters")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
