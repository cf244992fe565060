"""The loop: the first file to read.

    prompts -> trajectories -> rewards -> credit -> packed batches -> updates -> weights, and again

Everything it touches is behind a protocol (cispo/protocols.py), so the same text trains in one process or over a
cluster, synchronously (max_staleness 0) or with workers running ahead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cispo.advantage import NORMALISATIONS, assign_credit, has_signal
from cispo.alarms import AlarmConfig, Alarms, warn_of_drift
from cispo.correction import CorrectionConfig, correct
from cispo.describe import describe, num_trained
from cispo.errors import CispoError, ConfigError, NoSignal, faults_of
from cispo.evidence import save_batch
from cispo.histogram import step_histograms
from cispo.learner.config import LearnerConfig
from cispo.loss import check_band, check_mask
from cispo.packing import AGGREGATIONS, pack
from cispo.protocols import Checkpoints, Evaluator, Learner, RolloutSource, Tracker, WeightSync
from cispo.records import Decode, learnt_streams, rollout_records
from cispo.schedule import Schedule, check_schedule, value_at
from cispo.stop import StopRequest
from cispo.timer import Timer
from cispo.types import Harvest, PackedBatch, Progress, UpdateResult, UpdateSettings


@dataclass(frozen=True)
class TrainerConfig:
    """The algorithm's settings: the root keys of a run's configuration.

    Attributes:
        steps: passes of the loop.
        groups_per_step: prompts whose groups one step trains on.
        group_size: trajectories sampled for each prompt.
        updates_per_step: optimizer updates that the groups of one step are split into.
        max_staleness: how many versions old a trajectory may be when it is trained on; 0 is synchronous.
        eval_every: steps between evaluations; 0 evaluates before the first and after the last step only.
        save_every: steps between checkpoints; 0 saves after the last step only.
        ratio_cap: the largest importance ratio (1 + epsilon_high), a number or knots [[step, value], ...].
        ratio_floor: the smallest one; 0 is none, as published.
        mask_above, mask_below: the unified mask's ratios (1 + epsilon_high, 1 - epsilon_low); inf and 0 are off.
        aggregation: what a mean is taken over: prompt, token, sample or sample_and_token.
        normalise: what advantages are divided by: std of the group, nothing (mean), or the std over the batch.
        kl_warn: log a warning when drift/kl_p95 exceeds it.
        kl_stop: skip the rest of a step's updates when the KL to the behaviour policy exceeds it; 0 is off.
        kl_step: scale an update's learning rate by min(1, kl_step / KL); 0 is off.
        max_barren_steps: stop after so many steps in a row without any group to learn from.
        max_nonfinite_updates: stop when so many updates in a row were skipped for a NaN or an infinity.
        correction: how the difference between the policy that sampled and the one that learns is corrected.
        alarms: when mismatch or capped ratios are worth a warning.
    """

    steps: int = 100
    groups_per_step: int = 32
    group_size: int = 8
    updates_per_step: int = 4
    max_staleness: int = 0
    eval_every: int = 10
    save_every: int = 10
    ratio_cap: Schedule = 3.0
    ratio_floor: float = 0.0
    mask_above: float = math.inf
    mask_below: float = 0.0
    aggregation: str = "prompt"
    normalise: str = "std"
    kl_warn: float = 0.1
    kl_stop: float = 0.0
    kl_step: float = 0.0
    max_barren_steps: int = 10
    max_nonfinite_updates: int = 3
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least {least}; got {getattr(self, name)}."
            for name, least in LEAST.items()
            if getattr(self, name) < least
        ]
        if self.aggregation not in AGGREGATIONS:
            faults.append(f"aggregation must be one of {', '.join(AGGREGATIONS)}; got {self.aggregation!r}.")
        if self.normalise not in NORMALISATIONS:
            faults.append(f"normalise must be one of {', '.join(NORMALISATIONS)}; got {self.normalise!r}.")
        faults += self._ratio_faults()
        if faults:
            raise ConfigError(*faults)

    def _ratio_faults(self) -> list[str]:
        faults = faults_of(check_mask, self.mask_above, self.mask_below)
        faults += (schedule := faults_of(check_schedule, "ratio_cap", self.ratio_cap))
        if schedule:
            return faults
        caps = [self.ratio_cap] if isinstance(self.ratio_cap, int | float) else [v for _, v in self.ratio_cap]
        told = [fault for cap in caps for fault in faults_of(check_band, cap, self.ratio_floor)]
        return [*faults, *dict.fromkeys(told)]

    def settings(self, learner: LearnerConfig, step: int, temperature: float) -> UpdateSettings:
        """The schedules' values for the updates of the step made after `step` finished ones."""
        return UpdateSettings(
            lr=value_at(learner.lr, step),
            ratio_cap=value_at(self.ratio_cap, step),
            ratio_floor=self.ratio_floor,
            mask_above=self.mask_above,
            mask_below=self.mask_below,
            max_grad_norm=value_at(learner.max_grad_norm, step),
            temperature=temperature,
            router_aux_coef=learner.router_aux_coef,
            kl_stop=self.kl_stop,
            kl_step=self.kl_step,
        )


