"""Held-out accuracy: greedy once, and sampled k times for mean@k and pass@k, by task and over all tasks.

pass@k is the unbiased estimate of Chen et al. (arXiv 2107.03374, equation 1): 1 - C(n - c, k) / C(n, k) of n samples,
c of them correct.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cispo.errors import ConfigError
from cispo.protocols import Learner, RolloutSource
from cispo.types import Floats, Group, Prompt, Trajectory


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured.

    Attributes:
        num_prompts: held-out prompts of each task.
        num_samples: sampled answers to each, at the training temperature.
        pass_at: the k of pass@k; at most num_samples.
        greedy: measure greedy decoding too.
    """

    num_prompts: int = 128
    num_samples: int = 4
    pass_at: int = 4
    greedy: bool = True

    def __post_init__(self) -> None:
        if min(self.num_prompts, self.num_samples, self.pass_at) < 1 or self.pass_at > self.num_samples:
            raise ConfigError(
                f"evaluation needs num_prompts, num_samples and pass_at of at least 1 and pass_at <= num_samples; got "
                f"{self.num_prompts}, {self.num_samples} and {self.pass_at}."
            )


Measure = Callable[[Group], float]
Probe = Callable[[Trajectory], Mapping[str, float]]
"""More metrics, from one trajectory that was sampled for the evaluation."""


class HeldOutEvaluator:
    """Implements the Evaluator protocol on the rollout workers, with whatever weights they have.

    `probe` is shown the first trajectory of each evaluation: the learner's, which has the same weights then.
    """

    def __init__(
        self,
        rollouts: RolloutSource,
        prompts: Sequence[Prompt],
        config: EvaluationConfig,
        probe: Probe | None = None,
    ) -> None:
        self.rollouts = rollouts
        self.prompts = list(prompts)
        self.config = config
        self.probe = probe
        self.last_groups: list[Group] = []

    def evaluate(self) -> dict[str, float]:
        """`eval/<task>/mean@k`, `eval/<task>/pass@k`, `eval/<task>/greedy`; `all` is the mean over tasks.

        With a probe, its metrics too.
        An answer that could not be scored is left out of its mean.
        """
        config = self.config
        metrics: dict[str, float] = {}
        sampled = self.rollouts.sample(self.prompts, num_samples=config.num_samples, greedy=False)
        self.last_groups = sampled
        metrics |= by_task(sampled, f"mean@{config.num_samples}", mean_correct)
        metrics |= by_task(sampled, f"pass@{config.pass_at}", lambda group: pass_at_k(group, config.pass_at))
        if self.probe and sampled:
            metrics |= self.probe(sampled[0].trajectories[0])
        if config.greedy:
            metrics |= by_task(self.rollouts.sample(self.prompts, num_samples=1, greedy=True), "greedy", mean_correct)
        return metrics


def probe_of(learner: Learner, *, can_compare: bool) -> Probe:
    """What a learner says of a trajectory that was sampled with its present weights.

    `can_compare` says that its tokens were drawn from what `text_logp` gives: not at another temperature, truncated, or
    with experts that learning is told to visit again.
    """

    def probe(trajectory: Trajectory) -> dict[str, float]:
        found = dict(learner.probe(trajectory))
        if can_compare:
            found |= sampling_mismatch(trajectory, learner.text_logp(trajectory.token_ids_T))
        return found

    return probe


def sampling_mismatch(trajectory: Trajectory, logp_T: Floats) -> dict[str, float]:
    """How far the learner is from the worker that sampled a trajectory with the very same weights, in nats.

    A run whose workers are always ahead trains on no such token, and would never see a worker with wrong weights.

    Args:
        trajectory: sampled at temperature 1 from the whole distribution.
        logp_T: the learner's log-probabilities of its tokens.
    """
    mask_T = trajectory.action_mask_T
    log_ratio_N = (logp_T - trajectory.behaviour_logp_T)[mask_T].astype(np.float64)
    if not log_ratio_N.size:
        return {}
    return {
        "mismatch/eval_kl": float((np.expm1(log_ratio_N) - log_ratio_N).mean()),
        "mismatch/eval_logp_abs_diff_mean": float(np.abs(log_ratio_N).mean()),
    }


def guess_accuracy(prompts: Sequence[Prompt]) -> dict[str, float]:
    """By task the share of its prompts that have its most frequent right answer; "all" is the mean over tasks.

    A policy that has learnt no more than which answer is frequent scores that. Where several answers are right it is a
    lower bound. Tasks whose references hold no answer, such as programs, are left out.
    """
    answers: dict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        reference = prompt.reference
        answer = reference.get("answer") if isinstance(reference, Mapping) else reference
        if isinstance(answer, str | int | float):
            answers[prompt.task].append(str(answer))
    shares = {task: max(Counter(given).values()) / len(given) for task, given in sorted(answers.items())}
    if shares:
        shares["all"] = sum(shares.values()) / len(shares)
    return shares


def by_task(groups: Sequence[Group], what: str, measure: Measure) -> dict[str, float]:
    """`eval/<task>/<what>` for each task and, as the mean over tasks, for `all`; NaN measures are left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        value = measure(group)
        if not math.isnan(value):
            values[group.prompt.task].append(value)
    means = {task: sum(entries) / len(entries) for task, entries in sorted(values.items())}
    if means:
        means["all"] = sum(means.values()) / len(means)
    return {f"eval/{task}/{what}": value for task, value in means.items()}


def mean_correct(group: Group) -> float:
    """Share of the group's usable answers that are correct; NaN if none is usable."""
    correct = [score.correct for score in group.scores if score.usable]
    return sum(correct) / len(correct) if correct else math.nan


def pass_at_k(group: Group, k: int) -> float:
    """Unbiased estimate of the chance that one of k answers is correct; NaN with fewer than k usable ones."""
    correct = [score.correct for score in group.scores if score.usable]
    n, c = len(correct), sum(correct)
    if n < k:
        return math.nan
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
