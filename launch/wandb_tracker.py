"""Weights & Biases, and the only file that knows it. Whatever fails in it costs one warning, and the run goes on.

    numbers       every line of metrics.jsonl under the same names (docs/metrics.md)
    histograms    response_length/histogram and ratio/histogram, of the trajectories that the run's folder keeps
    traces        a table of them every tracking.traces_every steps
    config        the resolved configuration, and under "version" the code it runs on
    summary       what summary.json says; of accuracies the best beside the last
    alerts        one for each alarm of docs/metrics.md

Nothing here waits for the network: W&B's own process does. Starting and finishing have deadlines.
"""

from __future__ import annotations

import datetime
import logging
import math
import netrc
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cispo.errors import ConfigError
from configs.fleet import TrackingConfig
from launch.run_files import json_ready, write_atomically
from launch.run_tracker import RunTracker

log = logging.getLogger("cispo.tracking")

START_SECONDS, FINISH_SECONDS = 60.0, 120.0
OWN_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Of W&B itself, under its two names; where `wandb login` leaves a key if no other server is asked for."""

ALERT_PAUSE = datetime.timedelta(minutes=30)
"""Between two alerts of one kind: an alarm may speak at every step."""

RATIO_EDGES = np.linspace(0.0, 4.0, 65)
"""The same at every step, so that histograms can be compared; what is larger counts in the last bin."""

LENGTH_BINS = 32
TRACE_CHARACTERS = 20_000
"""Of a text in the table; the run's own folder has all of it."""

TRACE_COLUMNS = (
    "step", "task", "prompt_id", "prompt", "text", "reward", "parts", "verdict", "correct", "advantage", "mean_ratio",
    "version", "num_tokens", "stop_reason",
)  # fmt: skip


def has_login(environment: Mapping[str, str] = os.environ) -> bool:
    """W&B would find a key of this user: in the environment, or where `wandb login` writes it."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    hosts = (urlsplit(environment["WANDB_BASE_URL"]).netloc,) if environment.get("WANDB_BASE_URL") else OWN_HOSTS
    try:
        keys = netrc.netrc(environment.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(keys.authenticators(host) for host in hosts)


def check_login(config: TrackingConfig) -> None:
    """Raise ConfigError if W&B was asked to send at once and cannot, before anything starts."""
    if wandb_mode(config) == "online" and not has_login():
        raise ConfigError(
            "tracking.wandb=online needs a login to W&B, and there is neither WANDB_API_KEY nor a key that `wandb "
            "login` has left; log in, or take tracking.wandb=auto, which writes below the run's folder without one."
        )


def wandb_mode(config: TrackingConfig) -> str:
    """ "disabled", "offline" or "online": what `auto` comes to here, unless the environment's WANDB_MODE says it."""
    if config.wandb == "disabled":
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or config.wandb
    return ("online" if has_login() else "offline") if mode == "auto" else mode


