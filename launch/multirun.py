"""`cispo train -m`: the runs of a sweep one after another, each in a process of its own and a folder of its own.

A run that fails, or is killed, costs the sweep nothing: the others are made, and the failed ones are named at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cispo.errors import CispoError, ConfigError
from configs.schema import RunConfig
from launch.compose import compose
from launch.sweep import expand, run_names

COMMAND = ("-m", "launch.cli")
"""This program, for this interpreter."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep: what is typed for it, and what that means."""

    overrides: Sequence[str]
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Where it will be."""
        return Path(self.config.runs_folder) / self.config.name

    @property
    def words(self) -> list[str]:
        """The arguments of `cispo train` that make this run."""
        runs = self.config.runs_folder.replace("\\", "\\\\").replace("'", "\\'")
        return ["train", *self.overrides, f"name={self.config.name}", f"runs_folder='{runs}'"]


def plan_sweep(overrides: Sequence[str]) -> list[Job]:
    """The runs of a sweep, below runs_folder/<name>/. Raises ConfigError with the faults of all of them at once."""
    wordings = expand(overrides)
    faults: dict[str, None] = {}
    composed: list[RunConfig] = []
    for wording in wordings:
        try:
            composed.append(compose(wording))
        except ConfigError as error:
            faults |= dict.fromkeys(error.faults)
    if faults:
        raise ConfigError(*faults)
    names = run_names(wordings)
    folder = _sweep_folder(composed, overrides)
    return [
        Job(wording, dataclasses.replace(config, name=name, runs_folder=str(folder)))
        for wording, config, name in zip(wordings, composed, names, strict=True)
    ]


def _sweep_folder(configs: Sequence[RunConfig], overrides: Sequence[str]) -> Path:
    """runs/<name> for a sweep that was given one, which must be new; else a free folder runs/<experiment>-sweep."""
    names, runs = sorted({config.name for config in configs}), Path(configs[0].runs_folder)
    if len(names) == 1 and any(override.startswith("name=") for override in overrides):
        if (runs / names[0]).exists():
            raise ConfigError(
                f"{runs / names[0]} exists, and a sweep keeps its runs in a new folder; take another name=..., or go "
                f"on with one of its runs by cispo train --resume {runs / names[0]}/<run>."
            )
        return runs / names[0]
    stem = f"{names[0]}-sweep" if len(names) == 1 else "sweep"
    candidates = (runs / (stem if number == 1 else f"{stem}-{number}") for number in itertools.count(1))
    return next(folder for folder in candidates if not folder.exists())


def run_sweep(jobs: Sequence[Job], tell: Callable[[str], None], *, debug: bool = False) -> None:
    """Make all runs. Raises CispoError with those that failed, after all others were made."""
    failed: list[str] = []
    command = [sys.executable, *COMMAND, *(["--debug"] if debug else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)}
    for number, job in enumerate(jobs, start=1):
        tell(f"run {number} of {len(jobs)}: {job.folder} ({' '.join(job.overrides) or 'no overrides'})")
        status = _made([*command, *job.words], environment)
        if status in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if status:
            failed.append(f"{job.folder} ({_ending(status)})")
            tell(f"run {number} of {len(jobs)} failed ({_ending(status)}); the sweep goes on.")
    if failed:
        raise CispoError(f"{len(failed)} of {len(jobs)} runs of the sweep failed: {', '.join(failed)}.")


def _made(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit status of a run. Ctrl-C reaches it, too, and it gets the time to save and to close; twice kills it."""
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait()
            except KeyboardInterrupt:
                process.kill()
            raise


def _ending(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