LEAST = {
    "steps": 0,
    "groups_per_step": 1,
    "group_size": 2,
    "updates_per_step": 1,
    "max_staleness": 0,
    "eval_every": 0,
    "save_every": 0,
    "kl_stop": 0.0,
    "kl_step": 0.0,
    "max_barren_steps": 1,
    "max_nonfinite_updates": 1,
}


@dataclass(frozen=True)
class Parts:
    """Everybody who takes part in a run.

    Attributes:
        decode, records_per_step: what people are shown of trajectories.
        evidence: a folder for batches whose updates ended the run; None keeps none.
        stop: looked at after each step.
    """

    learner: Learner
    rollouts: RolloutSource
    weights: WeightSync
    checkpoints: Checkpoints
    evaluator: Evaluator
    tracker: Tracker
    decode: Decode
    records_per_step: int = 0
    evidence: Path | None = None
    stop: StopRequest = field(default_factory=StopRequest)


def train(config: TrainerConfig, learner_config: LearnerConfig, parts: Parts, *, temperature: float = 1.0) -> Progress:
    """Train from the newest checkpoint, or from the learner's present weights, to the last step.

    Raises:
        NoSignal: `max_barren_steps` steps in a row had nothing to learn from.
        RunStopped: somebody asked `parts.stop`; what was done is in a checkpoint.
        CispoError: too many non-finite updates, a dead learner, a deadline: what stopped the run, in one sentence.
    """
    learner, rollouts, weights, tracker = parts.learner, parts.rollouts, parts.weights, parts.tracker
    progress = parts.checkpoints.restore(learner, rollouts)
    parts.stop.end_if_asked(progress.step)  # in the cold start, which has its checkpoint by now
    published = weights.publish(learner, version=progress.step)
    if progress.step == 0:
        begin = time.perf_counter()
        evaluated = parts.evaluator.evaluate()
        tracker.log(0, {**published, **evaluated, "timing_s/evaluate": time.perf_counter() - begin})
        if config.steps:
            parts.stop.end_if_asked(0)
    save_seconds, alarms = 0.0, Alarms(config.alarms, tracker.alarm)
    while progress.step < config.steps:
        timer = Timer(save=save_seconds)
        with timer("rollout"):
            harvest = rollouts.take(
                config.groups_per_step, oldest_version=progress.step - config.max_staleness, keep=has_signal
            )
        with timer("pack"):
            samples = assign_credit(harvest.groups, normalise=config.normalise)
            batches = pack(
                samples,
                num_batches=config.updates_per_step,
                aggregation=config.aggregation,
                max_row_tokens=learner_config.max_row_tokens,
                num_ranks=learner_config.num_shards,
                version=progress.step,
            )
        corrections: dict[str, float] = {}
        if config.correction.needs_proximal:
            with timer("proximal"):
                batches, corrections = correct(learner, batches, config.correction, temperature)
        with timer("update"):
            updates = make_updates(learner, batches, config.settings(learner_config, progress.step, temperature))
        check_updates(config, progress, batches, updates, parts.evidence)
        check_signal(config, progress, harvest)
        trained_tokens = num_trained(batches, updates)
        progress = progress.after(harvest, updates, trained_tokens)
        with timer("publish"):
            published = weights.publish(learner, version=progress.step)
        metrics = describe(harvest, batches, updates) | corrections | dict(rollouts.metrics()) | dict(published)
        warn_of_drift(progress.step, metrics, config.kl_warn, tracker.alarm)
        if progress.step == config.steps or due(config.eval_every, progress.step):
            with timer("evaluate"):
                metrics |= parts.evaluator.evaluate()
        metrics |= alarms.look(progress.step, metrics)
        learnt = learnt_streams(batches, updates)
        tracker.histograms(progress.step, step_histograms(harvest.seen, learnt))
        tracker.rollouts(
            progress.step, rollout_records(harvest.groups, learnt, parts.decode, limit=parts.records_per_step)
        )
        tracker.log(
            progress.step,
            metrics
            | timer.metrics(
                generated_tokens=harvest.num_generated,
                trained_tokens=trained_tokens,
                is_overlapped=config.max_staleness > 0,
            ),
        )
        begin = time.perf_counter()
        if progress.step == config.steps or due(config.save_every, progress.step) or parts.stop.is_asked:
            parts.checkpoints.save(progress, learner, rollouts)
            if progress.step < config.steps:
                parts.stop.end_if_asked(progress.step)
        save_seconds = time.perf_counter() - begin  # the line of this step is written: it goes into the next
    return progress


