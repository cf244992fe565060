"""`cispo launch ray`: the run as a job of a Ray cluster that is up, by Ray's own job submission."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cispo.errors import CispoError, ConfigError
from configs.schema import RunConfig
from launch.compose import compose, load_config
from launch.new_run import begin_words, check_new
from launch.run_folder import with_free_name
from launch.start_checks import faults_elsewhere

POLL_SECONDS = 1.0

SILENT_SECONDS = 300.0
"""For how long `follow` bears a dashboard that does not answer."""


def submit_job(address: str, overrides: Sequence[str], *, resume: Path | None = None) -> str:
    """Give the run to the cluster whose dashboard is at `address`; the job's id.

    Raises ConfigError if the run cannot work, CispoError if the cluster cannot be asked.
    """
    config, words = _words(overrides, resume)
    if faults := faults_elsewhere(config):
        raise ConfigError(*faults)
    folder = (Path(config.runs_folder) / config.name).absolute()
    command = shlex.join([sys.executable, "-m", "launch.cli", "train", *words])
    client = _client(address)
    try:
        # Ray would run it in a folder of its own: paths must mean what they mean here.
        job: str = client.submit_job(
            entrypoint=f"cd {shlex.quote(str(Path.cwd()))} && exec {command}",
            metadata={"cispo_run": str(folder)},
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}},
        )
    except RuntimeError as error:
        raise CispoError(f"Ray at {address} refused the job: {' '.join(str(error).split())}") from error
    return job


def told(address: str, job: str) -> str:
    """How to watch, end and go on with a job of the cluster."""
    where = f"--address {address}"
    return "\n".join(
        [
            f"job {job} is submitted to {address}",
            f"  watch    ray job logs {where} --follow {job}",
            f"  cancel   ray job stop {where} {job}     (SIGTERM: after the present step, if that takes under 3 s)",
            f"  resume   cispo launch ray {where} --resume RUN",
        ]
    )


def follow(address: str, job: str) -> int:
    """Show the job's log as it grows until it ends; 0 if it did so well. Raises CispoError if Ray is silent."""
    client, shown, heard = _client(address), 0, time.monotonic()
    while True:
        try:
            status, log = client.get_job_status(job), client.get_job_logs(job)
            heard = time.monotonic()
        except (RuntimeError, OSError) as error:
            if time.monotonic() > heard + SILENT_SECONDS:
                raise CispoError(f"Ray at {address} has not answered for {SILENT_SECONDS:g} s ({error}).") from error
            time.sleep(POLL_SECONDS)
            continue
        print(log[shown:], end="", flush=True)
        shown = len(log)
        if status.is_terminal():
            print(f"cispo: job {job}: {str(status.value).lower()}", file=sys.stderr)
            return 0 if status.value == "SUCCEEDED" else 1
        time.sleep(POLL_SECONDS)


def _words(overrides: Sequence[str], resume: Path | None) -> tuple[RunConfig, list[str]]:
    """The run as the cluster will have it, and the words of `cispo train` for it."""
    for override in overrides:
        if override.partition("=")[0] in ("cluster", "cluster.kind") and not override.endswith("=ray"):
            raise ConfigError(f"{override}: a job of a Ray cluster trains on it; leave this out or take cluster=ray.")
    ours = ["cluster.kind=ray"]
    if resume is not None:
        config = load_config(resume / "config.yaml", [*overrides, *ours])
        return config, ["--resume", str(resume.absolute()), *overrides, *ours]
    config = with_free_name(compose([*overrides, *ours]), overrides)
    folder = (Path(config.runs_folder) / config.name).absolute()
    check_new(folder, "ray")
    return config, begin_words([*overrides, *ours], folder)


def _client(address: str) -> Any:
    if importlib.util.find_spec("aiohttp") is None:  # without it Ray fails later, with a sentence about something else
        raise CispoError(
            "Ray's job submission is not installed here (aiohttp is missing); pip install 'cispo[ray]', which is "
            "ray[default]."
        )
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise CispoError(
            f"Ray's dashboard at {address} cannot be reached ({' '.join(str(error).split())}); start the head with "
            f"`ray start --head` where ray[default] is installed, or say --address http://<head>:8265."
        ) from error
