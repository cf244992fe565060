"""What a run needs of memory and disk, by arithmetic from its configuration (model/sizes.py, model/memory.py).

Nothing is built, and what those two leave out is left out here. Sizes are known of the family minimax; for others the
functions say None.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cispo.learner.config import LearnerConfig
from configs.schema import RunConfig
from model.config import HybridConfig
from model.memory import BFLOAT16, FLOAT32, RankMemory, Storage, Work, rank_memory, sampling_bytes
from model.sizes import model_parameters

STATE_BYTES = 12
"""Of a checkpoint, for each parameter: its float32 weight and AdamW's two moments."""


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one rollout worker whose engine is the policy itself.

    Attributes:
        weights: of its policy.
        states: of all its slots: states, keys and values.
    """

    weights: int
    states: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.states


def is_known(shape: HybridConfig) -> bool:
    """True if the sizes of this architecture are."""
    return shape.family == "minimax"


def learner_memory(config: RunConfig, shape: HybridConfig) -> RankMemory | None:
    """Bytes of the rank that needs most; what is offloaded to the host is not among them."""
    if not is_known(shape):
        return None
    learner = config.learner
    narrow = dataclasses.replace(shape, param_dtype=learner.dtype)
    work = Work(max(learner.max_row_tokens, config.longest_trajectory), learner.recompute)
    stages = [
        rank_memory(narrow, learner.layout, learner.num_ranks, storage_of(learner), work, stage)
        for stage in range(learner.layout.pipeline)
    ]
    largest, settings = max(stages, key=lambda memory: memory.total), learner.deepspeed
    if learner.kind == "deepspeed" and settings.offload_optimizer:
        largest = dataclasses.replace(largest, optimizer=0)
    if learner.kind == "deepspeed" and settings.offload_weights:
        largest = dataclasses.replace(largest, weights=0)
    return largest


def storage_of(learner: LearnerConfig) -> Storage:
    """Bytes for each parameter, and what ranks share out."""
    shared = {
        "local": 3 if learner.copies == "sharded" else 0,
        "deepspeed": learner.deepspeed.stage,
        "megatron": 1,
    }[learner.kind]
    return dataclasses.replace(BFLOAT16 if learner.dtype == "bfloat16" else FLOAT32, zero=shared)


def worker_memory(config: RunConfig, shape: HybridConfig) -> WorkerMemory | None:
    """Bytes of a worker; None where the policy does not sample itself, or its sizes are not known."""
    if config.engine.kind != "hybrid" or not is_known(shape):
        return None
    states = sampling_bytes(
        shape, config.engine.num_slots, config.engine.max_length, records_experts=config.correction.replay_experts
    )
    return WorkerMemory(_weight_bytes(shape), states)


def checkpoint_bytes(shape: HybridConfig) -> int | None:
    """Of a checkpoint, without the rollouts that it keeps."""
    return STATE_BYTES * model_parameters(shape).total if is_known(shape) else None


def export_bytes(shape: HybridConfig) -> int | None:
    """Of the exported policy."""
    return _weight_bytes(shape) if is_known(shape) else None


def _weight_bytes(shape: HybridConfig) -> int:
    parameters = model_parameters(shape)
    routers = parameters.routers * (4 - shape.dtype.itemsize)  # float32 whatever the others are
    return parameters.total * shape.dtype.itemsize + routers
