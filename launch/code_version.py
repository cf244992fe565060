"""Which code a run runs on: version.json in its folder, one line in `cispo runs`, and the "version" of a W&B run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

from launch.run_files import write_atomically

LIBRARIES = ("torch", "ray", "deepspeed", "megatron-core", "vllm")
GIT_SECONDS = 10.0


def code_version() -> dict[str, str]:
    """Versions by name: "cispo", "python" and those of LIBRARIES that are installed.

    A checkout adds "commit", and "modified": "yes" if its tracked files differ from that commit.
    """
    found = {"cispo": _installed("cispo"), "python": platform.python_version()}
    found |= {name: _installed(name) for name in LIBRARIES}
    if commit := _git("rev-parse", "HEAD"):
        found["commit"] = commit
        found["modified"] = "yes" if _git("status", "--porcelain", "--untracked-files=no") else "no"
    return {name: version for name, version in found.items() if version}


def write_version(run_folder: Path, version: dict[str, str]) -> None:
    """Add to version.json, which has one entry for each process that drove the run and was of another version."""
    path = run_folder / "version.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if not earlier or earlier[-1] != version:
        write_atomically(path, json.dumps([*earlier, version], indent=1) + "\n")


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    """What git says of the checkout that this file is in; "" if there is none, or no git."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
