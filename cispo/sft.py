"""Cold start: supervised training on demonstrations, so that RL has something to sharpen.

It is the same update as RL with other parameter values: the ratio band [1, 1] makes every ratio 1, the advantage is 1,
and what remains of the objective is the mean log-likelihood of the demonstrated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cispo.errors import CispoError, ConfigError, faults_of
from cispo.optimizer import OptimizerConfig
from cispo.packing import pack
from cispo.protocols import Learner, Tracker
from cispo.schedule import Schedule, check_schedule, value_at
from cispo.types import PackedBatch, Sample, UpdateSettings


@dataclass(frozen=True)
class SftConfig:
    """The cold start.

    Attributes:
        steps: optimizer updates; 0 skips the cold start.
        batch_size: demonstrations in each.
        lr: learning rate, a number or knots [[step, value], ...].
        max_grad_norm: global gradient norm to clip to.
        router_aux_coef: weight of the router's load-balancing loss.
        log_every: updates between two lines of progress.
        optimizer: AdamW's settings; RL begins with a fresh optimizer of its own.
    """

    steps: int = 0
    batch_size: int = 64
    lr: Schedule = 1e-3
    max_grad_norm: float = 1.0
    router_aux_coef: float = 0.01
    log_every: int = 20
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(betas=(0.9, 0.98)))

    def __post_init__(self) -> None:
        faults = faults_of(check_schedule, "sft.lr", self.lr, least=0.0)
        if self.steps < 0 or self.batch_size < 1 or self.log_every < 1:
            faults.append(
                f"sft.steps must not be negative and sft.batch_size and sft.log_every must be at least 1; "
                f"got {self.steps}, {self.batch_size} and {self.log_every}."
            )
        if faults:
            raise ConfigError(*faults)


@dataclass(frozen=True)
class Demonstration:
    """One tokenised example: the model learns the completion, given the prompt.

    Attributes:
        prompt_ids: never learnt.
        completion_ids: all that follows.
        observed: (start, stop) places in the completion that an environment wrote: given like the prompt.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    observed: tuple[tuple[int, int], ...] = ()


def cold_start(
    learner: Learner,
    demonstrations: Callable[[int], Sequence[Demonstration]],
    config: SftConfig,
    *,
    max_row_tokens: int,
    tracker: Tracker,
) -> float:
    """Train `config.steps` updates; demonstrations(step) gives the examples of one. Returns the last loss.

    Raises CispoError when the loss is not finite.
    """
    learner.new_optimizer(config.optimizer)
    loss = float("nan")
    for step in range(config.steps):
        batch = demonstration_batch(demonstrations(step), max_row_tokens=max_row_tokens)
        result = learner.update(batch, _settings(config, step))
        if result.skipped:
            raise CispoError(
                f"cold start, update {step + 1}: the loss or its gradient is not finite (loss {result.loss:g}, "
                f"gradient norm {result.grad_norm:g}); lower sft.lr, now {value_at(config.lr, step):g}."
            )
        # The balancing loss has to come off again: what people watch is the negative log-likelihood of a token.
        auxiliary = result.metrics.get("moe/aux_loss")
        loss = result.loss - config.router_aux_coef * (float(auxiliary) if auxiliary is not None else 0.0)
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            tracker.phase("cold start", step + 1, config.steps, loss=loss, grad_norm=result.grad_norm)
    return loss


def demonstration_batch(demonstrations: Sequence[Demonstration], *, max_row_tokens: int) -> PackedBatch:
    """The demonstrations of one update; every completion token weighs the same."""
    samples = [_sample(index, demonstration) for index, demonstration in enumerate(demonstrations)]
    return pack(samples, num_batches=1, aggregation="token", max_row_tokens=max_row_tokens)[0]


def _settings(config: SftConfig, step: int) -> UpdateSettings:
    return UpdateSettings(
        lr=value_at(config.lr, step),
        ratio_cap=1.0,
        ratio_floor=1.0,
        max_grad_norm=config.max_grad_norm,
        router_aux_coef=config.router_aux_coef,
    )


def _sample(index: int, demonstration: Demonstration) -> Sample:
    tokens_T = np.array(demonstration.prompt_ids + demonstration.completion_ids, dtype=np.int64)
    # Without a prompt the first token has nothing before it that could predict it.
    num_prompt = len(demonstration.prompt_ids)
    mask_T = np.arange(len(tokens_T)) >= max(1, num_prompt)
    for start, stop in demonstration.observed:
        mask_T[num_prompt + start : num_prompt + stop] = False
    return Sample(
        group=index,
        member=0,
        tokens_T=tokens_T,
        mask_T=mask_T,
        behaviour_logp_T=np.zeros(len(tokens_T), dtype=np.float32),
        advantage_T=mask_T.astype(np.float32),
        version_T=np.full(len(tokens_T), -1, dtype=np.int64),
    )
