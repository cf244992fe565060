"""Who is told how a run goes: its own files, the console and W&B, all behind cispo.protocols.Tracker.

The files are the truth and may end the run when they cannot be written. The console and W&B are a service: what
fails there costs one warning. metrics.jsonl has exactly one line per step, however often a run was killed and
resumed; for that the loop logs and evaluates a step before it saves the checkpoint of that step.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from configs.fleet import TrackingConfig
from launch.run_files import json_lines, json_ready, read_jsonl, rollout_files, write_atomically, write_summary

log = logging.getLogger("cispo.tracking")


class RunTracker:
    """A Tracker that listens to nothing; each tracker below overrides what concerns it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of one step. A second call for the same step adds to the first (an evaluation)."""

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """The trajectories trained on at one step, made by cispo.records."""

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """How far something outside the steps is: cold start, an evaluation. `done == total` ends it."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over and reached its end."""

    def close(self) -> None:
        """Let go of terminal and network, also after an error; harmless after `finish`."""


class Trackers(RunTracker):
    """Tells several trackers, in order. As a context manager it closes them however the run ends."""

    def __init__(self, *trackers: RunTracker) -> None:
        self.trackers = trackers

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.rollouts(step, records)

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.phase(name, done, total, **numbers)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.finish(summary)

    def close(self) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_trackers(
    run_folder: Path,
    config: TrackingConfig,
    *,
    total_steps: int,
    resumed_step: int = 0,
    run_config: Mapping[str, Any] | None = None,
) -> Trackers:
    """The trackers that `config` asks for.

    Args:
        run_folder: runs/<name>; its last part names the run in W&B.
        config: which trackers.
        total_steps: steps of the whole run, for the progress bar.
        resumed_step: the step of the checkpoint that the run goes on from; files forget what came after it.
        run_config: the resolved configuration, shown by W&B.
    """
    trackers: list[RunTracker] = [JsonlTracker(run_folder, resumed_step=resumed_step)]
    if config.console:
        trackers.append(ConsoleTracker(total_steps))
    if config.wandb != "disabled":
        trackers.append(WandbTracker(run_folder, config, run_config=run_config or {}))
    return Trackers(*trackers)


