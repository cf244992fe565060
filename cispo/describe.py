"""A step in numbers: from its intake and its updates to the documented metrics (docs/metrics.md).

Rewards, lengths and verdicts are over every group that was sampled, flat ones included: over kept groups alone they
would say how hard the kept prompts are and not how good the policy is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from cispo.metrics import merge_all, quantile
from cispo.types import (
    Group,
    Harvest,
    PackedBatch,
    Score,
    UpdateResult,
)


def describe(harvest: Harvest, batches: Sequence[PackedBatch], updates: Sequence[UpdateResult]) -> dict[str, float]:
    """Every metric of one step but for timings and evaluations; a metric of nothing is left out, never made up."""
    metrics = (
        reward_metrics(harvest.seen)
        | length_metrics(harvest.seen)
        | episode_metrics(harvest.seen)
        | intake_metrics(harvest)
        | update_metrics(batches, updates)
    )
    metrics["ratio/nonfinite"] = metrics.get("ratio/nonfinite", 0.0) + num_nonfinite(harvest.groups)
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """reward/mean, reward/<part>/mean, reward/<task>/mean, reward/correct/mean and verdict/<name>_fraction."""
    values: dict[str, list[float]] = defaultdict(list)
    verdicts: Counter[str] = Counter()
    for group in groups:
        for score in group.scores:
            verdicts[score.verdict.value] += 1
            if score.usable:
                for name, value in _reward_entries(group.prompt.task, score):
                    values[name].append(value)
    fractions = {f"verdict/{name}_fraction": n / verdicts.total() for name, n in sorted(verdicts.items())}
    return {name: _mean(entries) for name, entries in sorted(values.items())} | fractions


def _reward_entries(task: str, score: Score) -> Iterable[tuple[str, float]]:
    yield "reward/mean", score.value
    yield "reward/correct/mean", float(score.correct)
    yield f"reward/{task}/mean", score.value
    for part, value in score.parts.items():
        yield f"reward/{part}/mean", value


def length_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """response_length/*, in action tokens of a trajectory."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    lengths = [float(trajectory.num_actions) for trajectory in trajectories]
    return {
        "response_length/mean": _mean(lengths),
        "response_length/p50": quantile(lengths, 0.5),
        "response_length/p90": quantile(lengths, 0.9),
        "response_length/p99": quantile(lengths, 0.99),
        "response_length/max": max(lengths, default=math.nan),
        "response_length/truncated_fraction": _mean([t.stop_reason.is_truncated for t in trajectories]),
    }


def episode_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """episode/*: turns, calls of tools, and why episodes ended."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    calls = [[span for span in trajectory.observations if span.tool] for trajectory in trajectories]
    reasons = Counter(trajectory.stop_reason.value for trajectory in trajectories)
    return {
        "episode/turns_mean": _mean([trajectory.num_turns for trajectory in trajectories]),
        "episode/tool_calls_mean": _mean([len(spans) for spans in calls]),
        "episode/tool_errors_fraction": _mean([span.is_error for spans in calls for span in spans]),
    } | {f"episode/stop_{reason}_fraction": n / len(trajectories) for reason, n in sorted(reasons.items())}


def intake_metrics(harvest: Harvest) -> dict[str, float]:
    """groups/*: how much of what was drawn could be used, and why not the rest."""
    drawn = max(harvest.drawn, 1)
    return {f"groups/{reason}_fraction": harvest.dropped.get(reason, 0) / drawn for reason in DROP_REASONS} | {
        "tokens/generated": float(harvest.num_generated),
        "groups/drawn": float(harvest.drawn),
        "groups/trained": float(len(harvest.groups)),
    }


DROP_REASONS = ("flat", "stale", "failed")


def num_nonfinite(groups: Sequence[Group]) -> int:
    """Actions of scored trajectories whose behaviour log-probability is not finite: credit leaves them out."""
    return sum(
        int((trajectory.action_mask_T & ~np.isfinite(trajectory.behaviour_logp_T)).sum())
        for group in groups
        for trajectory, score in zip(group.trajectories, group.scores, strict=True)
        if score.usable
    )


def num_trained(batches: Sequence[PackedBatch], updates: Sequence[UpdateResult]) -> int:
    """Tokens that a step learnt from: those of the updates that were made."""
    made = zip(batches, updates, strict=False)  # kl_stop leaves batches without an update
    return sum(batch.num_learnt for batch, update in made if not update.skipped)


def update_metrics(batches: Sequence[PackedBatch], updates: Sequence[UpdateResult]) -> dict[str, float]:
    """actor/*, ratio/*, drift/*, mismatch/*, moe/* and staleness/*."""
    merged = {name: float(metric) for name, metric in merge_all(update.metrics for update in updates).items()}
    merged.pop("drift/kl", None)
    stepped = [update for update in updates if not update.skipped]
    kls = [update.kl for update in updates]
    ages = [row.age_T[row.mask_T] for batch in batches for row in batch.rows]
    age_T = np.concatenate(ages) if ages else np.empty(0)
    return merged | {
        "actor/loss": _mean([update.loss for update in updates]),
        "actor/grad_norm": _mean([update.grad_norm for update in updates]),
        "actor/lr": _mean([update.lr for update in stepped]),
        "drift/kl_mean": _mean(kls),
        "drift/kl_p95": quantile(kls, 0.95),
        "drift/skipped_updates": float(len(batches) - len(stepped)),
        "tokens/trained": float(num_trained(batches, updates)),
        "staleness/mean": float(age_T.sum() / len(age_T)) if len(age_T) else math.nan,
        "staleness/max": float(age_T.max(initial=0)) if len(age_T) else math.nan,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
