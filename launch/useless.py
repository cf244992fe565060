"""Settings that are legal together and do nothing, or hardly what was meant: the warnings of a plan.

One function for each kind, which yields a sentence with the values and what to change.
"""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import RunConfig
from launch.estimate import learner_memory, worker_memory
from model.config import HybridConfig

Warnings = Iterator[str]
SMALL_GROUP = 4
"""Below it, the standard deviation of a group's rewards says little."""


def useless(config: RunConfig, shape: HybridConfig) -> list[str]:
    """Every warning about a configuration that has passed its checks."""
    kinds = (_ratio, _updates, _advantages, _schedule, _lengths, _tasks, _places)
    return [warning for kind in kinds for warning in kind(config)] + list(_memory(config, shape))


def _ratio(config: RunConfig) -> Warnings:
    does_nothing = "so ratio_cap, ratio_floor and the mask do nothing"
    if config.updates_per_step == 1 and config.max_staleness == 0:
        yield (
            f"with one update per step and no staleness every ratio is 1, {does_nothing}; raise updates_per_step or "
            f"max_staleness if you meant to train off-policy"
        )
    elif config.updates_per_step == 1 and config.correction.ratio_against == "proximal":
        yield (
            f"with one update per step the ratio against the proximal policy is always 1, {does_nothing}; raise "
            f"updates_per_step or take correction.ratio_against=behaviour"
        )
    if 0.0 < config.ratio_floor < 1.0:
        yield (
            f"ratio_floor={config.ratio_floor:g} raises the weight of tokens that the policy has left already; the "
            f"published setting is ratio_floor=0"
        )


def _updates(config: RunConfig) -> Warnings:
    groups = config.groups_per_step
    if groups < config.updates_per_step:
        yield (
            f"updates_per_step={config.updates_per_step} cannot be made of groups_per_step={groups}, because a group "
            f"is never split: a step has {groups} updates at most"
        )
    shards, samples = config.learner.num_shards, groups * config.group_size / config.updates_per_step
    if samples < shards:
        yield (
            f"an update of {samples:g} trajectories leaves some of the learner's {shards} shards without a row; lower "
            f"updates_per_step or learner.num_ranks"
        )


def _advantages(config: RunConfig) -> Warnings:
    if config.group_size < SMALL_GROUP and config.normalise == "std":
        yield (
            f"normalise=std divides by the standard deviation of group_size={config.group_size} rewards, which is "
            f"little more than their sign; raise group_size, or take normalise=mean or batch"
        )
    if not any(config.rewards.weights.values()) and not config.rewards.custom:
        yield "every weight in rewards.weights is 0, so no group has a signal and nothing is learnt"


def _schedule(config: RunConfig) -> Warnings:
    if config.eval_every > config.steps:
        yield (
            f"eval_every={config.eval_every} is more than steps={config.steps}: only the beginning and the end are "
            f"evaluated, as with eval_every=0"
        )
    if config.steps and (config.save_every == 0 or config.save_every >= config.steps):
        yield (
            f"save_every={config.save_every} saves nothing between the cold start and step {config.steps}: a run that "
            f"dies loses all its steps"
        )
    rate = config.learner.lr
    if not isinstance(rate, int | float) and rate[-1][0] > 2 * max(config.steps, 1):
        yield (
            f"learner.lr has a knot at step {rate[-1][0]:g}, and the run ends after {config.steps}; its schedule is cut"
        )
    if (rate if isinstance(rate, int | float) else max(value for _, value in rate)) == 0:
        yield "learner.lr is 0 throughout, so nothing is learnt"


def _lengths(config: RunConfig) -> Warnings:
    longest, row = config.longest_trajectory, config.learner.max_row_tokens
    if longest > row:
        yield (
            f"a trajectory may have {longest} tokens and a packed row learner.max_row_tokens={row}: a longer one gets "
            f"a row of its own, so the learner needs memory for {longest}"
        )
    overlong = config.rewards.soft_overlong
    begins = overlong.limit_tokens - overlong.buffer_tokens
    if overlong.limit_tokens and begins >= config.longest_window:
        yield (
            f"rewards.soft_overlong begins at {begins} tokens and sampling.max_new_tokens ends at "
            f"{config.longest_window}: it never costs anything but where a trajectory is cut off"
        )
    if config.sampling.repetition_tokens >= config.longest_window:
        yield (
            f"sampling.repetition_tokens={config.sampling.repetition_tokens} is no less than the window of "
            f"{config.longest_window} tokens, so no repetition is ever stopped"
        )


def _tasks(config: RunConfig) -> Warnings:
    unused = sorted(name for name in config.task.files if not config.task.mixture.get(name, 0.0) > 0)
    if unused:
        names = ", ".join(unused)
        yield f"task.files has {names}, which task.mixture gives no weight: nothing is drawn from there"
    if not config.sft.steps and not config.model.path:
        yield (
            "the policy begins with random weights and sft.steps=0: there is nothing yet that rewards could sharpen; "
            "name model.path or let a cold start come first"
        )


def _places(config: RunConfig) -> Warnings:
    cluster = config.cluster
    samples_on_gpu = config.engine.device.startswith("cuda") and config.engine.kind == "hybrid"
    if samples_on_gpu and cluster.kind != "inline" and not cluster.gpus_per_worker:
        yield (
            f"engine.device={config.engine.device} with cluster.gpus_per_worker=0: all {cluster.num_workers} workers "
            f"use the first GPU of their node; say how many each has, e.g. cluster.gpus_per_worker=1"
        )
    if cluster.gpus_per_worker and not samples_on_gpu and config.engine.kind == "hybrid":
        yield (
            f"cluster.gpus_per_worker={cluster.gpus_per_worker:g} keeps GPUs for workers that sample on "
            f"engine.device={config.engine.device}; say engine.device=cuda, or 0 GPUs"
        )
    if config.max_staleness and cluster.kind == "inline":
        yield (
            f"max_staleness={config.max_staleness} lets workers run ahead, which cluster.kind=inline cannot: it has "
            f"one process, and samples and learns by turns"
        )


def _memory(config: RunConfig, shape: HybridConfig) -> Warnings:
    room = config.cluster.gpu_gb * 1e9
    learner, worker = learner_memory(config, shape), worker_memory(config, shape)
    on_gpu = {
        "a rank of the learner": learner.total if learner and config.learner.device.startswith("cuda") else 0,
        "a rollout worker": worker.total if worker and config.engine.device.startswith("cuda") else 0,
    }
    part = config.cluster.gpus_per_worker
    share = min(config.cluster.num_workers, int(1 / part + 1e-9)) if 0 < part < 1 else 1
    on_gpu["a rollout worker"] *= share
    if share > 1:
        on_gpu[f"{share} rollout workers"] = on_gpu.pop("a rollout worker")
    if not config.learner_gpus and all(on_gpu.values()):
        on_gpu = {f"{' and '.join(on_gpu)}, on one GPU,": sum(on_gpu.values())}
    for what, needed in on_gpu.items():
        if needed > room:
            yield (
                f"{what} may need {needed / 1e9:.1f} GB, and cluster.gpu_gb={config.cluster.gpu_gb:g}; docs/scaling.md "
                f"says what helps in which order (learner.recompute, shards and layouts, fewer engine.num_slots)"
            )
