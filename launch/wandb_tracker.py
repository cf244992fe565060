"""Weights & Biases, behind cispo.protocols.Tracker. Whatever fails in it costs one warning and the run goes on.

W&B mirrors the run's own files. A run that goes on after a kill has forgotten the steps after its checkpoint, so

- online, the server says which step it has last: what it lacks is sent again, and what it has already is not;
- offline, the new folder gets every step from the first on and takes the place of the folder before it, because
  `wandb sync` of a second folder would overwrite the first.

Steps go to W&B's own process, which keeps and sends them; only the start and the end of a run wait for it.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cispo.histogram import Histogram
from cispo.stop import RunStopped
from configs.fleet import TrackingConfig
from launch.run_files import json_ready, read_metrics, write_atomically
from launch.run_tracker import RunTracker
from launch.summary import accuracies
from launch.wandb_client import Stuck, forget_client, within
from launch.wandb_mode import answers, base_url, wandb_mode
from launch.wandb_rows import hidden_variables, plain, replayed, row, traces

log = logging.getLogger("cispo.tracking")

KILLED = 255
"""The exit code that W&B shows as "killed"; any other but 0 is "failed"."""

ABORT_SECONDS = 3.0
"""For W&B to see by itself that its time is up."""

COLD_START = frozenset({"timing_s/sft"})
"""What the first of the two calls for step 0 says."""


class WandbTracker(RunTracker):
    """One run in W&B, by the id in the run's folder."""

    def __init__(
        self, run_folder: Path, config: TrackingConfig, *, run_config: Mapping[str, Any], code: Mapping[str, Any]
    ) -> None:
        self._folder, self._config = run_folder, config
        self._run: Any = None
        self._sent = -1
        self._held: dict[str, Any] = {}
        self._cold_start: dict[str, float] = {}
        self._histograms: Mapping[str, Histogram] = {}
        self._accuracies: list[float] = []
        self._summary: dict[str, Any] = {}
        self._run_config = {**plain(run_config), "code": plain(code)}
        self._guard("start", self._start)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Keep them for `log`."""
        self._histograms = histograms

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep the table for `log`, if one is due."""
        if step > self._sent:
            self._guard("make a table", lambda: self._held.update(traces(step, records, self._config)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step, unless W&B has it from before a kill; the summary follows the run's own files in any case.

        Step 0 comes in two calls, the cold start and the evaluation, and is sent with the second: half a step that was
        sent before a kill would be the whole of it for W&B.
        """
        histograms, held, self._histograms, self._held = self._histograms, self._held, {}, {}
        self._guard("write the summary", lambda: self._sum_up(metrics))
        if step == 0 and set(metrics) <= COLD_START:
            self._cold_start = dict(metrics)
            return
        if step == 0:
            metrics, self._cold_start = {**self._cold_start, **metrics}, {}
        if step > self._sent:
            self._guard("log", lambda: self._send(step, row(step, metrics, histograms) | held))

    def alarm(self, step: int, metric: str, text: str) -> None:
        """Alert those who asked W&B for alerts; W&B drops the same title for a while."""
        self._guard("alert", lambda: self._run.alert(title=f"{self._folder.name}: {metric}", text=text, level="WARN"))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the summary, and the policy if asked for, and wait until everything is written or sent."""
        if self._cold_start:  # which was all there was to do
            self._guard("log", lambda: self._send(0, row(0, self._cold_start, {})))
        self._summary = {"run": json_ready(summary)}
        self._guard("write the summary", lambda: self._run.summary.update(self._summary))
        if self._config.upload_export:
            self._guard("send the policy", self._send_export)
        self._end(0)

    def close(self, error: BaseException | None = None) -> None:
        """Mark the run as killed or failed, unless it finished."""
        self._end(KILLED if isinstance(error, KeyboardInterrupt | RunStopped) else 1)

    def _start(self) -> None:
        mode, wait = wandb_mode(self._config), self._config.wait_seconds
        if mode == "online" and not answers(base_url()):
            log.warning("W&B: %s does not answer; this run is written offline.", base_url())
            mode = "offline"
        try:
            self._run = self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning(
                "W&B: %s did not take the run within tracking.wait_seconds=%g (%s); it is written offline.",
                base_url(),
                wait,
                next(iter(str(error).splitlines()), type(error).__name__),
            )
            forget_client()
            self._run = self._init("offline")
        self._prepare()
        where = self._run.url if not self._run.offline else f"offline; {self._sync_hint()}"
        log.info("W&B: %s", where)

    def _prepare(self) -> None:
        """Tell a new run how it is shown, and what came before."""
        # it would ask the server in the middle of a step, and wait, whether an artifact's name has another type there
        self._run._assert_can_log_artifact = lambda artifact: None
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._sent = int(self._run.starting_step) - 1 if self._run.resumed else -1
        self._accuracies = []
        self._catch_up()

    @hidden_variables()
    def _init(self, mode: str) -> Any:
        # its reports on itself wait 20 s for a server that hangs, and fill our log where it refuses
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        config, wait = self._config, self._config.wait_seconds
        if mode == "offline":
            put_aside(self._folder)
        return wandb.init(
            id=saved_run_id(self._folder),
            name=self._folder.name,
            project=config.project or os.environ.get("WANDB_PROJECT") or "cispo",
            entity=config.entity or None,
            group=config.group or None,
            job_type=config.job_type or None,
            tags=list(config.tags) or None,
            notes=config.notes or None,
            dir=str(self._folder),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            config=self._run_config,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=wait,
                finish_timeout=wait,
                finish_timeout_raises=True,
            ),
        )

    def _catch_up(self) -> None:
        """Send what the files have and W&B has not."""
        lines = read_metrics(self._folder)
        for line in lines:
            self._sum_up(line)
        if lines and lines[0]["step"] == 0 and set(lines[0]) <= {"step", *COLD_START}:
            self._cold_start = {name: value for name, value in lines.pop(0).items() if name != "step"}
        for step, values in replayed(self._folder, self._config, lines, after=self._sent):
            self._send(step, values)

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def _sum_up(self, metrics: Mapping[str, Any]) -> None:
        """First, last and best held-out accuracy, kept up to date so that a run that dies has them, too."""
        overall = accuracies(metrics)["sampled"].get("all")
        if overall is not None:
            self._accuracies.append(overall)
            values = {"first": self._accuracies[0], "last": overall, "best": max(self._accuracies)}
            self._run.summary.update({f"accuracy/{name}": value for name, value in values.items()})

    def _send_export(self) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self._folder.name}-policy", type="model")
        artifact.add_dir(str(self._folder / "export"))
        self._run.log_artifact(artifact)

    def _end(self, exit_code: int) -> None:
        if self._run is None:
            return
        is_offline, hint = self._run.offline, self._sync_hint()
        self._guard("finish", lambda: self._finish(exit_code))
        if self._run is not None and is_offline:
            log.info("W&B: %s", hint)
        self._run = None

    def _finish(self, exit_code: int) -> None:
        """W&B keeps to finish_timeout unless something before the end, such as an alert, still waits for the server.

        Its file then lacks what its process had not written yet, and an offline one is made of the run's own files.
        """
        run = self._run
        try:
            within(self._config.wait_seconds + ABORT_SECONDS, lambda: run.finish(exit_code=exit_code))
        except Stuck:
            self._run = self._init("offline")
            self._prepare()
            self._run.summary.update(self._summary)
            self._run.finish(exit_code=exit_code)
            raise

    def _sync_hint(self) -> str:
        return f"`wandb sync {Path(self._run.dir).parent}` sends this run."

    def _guard(self, what: str, call: Callable[[], object]) -> None:
        """Call somebody else's program that may lack a network, a key or a disk: never let that end the run."""
        if self._run is None and what != "start":
            return
        try:
            call()
        except Exception as error:
            hint = f" {self._sync_hint()}" if self._run is not None else ""
            self._run = None
            log.warning(
                "W&B could not %s (%s: %s): the run goes on without it, and metrics.jsonl has every number.%s",
                what,
                type(error).__name__,
                error,
                hint,
            )


def saved_run_id(run_folder: Path) -> str:
    """The W&B id of this run: made once, kept in the run's folder so that a resumed run is the same run."""
    path = run_folder / "wandb_run_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def put_aside(run_folder: Path) -> None:
    """Rename offline folders that the next one repeats, so that `wandb sync .../offline-run-*` finds one alone."""
    for path in (run_folder / "wandb").glob("offline-run-*"):
        path.rename(path.with_name(f"replaced-{path.name}"))
