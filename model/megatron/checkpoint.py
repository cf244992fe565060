"""To disk and back: megatron's checkpoints to go on from, and model folders for everybody else.

A checkpoint is written by all ranks together, each its parts, and read under any layout. Of what megatron's optimizer
saves, only the moments and float32 weights are taken: the rest has the form of one layout. The settings in it are the
caller's anyway, and the number of steps is saved beside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing

from model.checkpoint import stream_folder, write_pretrained
from model.megatron.optimizer import StageOptimizer
from model.megatron.schedule import Stages
from model.megatron.weights import ParallelWeights

FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}


def save_checkpoint(stages: Stages, optimizer: StageOptimizer, folder: Path) -> None:
    """Write weights, moments and float32 weights into the existing, empty `folder`. All ranks call it together."""
    model = _model_state(stages)
    moments = _moments(optimizer, model, is_loading=False)
    state = {"model": model, "moments": moments, "num_steps": optimizer.num_steps}
    dist_checkpointing.save(state, str(folder))


def load_checkpoint(stages: Stages, optimizer: StageOptimizer, folder: Path) -> None:
    """Read what `save_checkpoint` wrote, under this layout or another of the same model."""
    model = _model_state(stages)
    moments = _moments(optimizer, model, is_loading=True)
    found = dist_checkpointing.load({"model": model, "moments": moments}, str(folder))
    for number, stage in enumerate(stages):
        stage.module.load_state_dict(found["model"][number])
    optimizer.load_moments(found["moments"], found["num_steps"])


def _model_state(stages: Stages) -> list[dict[str, Any]]:
    return [stage.module.sharded_state_dict() for stage in stages]


def _moments(optimizer: StageOptimizer, model: list[dict[str, Any]], *, is_loading: bool) -> list[dict[int, Any]]:
    """Of each of megatron's optimizers: experts that are spread over ranks have one for themselves."""
    weights = {f"{number}.{key}": value for number, state in enumerate(model) for key, value in state.items()}
    return [
        part.sharded_state_dict(weights, is_loading, metadata=dict(FORMAT))["param_state"]
        for part in optimizer.megatron.chained_optimizers
    ]


def load_folder(weights: ParallelWeights, folder: str | Path, optimizer: StageOptimizer | None = None) -> None:
    """`ParallelWeights.load` of a folder in Hugging Face layout; each rank reads the tensors that it holds parts of.

    Raises ModelError as model.checkpoint.load_pretrained does, except for numbers that are not finite.
    """
    weights.load(stream_folder(weights.blueprint, folder, weights.holds), optimizer)


def export_folder(weights: ParallelWeights, folder: str | Path, layout: str | None = None, **options: Any) -> None:
    """Write a model folder as model.checkpoint.save_pretrained does. All ranks call it together, rank 0 writes.

    It holds one file's weights at a time: `max_shard_bytes` of `options`, 5 GB unless set.
    """
    stream = weights.stream(only_first_rank=True)
    if dist.get_rank() == 0:
        write_pretrained(weights.config, stream, folder, layout, **options)
    for _ in stream:
        pass
    dist.barrier()
