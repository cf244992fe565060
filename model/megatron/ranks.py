"""The process groups of a layout, and where among them this process stands."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from model.config import HybridConfig
from model.layout import Layout
from model.layout_faults import check_layout
from model.megatron.config import virtual_stages


@dataclass(frozen=True)
class Place:
    """Where this rank stands.

    Attributes:
        data_rank, num_data_ranks: data ranks learn from different rows.
        is_reporter: of the ranks with the last stage, one for each data and context rank: their losses and metrics
            together are those of the update, each counted once.
    """

    data_rank: int
    num_data_ranks: int
    is_reporter: bool


def initialise_ranks(config: HybridConfig, layout: Layout) -> Place:
    """Form megatron's process groups among the processes of torch.distributed, which must be initialised.

    Raises ModelError, with every reason and the nearest layouts that work, unless `config` can lie over them so.
    """
    check_layout(config, layout, dist.get_world_size())
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=virtual_stages(layout),
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.tensor,
    )
    model_parallel_cuda_manual_seed(0)  # nothing is drawn, but megatron's code asks for its generators
    return Place(
        data_rank=parallel_state.get_data_parallel_rank(),
        num_data_ranks=parallel_state.get_data_parallel_world_size(),
        is_reporter=parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0,
    )


def forget_ranks() -> None:
    """Dissolve the process groups, so that another layout can take their place."""
    parallel_state.destroy_model_parallel()
