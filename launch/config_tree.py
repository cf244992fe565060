"""The groups of the configuration tree and their files, for whoever must answer at once: nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("model", "task", "rewards", "sandbox", "learner", "cluster", "engine", "tracking", "experiment")
CONFIGS = Path(__file__).parent.parent / "configs"
KEYS = CONFIGS / "keys.txt"


def choices(group: str) -> list[str]:
    """The files of a config group: what `group=...` may say."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def key_types() -> dict[str, str]:
    """Type by key, of all keys that have a value; written by docs/generate_configs.py."""
    pairs = (line.partition("\t") for line in KEYS.read_text(encoding="utf-8").splitlines())
    return {key: kind for key, _, kind in pairs}


def groups_help() -> str:
    """The groups and what each may be, for --help."""
    width = max(len(group) for group in GROUPS)
    lines = [f"  {group:<{width}}  {' '.join(choices(group))}" for group in GROUPS]
    return "\n".join(["groups, as in model=tiny:", *lines])