class JsonlTracker(RunTracker):
    """metrics.jsonl, rollouts/step_N.jsonl and summary.json of a run's folder."""

    def __init__(self, run_folder: Path, *, resumed_step: int = 0) -> None:
        self._folder = run_folder
        self._metrics = run_folder / "metrics.jsonl"
        self._rollouts = run_folder / "rollouts"
        self._rollouts.mkdir(parents=True, exist_ok=True)
        self._last_step = self._forget_after(resumed_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line and wait until the disk has it, so that a killed run keeps every finished step."""
        if step < self._last_step:
            raise ValueError(f"{self._metrics} has one line per step in order: step {step} after {self._last_step}")
        record = {"step": step, **metrics}
        if step == self._last_step:
            *earlier, same = read_jsonl(self._metrics)
            write_atomically(self._metrics, json_lines([*earlier, {**same, **record}]))
        else:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json_lines([record]))
                file.flush()
                os.fsync(file.fileno())
        self._last_step = step

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write rollouts/step_N.jsonl, complete or not at all."""
        write_atomically(self._rollouts / f"step_{step}.jsonl", json_lines(records))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_summary(self._folder, summary)

    def _forget_after(self, resumed_step: int) -> int:
        """Drop what a killed run wrote after its checkpoint, half a line included; returns the last step kept."""
        kept = [
            record
            for record in (read_jsonl(self._metrics) if self._metrics.exists() else [])
            if record["step"] <= resumed_step
        ]
        write_atomically(self._metrics, json_lines(kept))
        for step, path in rollout_files(self._folder):
            if step > resumed_step:
                path.unlink()
        return int(kept[-1]["step"]) if kept else -1


HEADLINES = (
    ("reward", "reward/mean", "{:.3f}"),
    ("accuracy", "reward/correct/mean", "{:.3f}"),
    ("length", "response_length/mean", "{:.1f}"),
    ("ratio max", "ratio/max", "{:.2f}"),
    ("mismatch", "mismatch/logp_abs_diff_mean", "{:.1e}"),
    ("seconds", "perf/step_seconds", "{:.1f}"),
)
"""What one line of the console says of a step: label, metric, format. A metric that is not logged is left out."""


class ConsoleTracker(RunTracker):
    """Progress for the person who waits: a live bar on a terminal, plain lines in a log file."""

    def __init__(self, total_steps: int, *, console: Console | None = None) -> None:
        self._total_steps = total_steps
        self._console = console or Console()
        self._is_live = self._console.is_terminal
        self._bars: dict[str, TaskID] = {}
        self._printed_tenths: dict[str, int] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self._console,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of the numbers that matter, and one for an evaluation."""
        headlines = "  ".join(
            f"{label} {form.format(metrics[name])}" for label, name, form in HEADLINES if name in metrics
        )
        if headlines:
            self._print(f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}  {headlines}")
        evaluation = "  ".join(
            f"{name.removeprefix('eval/')} {value:.3f}" for name, value in metrics.items() if name.startswith("eval/")
        )
        if evaluation:
            self._print(f"  held-out at step {step}: {evaluation}")
        self._move_bar("training", step, self._total_steps, "")

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """Move the phase's bar; without a terminal, a line for every tenth of the way.

        Held-out accuracies are left to `log`, which says them with their step.
        """
        shown = {key: value for key, value in numbers.items() if not key.startswith("eval/")}
        text = "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())
        self._move_bar(name, done, total, text)
        tenth = 10 * done // max(total, 1)
        is_over = done >= total
        if is_over or (not self._is_live and tenth > self._printed_tenths.get(name, 0)):
            self._print(f"{name} {done}/{total}  {text}".rstrip())
        self._printed_tenths[name] = 0 if is_over else tenth

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, its cursor included."""
        if self._is_live:
            self._progress.stop()

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _move_bar(self, name: str, done: int, total: int, numbers: str) -> None:
        if not self._is_live:
            return
        self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, numbers="")
        self._progress.update(self._bars[name], completed=done, total=total, numbers=numbers)
        if done >= total:
            self._progress.remove_task(self._bars.pop(name))


class WandbTracker(RunTracker):
    """Weights & Biases, the only user of wandb. Whatever fails in it costs one warning and the run goes on.

    A resumed run continues the same W&B run, by the id saved in the run's folder. W&B ignores the steps that it has
    already, so a replayed step is not drawn twice.
    """

    def __init__(self, run_folder: Path, config: TrackingConfig, *, run_config: Mapping[str, Any]) -> None:
        self._run: Any = None
        self._guard("start", lambda: self._start(run_folder, config, run_config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers that are finite; W&B merges calls of one step."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._guard("log", lambda: self._run.log(finite, step=step))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the summary and wait until everything is written or sent."""
        self._guard("write the summary", lambda: self._run.summary.update(json_ready(summary)))
        self._guard("finish", lambda: self._run.finish(exit_code=0))
        self._run = None

    def close(self) -> None:
        """Mark the run as crashed, unless it finished."""
        self._guard("finish", lambda: self._run.finish(exit_code=1))
        self._run = None

    def _start(self, run_folder: Path, config: TrackingConfig, run_config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            id=saved_run_id(run_folder),
            name=run_folder.name,
            project=config.project,
            entity=config.entity or None,
            dir=str(run_folder),
            mode=os.environ.get("WANDB_MODE", config.wandb),  # type: ignore[arg-type]
            resume="allow",
            config=dict(run_config),
            settings=wandb.Settings(
                console="off",
                quiet=True,
                init_timeout=60,
                login_timeout=60,
                finish_timeout=120,
                finish_timeout_raises=True,
            ),
        )

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


def saved_run_id(run_folder: Path) -> str:
    """The W&B id of this run: made once, kept in the run's folder so that a resumed run is the same run."""
    path = run_folder / "wandb_run_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
