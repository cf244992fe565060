"""What protects the folder of a run: from a second run, a second driver, and a resumption that fails."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cispo.errors import CheckpointError, ConfigError
from launch.run_files import read_metrics, write_atomically

if TYPE_CHECKING:  # who only looks at runs need not wait for torch
    from cispo.checkpoint import FolderCheckpoints
    from configs.schema import RunConfig

LOCK = ".lock"


def check_folder(folder: Path, checkpoints: FolderCheckpoints, *, resume: bool) -> None:
    """A finished or crashed run is never overwritten: not by a new one, nor by one that cannot go on from it.

    A run that died before its first checkpoint has nothing to lose, so to resume it is to begin it again.
    """
    if not resume and (folder / "config.yaml").exists():
        raise ConfigError(
            f"{folder} holds a run already; go on with it by cispo train --resume {folder}, give this one another name "
            f"(name=...), or delete that folder."
        )
    last_step = max((int(line["step"]) for line in read_metrics(folder)), default=0) if resume else 0
    if last_step > 0 and not checkpoints.steps():
        raise CheckpointError(
            f"{folder} has metrics up to step {last_step} but no checkpoint, and to begin again would overwrite them; "
            f"put {checkpoints.folder} back, or start a run of another name."
        )


@contextmanager
def saved_config(
    config: RunConfig, plan: Sequence[str], folder: Path, checkpoints: FolderCheckpoints
) -> Iterator[None]:
    """Write config.yaml, and plan.txt with the lines of `plan`; take away summary.json, whose end is none any more.

    A resumed run that failed before it saved a step gets those that it had back.
    """
    from launch.compose import save_config

    settings, plan_file, summary = (folder / name for name in ("config.yaml", "plan.txt", "summary.json"))
    steps = checkpoints.steps()
    before = {path: path.read_text(encoding="utf-8") for path in (settings, plan_file, summary) if path.exists()}
    save_config(config, settings)
    write_atomically(plan_file, "".join(f"{line}\n" for line in plan))
    summary.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        if before and checkpoints.steps() == steps:
            for path, text in before.items():
                write_atomically(path, text)
        raise


@contextmanager
def resume_hint(folder: Path, checkpoints: FolderCheckpoints) -> Iterator[None]:
    """Whatever ends the run early carries the command that goes on with it."""
    try:
        yield
    except BaseException as error:
        steps = checkpoints.steps()
        does = f"goes on from step {steps[-1]}" if steps else "begins it again"
        error.add_note(f"`cispo train --resume {folder}` {does}.")
        raise


@contextmanager
def one_driver(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        if not _got(lock, tries=10):  # one that only looks (`is_driven`) has it for a moment
            raise ConfigError(
                f"{folder} is in use by another cispo process, and two would overwrite each other's files; wait for "
                f"it or end it, or give this run another name (name=...)."
            )
        yield


def is_driven(folder: Path) -> bool:
    """Some process is in `one_driver` for this folder."""
    try:
        with (folder / LOCK).open() as lock:
            return not _got(lock)
    except FileNotFoundError:
        return False


def _got(lock: TextIO, tries: int = 1) -> bool:
    for left in range(tries - 1, -1, -1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05 if left else 0.0)
        else:
            return True
    return False


def with_free_name(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A name that nobody typed must not stand in the way of a second run: embedded, embedded-2, embedded-3, ..."""
    if any(override.startswith("name=") for override in overrides):
        return config
    names = (config.name if number == 1 else f"{config.name}-{number}" for number in itertools.count(1))
    free = next(name for name in names if not (Path(config.runs_folder) / name).exists())
    return dataclasses.replace(config, name=free)
