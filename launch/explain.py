"""What a run will do, from its configuration: sections of (what, how much), and warnings of what is legal and useless.

Token counts are upper bounds: every trajectory is taken to be as long as it may be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cispo.schedule import Schedule, value_at
from configs.schema import RunConfig
from launch.estimate import checkpoint_bytes, export_bytes, learner_memory, worker_memory
from launch.plan import Plan
from launch.plan_words import count, num_due, schedule_text, short, size
from launch.useless import useless
from model.config import HybridConfig
from model.sizes import active_parameters, model_parameters

Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """What a configuration does not say by itself.

    Attributes:
        shape: the policy's architecture, with the vocabulary of its tokenizer.
        train_rows: training prompts of each set of files.
        num_held_out: prompts that an evaluation asks, of all tasks.
    """

    shape: HybridConfig
    train_rows: Mapping[str, int] = field(default_factory=dict)
    num_held_out: int = 0


def explain(config: RunConfig, facts: Facts) -> Plan:
    """What the settings mean together. Pure arithmetic; the configuration must have passed its checks."""
    sections = {
        "a step": _step(config),
        "the objective": _objective(config),
        "the learner": _learner(config, facts.shape),
        "the workers": _workers(config, facts.shape),
        "the run": _run(config, facts),
    }
    return Plan({title: list(pairs) for title, pairs in sections.items()}, useless(config, facts.shape))


def _step(config: RunConfig) -> Pairs:
    trajectories, updates = config.groups_per_step * config.group_size, config.updates_per_step
    longest, learner = config.longest_trajectory, config.learner
    tokens = trajectories * longest
    rows = math.ceil(tokens / updates / max(learner.max_row_tokens, longest))
    yield (
        "trajectories",
        f"{config.groups_per_step} prompts x {config.group_size} samples = {trajectories} trajectories",
    )
    limit = "episode.max_tokens" if config.episode.max_tokens else "engine.max_length"
    yield (
        "tokens",
        f"at most {short(tokens)}, prompts included, if each has {limit}={longest}; "
        f"{short(trajectories * value_at(config.sampling.max_new_tokens, 0))} of them sampled if each fills its window",
    )
    if config.rollout.draw_limit > 1:
        most = math.floor(config.rollout.draw_limit * config.groups_per_step)
        yield "flat groups", f"are replaced: at most {most} prompts are drawn (rollout.draw_limit)"
    else:
        yield "flat groups", "are dropped and not replaced (rollout.draw_limit=1), so updates get smaller"
    yield (
        "updates",
        f"{count(updates, 'update')} of {config.groups_per_step / updates:g} groups = {trajectories / updates:g} "
        f"trajectories, at most {short(tokens / updates)} tokens each",
    )
    share = math.ceil(rows / learner.num_shards)
    yield (
        "rows",
        f"about {rows} of {max(learner.max_row_tokens, longest)} tokens in such an update, "
        f"{share} for each of the learner's {count(learner.num_shards, 'shard')}: so many passes forward and backward",
    )


def _objective(config: RunConfig) -> Pairs:
    correction, updates, stale = config.correction, config.updates_per_step, config.max_staleness
    yield "name", objective_name(config)
    yield (
        "ratio",
        f"clipped to [{config.ratio_floor:g}, {schedule_text(config.ratio_cap)}], against the "
        f"{'policy that sampled' if correction.ratio_against == 'behaviour' else 'weights at the start of the step'}",
    )
    yield "mask", _mask_text(config)
    yield (
        "staleness",
        f"trajectories up to {stale} versions old and {updates - 1} updates of their own step before: up to "
        f"{(stale + 1) * updates - 1} updates between sampling and learning",
    )
    if correction.ratio_against == "proximal":
        yield "correction", f"each token weighs min(proximal/behaviour, {correction.cap:g}) too"
    for kind, is_on in (("token", correction.masks_tokens), ("sequence", correction.masks_sequences)):
        if is_on:
            below, above = getattr(correction, f"{kind}_mask_below"), getattr(correction, f"{kind}_mask_above")
            yield f"{kind} mask", f"{kind}s whose proximal/behaviour is outside [{below:g}, {above:g}] are rejected"
    if correction.replay_experts:
        yield "experts", "those visited in sampling are visited in learning"
    yield (
        "mean over",
        {
            "prompt": "tokens of a prompt's group, then prompts",
            "token": "all tokens of an update",
            "sample": "tokens of a trajectory, then trajectories",
            "sample_and_token": "half by trajectory, half by token",
        }[config.aggregation],
    )
    yield (
        "advantage",
        {
            "std": "reward less the group's mean, over the group's std",
            "mean": "reward less the group's mean",
            "batch": "reward less the group's mean, over the std of the batch",
        }[config.normalise],
    )
    guards = [f"{name}={value:g}" for name, value in _guards(config) if value]
    yield "guards", ", ".join(guards) or "none but warnings (kl_step and kl_stop are off)"


def _guards(config: RunConfig) -> list[tuple[str, float]]:
    return [("kl_step", config.kl_step), ("kl_stop", config.kl_stop)]


def objective_name(config: RunConfig) -> str:
    """What people call these values; docs/algorithm.md has the table."""
    is_masked = config.mask_above != math.inf or config.mask_below != 0.0
    cap = max(_values(config.ratio_cap))
    if cap == 1.0 and config.ratio_floor == 1.0:
        return "REINFORCE: every ratio counts as 1"
    if cap == math.inf:
        return "PPO's clipping, as in GRPO and DAPO (no cap, a mask)" if is_masked else "policy gradient without a cap"
    return "CISPO with the unified mask" if is_masked else "CISPO"


def _mask_text(config: RunConfig) -> str:
    if config.mask_above == math.inf and config.mask_below == 0.0:
        return "none: every token keeps its gradient"
    return f"tokens outside [{config.mask_below:g}, {config.mask_above:g}] that would move further out are dropped"


def _learner(config: RunConfig, shape: HybridConfig) -> Pairs:
    learner = config.learner
    how = {
        "local": f"{learner.copies} copies" if learner.num_ranks > 1 else "one process",
        "deepspeed": f"ZeRO stage {learner.deepspeed.stage}",
        "megatron": str(learner.layout),
    }[learner.kind]
    yield "layout", f"{learner.kind} on {count(learner.num_ranks, 'rank')} ({how}), {learner.dtype}, {learner.device}"
    if learner.num_ranks > 1:
        yield "shards", f"{learner.num_shards} that learn from different rows"
    yield "learning rate", schedule_text(learner.lr)
    memory = learner_memory(config, shape)
    if memory is None:
        yield "memory", f"not known of model.shape.family={shape.family}"
        return
    whole, active = model_parameters(shape), active_parameters(shape)
    yield "parameters", f"{short(whole.total)}, {short(active.body + active.head)} of them for each token"
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "moments and masters": memory.optimizer,
        "activations": memory.activations,
        "head": memory.head,
    }
    yield "memory of a rank", f"{size(memory.total)}: {', '.join(f'{k} {size(v)}' for k, v in parts.items() if v)}"
    if learner.kind == "deepspeed" and learner.deepspeed.offload_optimizer:
        yield (
            "in the host's memory",
            "moments and masters" + (" and weights" if learner.deepspeed.offload_weights else ""),
        )


def _workers(config: RunConfig, shape: HybridConfig) -> Pairs:
    engine, cluster = config.engine, config.cluster
    slots = cluster.num_workers * engine.num_slots
    yield (
        "engines",
        f"{cluster.num_workers} x {engine.num_slots} sequences = {slots} at a time, up to {engine.max_length} tokens, "
        f"engine {engine.kind}",
    )
    waves = config.groups_per_step * config.group_size / slots
    yield "a step", f"{waves:.3g} times as many trajectories as sequences that are sampled at a time"
    memory = worker_memory(config, shape)
    if memory:
        yield (
            "memory of each",
            f"{size(memory.total)} on {engine.device}: weights {size(memory.weights)}, states, keys and values "
            f"{size(memory.states)}",
        )
    if config.learner_gpus or config.worker_gpus or config.learner.device.startswith("cuda"):
        yield "GPUs", gpu_text(config)


def gpu_text(config: RunConfig) -> str:
    """How many GPUs are kept for whom."""
    learner = f"{config.learner_gpus} for the learner" if config.learner_gpus else "the learner shares with the workers"
    there = config.cluster.num_nodes * config.cluster.gpus_per_node
    of_those = f", of {there} that there are to be" if there else ""
    return f"{learner}, {config.worker_gpus:g} for workers ({config.cluster.gpus_per_worker:g} each){of_those}"


def _sum_over_steps(schedule: Schedule, steps: int) -> float:
    if isinstance(schedule, int | float):
        return float(schedule) * steps
    return sum(value_at(schedule, step) for step in range(steps))


def _run(config: RunConfig, facts: Facts) -> Pairs:
    steps, prompts = config.steps, config.steps * config.groups_per_step
    windows = _sum_over_steps(config.sampling.max_new_tokens, steps)
    trained = steps * config.groups_per_step * config.group_size
    yield (
        "steps",
        f"{steps} with {steps * config.updates_per_step} updates, {prompts} prompts and {trained} trajectories",
    )
    yield (
        "sampled tokens",
        f"at most {short(windows * config.groups_per_step * config.group_size)}, if every trajectory fills its window",
    )
    yield from _data(config, facts, prompts)
    if config.sft.steps:
        yield "cold start", f"{config.sft.steps} updates of {config.sft.batch_size} demonstrations"
    answers = facts.num_held_out * (config.evaluation.num_samples + config.evaluation.greedy)
    every = f", every {config.eval_every} steps" if config.eval_every else ""
    yield (
        "evaluations",
        f"{num_due(config.eval_every, steps)}{every}; {facts.num_held_out} prompts and {answers} answers each",
    )
    state, export = checkpoint_bytes(facts.shape), export_bytes(facts.shape)
    often = f", every {config.save_every} steps" if config.save_every else ""
    yield (
        "checkpoints",
        f"{num_due(config.save_every, steps)}{often}; the newest {config.checkpoints.keep} stay"
        + (f", {size(state)} each, and {size(export)} of the exported policy" if state and export else ""),
    )


def _data(config: RunConfig, facts: Facts, prompts: int) -> Pairs:
    weights = {name: weight for name, weight in config.task.mixture.items() if weight > 0}
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        if name in facts.train_rows:
            rows = facts.train_rows[name]
            many = f"{rows} prompts, each {prompts * share / rows:.3g} times, or more where flat groups are replaced"
        else:
            many = "made anew for every draw"
        yield f"prompts of {name}", f"{share:.0%} of draws; {many}"


def _values(schedule: Schedule) -> list[float]:
    return [float(schedule)] if isinstance(schedule, int | float) else [value for _, value in schedule]
