"""Who is told how a run goes: its own files, the console and W&B, all behind cispo.protocols.Tracker.

The files are the truth and may end the run when they cannot be written. The console and W&B are a service: what
fails there costs one warning. metrics.jsonl has exactly one line per step, however often a run was killed and
resumed; for that the loop logs and evaluates a step before it saves the checkpoint of that step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cispo.histogram import Histogram
from configs.fleet import TrackingConfig
from launch.run_files import json_lines, read_jsonl, rollout_files, write_atomically, write_summary
from launch.run_tracker import RunTracker
from launch.wandb_mode import wandb_mode

log = logging.getLogger("cispo.tracking")


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

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.histograms(step, histograms)

    def alarm(self, step: int, metric: str, text: str) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.alarm(step, metric, text)

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.phase(name, done, total, **numbers)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.finish(summary)

    def close(self, error: BaseException | None = None) -> None:
        """See RunTracker."""
        for tracker in self.trackers:
            tracker.close(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)


def open_trackers(
    run_folder: Path,
    config: TrackingConfig,
    *,
    total_steps: int,
    resumed_step: int = 0,
    run_config: Mapping[str, Any] | None = None,
    code: Mapping[str, Any] | None = None,
) -> Trackers:
    """The trackers that `config` asks for.

    Args:
        run_folder: runs/<name>; its last part names the run in W&B.
        config: which trackers.
        total_steps: steps of the whole run, for the progress bar.
        resumed_step: the step of the checkpoint that the run goes on from; files forget what came after it.
        run_config: the resolved configuration, shown by W&B.
        code: which code runs (launch/attempts.py), shown by W&B.
    """
    trackers: list[RunTracker] = [JsonlTracker(run_folder, resumed_step=resumed_step)]
    if config.console:
        trackers.append(ConsoleTracker(total_steps))
    if wandb_mode(config) != "disabled":
        from launch.wandb_tracker import WandbTracker

        trackers.append(WandbTracker(run_folder, config, run_config=run_config or {}, code=code or {}))
    return Trackers(*trackers)


class JsonlTracker(RunTracker):
    """metrics.jsonl, histograms.jsonl, rollouts/step_N.jsonl and summary.json of a run's folder."""

    def __init__(self, run_folder: Path, *, resumed_step: int = 0) -> None:
        self._folder = run_folder
        self._metrics = run_folder / "metrics.jsonl"
        self._histograms = run_folder / "histograms.jsonl"
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

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Append one line; it counts once metrics.jsonl has the step."""
        with self._histograms.open("a", encoding="utf-8") as file:
            file.write(json_lines([{"step": step} | {name: vars(value) for name, value in histograms.items()}]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_summary(self._folder, summary)

    def _forget_after(self, resumed_step: int) -> int:
        """Drop what a killed run wrote after its checkpoint, half a line included; returns the last step kept."""
        for path in (self._histograms, self._metrics):
            kept = [line for line in (read_jsonl(path) if path.exists() else []) if line["step"] <= resumed_step]
            write_atomically(path, json_lines(kept))
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
        self._is_gone = False
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
        self._guard(lambda: self._log(step, metrics))

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
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
        self._guard(lambda: self._phase(name, done, total, numbers))

    def _phase(self, name: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
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

    def close(self, error: BaseException | None = None) -> None:
        """Give the terminal back, its cursor included."""
        if self._is_live:
            self._guard(self._progress.stop)

    def _guard(self, show: Callable[[], None]) -> None:
        """Nobody need look: a terminal that is gone ends nothing, though rich makes SystemExit of a broken pipe."""
        if self._is_gone:
            return
        try:
            show()
        except (Exception, SystemExit) as error:
            self._is_gone = self._console.quiet = True
            log.warning(
                "The console cannot be written to (%s): the run goes on, and metrics.jsonl has every number.",
                type(error).__name__,
            )

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