def make_updates(learner: Learner, batches: Sequence[PackedBatch], settings: UpdateSettings) -> list[UpdateResult]:
    """One update for each batch, until the kl_stop guard ends the step."""
    results: list[UpdateResult] = []
    for batch in batches:
        results.append(learner.update(batch, settings))
        if results[-1].skipped == "kl_stop":
            break
    return results


def check_updates(
    config: TrainerConfig,
    progress: Progress,
    batches: Sequence[PackedBatch],
    updates: Sequence[UpdateResult],
    evidence: Path | None,
) -> None:
    """Stop a run whose updates are not finite, before it overwrites anything; their batches go below `evidence`."""
    nonfinite = longest_nonfinite_run(progress.nonfinite_updates, updates)
    if nonfinite < config.max_nonfinite_updates:
        return
    kept = ""
    if evidence is not None:
        folder = evidence / f"step_{progress.step + 1}"
        for number, (batch, update) in enumerate(zip(batches, updates, strict=False)):  # kl_stop leaves updates out
            if update.skipped == "nonfinite":
                save_batch(batch, folder / f"update_{number}.npz")
        kept = f", whose batches are in {folder}"
    raise CispoError(
        f"step {progress.step + 1}: {nonfinite} updates in a row had a loss or gradient that is not finite (the "
        f"limit is {config.max_nonfinite_updates}){kept}; lower learner.lr or set kl_stop."
    )


def check_signal(config: TrainerConfig, progress: Progress, harvest: Harvest) -> None:
    """Stop a run that has had nothing to learn from for too long."""
    if not harvest.groups and progress.barren_steps + 1 >= config.max_barren_steps:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(harvest.dropped.items())) or "none drawn"
        chief = max(harvest.dropped, key=lambda reason: harvest.dropped[reason], default="flat")
        raise NoSignal(
            f"step {progress.step + 1}: no group to learn from for {config.max_barren_steps} steps in a row; of "
            f"{harvest.drawn} groups drawn in the last: {reasons}. {ADVICE[chief]}"
        )


ADVICE = {
    "flat": "All right or all wrong teaches nothing: change the tasks' difficulty, raise group_size, or raise "
    "max_barren_steps to wait longer.",
    "failed": "The warnings above say why groups came to nothing: prompts that the engine refuses, or rewards that "
    "could not be computed.",
    "stale": "Groups come back too old: raise max_staleness, or lower groups_per_step or the length limit.",
}
"""What to do when nothing could be learnt, by the chief reason for which groups were dropped."""


def longest_nonfinite_run(before: int, updates: Sequence[UpdateResult]) -> int:
    """The most non-finite updates in a row, `before` of which ended the step before."""
    longest = run = before
    for update in updates:
        run = run + 1 if update.skipped == "nonfinite" else 0
        longest = max(longest, run)
    return longest


def due(every: int, step: int) -> bool:
    """True when something that happens `every` steps (0: never) falls on `step`."""
    return every > 0 and step % every == 0
