"""`cispo launch local`: a run of this machine in the background, with its log and process id in the run's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cispo.errors import CispoError, ConfigError
from launch.compose import compose, load_config
from launch.new_run import begin_words, check_new
from launch.run_files import write_atomically
from launch.run_folder import is_driven, with_free_name

LOG, PID = "launch/local.log", "launch/local.pid"

TAKES_OVER_SECONDS = 120.0
"""How long the new process may take until it holds the run's folder."""


def start(overrides: Sequence[str], *, resume: Path | None = None) -> Path:
    """Begin the run, or go on with one, in a session of its own; its folder.

    Returns when the run holds its folder. Raises ConfigError before anything is started, or CispoError with the end of
    the log if the process ends at once.
    """
    if resume is None:
        config = with_free_name(compose(overrides), overrides)
        folder = (Path(config.runs_folder) / config.name).absolute()
        check_new(folder, "local")
        words = begin_words(overrides, folder)
    else:
        folder = resume.absolute()
        load_config(folder / "config.yaml", overrides)
        words = ["--resume", str(folder), *overrides]
    if is_driven(folder):
        raise ConfigError(f"{folder} is in use by another cispo process; wait for it or end it.")
    (folder / LOG).parent.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "train", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # neither Ctrl-C here nor the end of this terminal reaches it
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    write_atomically(folder / PID, f"{process.pid}\n")
    _wait_until_it_holds(folder, process)
    return folder


def told(folder: Path) -> str:
    """How to watch, end and go on with a run in the background."""
    pid = (folder / PID).read_text(encoding="utf-8").strip()
    return "\n".join(
        [
            f"{folder} runs as process {pid}",
            f"  watch    tail -F {folder / LOG}",
            f"  stop     kill {pid}     (after the present step, with a checkpoint; twice: at once)",
            f"  resume   cispo launch local --resume {folder}",
        ]
    )


def _wait_until_it_holds(folder: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + TAKES_OVER_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None and process.returncode:
            lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
            raise CispoError(f"the run ended at once (status {process.returncode}): {' '.join(lines[-3:])}")
        if process.returncode == 0 or is_driven(folder):
            return
        time.sleep(0.1)
    raise CispoError(
        f"process {process.pid} has not taken {folder} for {TAKES_OVER_SECONDS:g} s; look at {folder / LOG}, or end it."
    )