class WandbTracker(RunTracker):
    """A run of W&B.

    A resumed run continues it, by the id saved in the run's folder. Steps that were logged before are not logged again:
    a killed run does some of them anew, and W&B would draw them twice.
    """

    def __init__(
        self,
        run_folder: Path,
        config: TrackingConfig,
        *,
        run_config: Mapping[str, Any],
        version: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._config = run_folder, config
        self._last_step_file = run_folder / "wandb_last_step"
        self._logged_before = self._read_last_step()
        self._last_traced: int | None = None
        self._run: Any = None
        self._guard("start", lambda: self._start({**run_config, "version": dict(version or {})}))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers that are finite; W&B merges calls of one step."""
        if step <= self._logged_before:
            return
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._guard("log", lambda: self._run.log(finite, step=step))
        for name, value in metrics.items():
            if name.startswith("alarm/") and value:
                self._alert(name, step)
        self._guard("note the step", lambda: write_atomically(self._last_step_file, f"{step}\n"))

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Histograms of what the run's folder keeps of a step, and now and then the traces themselves."""
        if step <= self._logged_before or not records:
            return
        self._guard("log histograms", lambda: self._run.log(_histograms(records), step=step))
        every = self._config.traces_every
        if every and (self._last_traced is None or step - self._last_traced >= every):
            self._last_traced = step
            table = records[: self._config.traces_per_table]
            self._guard("log traces", lambda: self._run.log({"traces": _table(step, table)}, step=step))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the summary and the policy, if it is asked for, and wait until everything is written or sent."""
        self._guard("write the summary", lambda: self._run.summary.update(json_ready(summary)))
        if self._config.upload_export:
            self._guard("add the policy", self._add_export)
        self._guard("finish", lambda: self._run.finish(exit_code=0))
        self._run = None

    def close(self) -> None:
        """Mark the run as failed, unless it finished."""
        self._guard("finish", lambda: self._run.finish(exit_code=1))
        self._run = None

    def _start(self, run_config: Mapping[str, Any]) -> None:
        import wandb

        config, mode = self._config, wandb_mode(self._config)
        self._run = wandb.init(
            id=saved_run_id(self._folder),
            name=self._folder.name,
            project=config.project,
            entity=config.entity or None,
            group=config.group or None,
            tags=list(config.tags),
            notes=config.notes or None,
            job_type="train",
            dir=str(self._folder),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            config=dict(run_config),
            settings=wandb.Settings(
                console="off",
                quiet=True,
                init_timeout=START_SECONDS,
                login_timeout=START_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric("eval/*", summary="last,max")
        if mode == "offline":
            log.info("W&B writes below %s; `wandb sync %s` sends it.", self._folder, _sync_pattern(self._folder))
        elif mode == "online":
            log.info("W&B shows this run at %s", self._run.url)

    def _alert(self, name: str, step: int) -> None:
        text = f"{name} at step {step}; the run's log says what was seen, the limit, and what to do."
        self._guard(
            "send an alert",
            lambda: self._run.alert(title=name, text=text, level="WARN", wait_duration=ALERT_PAUSE),
        )

    def _add_export(self) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self._folder.name}-policy", type="model")
        artifact.add_dir(str(self._folder / "export"))
        self._run.log_artifact(artifact)

    def _read_last_step(self) -> int:
        return int(self._last_step_file.read_text()) if self._last_step_file.exists() else -1

    def _guard(self, what: str, call: Callable[[], object]) -> None:
        """Call somebody else's program that may lack a network, a key or a disk: never let that end the run."""
        if self._run is None and what != "start":
            return
        try:
            call()
        except Exception as error:
            self._run = None
            log.warning(
                "W&B could not %s (%s: %s): the run goes on without it, and metrics.jsonl has every number.",
                what,
                type(error).__name__,
                error,
            )


def _histograms(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import wandb

    lengths = np.array([record["num_tokens"] for record in records])
    ratios = np.array([ratio for record in records for ratio in record.get("ratio") or () if ratio is not None])
    edges = np.linspace(0, max(int(lengths.max()), 1), LENGTH_BINS + 1)
    found = {"response_length/histogram": wandb.Histogram(np_histogram=np.histogram(lengths, edges))}
    if len(ratios):
        counted = np.histogram(np.minimum(ratios, RATIO_EDGES[-1]), RATIO_EDGES)
        found["ratio/histogram"] = wandb.Histogram(np_histogram=counted)
    return found


def _table(step: int, records: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    rows = [[_cell({**record, "step": step}.get(column)) for column in TRACE_COLUMNS] for record in records]
    return wandb.Table(columns=list(TRACE_COLUMNS), data=rows, allow_mixed_types=True)


def _cell(value: Any) -> Any:
    """What W&B can show: text of a bounded length that is valid UTF-8, and parts of a reward as text."""
    if isinstance(value, Mapping):
        value = "  ".join(f"{name} {part:.3g}" for name, part in value.items() if part is not None)
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        left_out = len(value) - TRACE_CHARACTERS
        return value if left_out <= 0 else f"{value[:TRACE_CHARACTERS]} ... ({left_out} characters more)"
    return value


def _sync_pattern(run_folder: Path) -> Path:
    return run_folder / "wandb" / "offline-run-*"


def saved_run_id(run_folder: Path) -> str:
    """The W&B id of this run: made once, kept in the run's folder so that a resumed run is the same run."""
    path = run_folder / "wandb_run_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
