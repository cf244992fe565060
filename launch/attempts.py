"""attempts.jsonl: one line when a process begins to drive a run and one when it ends, with the code that it ran.

A line that began and has none that ended, while nobody drives the run, is a process that was killed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from cispo.stop import RunStopped
from launch.run_files import json_lines, read_jsonl, write_atomically

LIBRARIES = (
    "torch", "numpy", "ray", "triton", "deepspeed", "megatron-core", "vllm", "transformers", "flash-linear-attention",
    "wandb",
)  # fmt: skip
MAX_DIFF_BYTES = 1 << 20
"""A larger difference to the commit is named and not kept."""
GIT_SECONDS = 20.0


@cache
def code_version() -> dict[str, Any]:
    """cispo's version, its git commit and whether anything was changed since (None outside of git), and libraries."""
    root = Path(__file__).parents[1]
    is_repository = (root / ".git").exists()
    commit = _git(root, "rev-parse", "HEAD") if is_repository else None
    changes = _git(root, "status", "--porcelain") if commit else None
    return {
        "cispo": _version("cispo"),
        "commit": commit.strip() if commit else None,
        "is_changed": bool(changes.strip()) if changes is not None else None,
        "python": sys.version.split()[0],
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
    }


@contextmanager
def attempt(folder: Path, step: int) -> Iterator[None]:
    """Write both lines around what runs inside, and the difference to the code's commit if there is one.

    Args:
        folder: of the run.
        step: that it goes on from; 0 at the beginning.
    """
    import socket

    path = folder / "attempts.jsonl"
    code = code_version() | ({"diff": _keep_diff(folder)} if code_version()["is_changed"] else {})
    begun = {"begun": time.time(), "from_step": step, "host": socket.gethostname(), "command": sys.argv, "code": code}
    _append(path, begun)
    try:
        yield
    except BaseException as error:
        state = "stopped" if isinstance(error, KeyboardInterrupt | RunStopped) else "failed"
        _append(path, {"ended": time.time(), "state": state, "error": f"{type(error).__name__}: {error}"[:2000]})
        raise
    _append(path, {"ended": time.time(), "state": "finished"})


def _keep_diff(folder: Path) -> str:
    """Write code-<hash>.diff, which attempts with the same changes share; its name."""
    root = Path(__file__).parents[1]
    diff = _git(root, "diff", "HEAD") or ""
    if len(diff.encode()) > MAX_DIFF_BYTES:
        diff = f"{len(diff.encode())} bytes of changes, not kept\n"
    unknown = _git(root, "ls-files", "--others", "--exclude-standard") or ""
    text = "".join(f"# not in git: {name}\n" for name in unknown.splitlines()) + diff
    name = f"code-{hashlib.sha256(text.encode()).hexdigest()[:12]}.diff"
    write_atomically(folder / name, text)
    return name


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """The lines, oldest first; none for a run that has no such file."""
    path = folder / "attempts.jsonl"
    return read_jsonl(path) if path.exists() else []


def _append(path: Path, line: dict[str, Any]) -> None:
    """Whatever half a line a killed process left is dropped: it had no end and is nobody's."""
    lines = read_jsonl(path) if path.exists() else []
    write_atomically(path, json_lines([*lines, line]))


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
