"""Forward and backward passes of an update's rows through megatron's schedules: one stage, 1F1B or interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from model.megatron.config import StageConfig
from model.megatron.head import ParallelHead
from model.megatron.routing import RowRouting
from model.megatron.row import RankRow, TokenRow, cut_row
from model.megatron.stage import Stage

Stages = list[DistributedDataParallel]
"""The stages of this rank, usually one, each wrapped so that gradients are added up over data ranks."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Learnt:
    """What the last stage gives to an objective, for one row; the same on all tensor ranks.

    Attributes:
        index: which of the rows given to `forward_backward`.
        places_a: int64, places in the row of the tokens that this rank learns from. Context ranks have different ones.
        hidden_aD: hidden states of the tokens before them.
        head: makes log-probabilities of them; `weighted_logp` and `logp_and_entropy` are those of model.head.Head.
        routing: what the routers decided, with `aux_loss()` and `load_imbalance()`.
    """

    index: int
    places_a: Tensor
    hidden_aD: Tensor
    head: ParallelHead
    routing: RowRouting


Objective = Callable[[Learnt], tuple[Tensor, Result]]
"""Makes of a row its loss, a scalar whose gradient is taken, and anything else. Called on the last stage only.

A row's loss is the sum of what its context ranks return; an update's is the sum over all rows of all data ranks.
"""


def build_stages(config: StageConfig) -> Stages:
    """This rank's stages, with weights of 0 until `ParallelWeights.load`; `initialise_ranks` comes first."""
    numbers = range(config.virtual_pipeline_model_parallel_size or 1)
    is_virtual = config.virtual_pipeline_model_parallel_size is not None
    wrapping = DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.params_dtype != torch.float64, use_distributed_optimizer=True
    )
    device = torch.device("cpu" if config.use_cpu_initialization else f"cuda:{torch.cuda.current_device()}")
    with device:
        stages = [Stage(config, number if is_virtual else None) for number in numbers]
    return [
        DistributedDataParallel(config, wrapping, stage, disable_bucketing=number > 0)
        for number, stage in enumerate(stages)
    ]


def forward_backward(
    stages: Stages, rows: Sequence[TokenRow], objective: Objective[Result], *, whole_gradients: bool = False
) -> list[Result]:
    """Gradients of the sum of all rows' losses, added up over all ranks; earlier gradients are forgotten.

    Args:
        stages: of this rank.
        rows: this data rank's rows, the same on all ranks that hold them together. Data ranks may differ in number.
        objective: of one row.
        whole_gradients: every rank gets the sums of all its weights, for looking at them; else, as the optimizer
            needs, of those that it updates.

    Returns:
        What the objective returned beside the loss, row by row, on ranks with the last stage, and [] elsewhere.
    """
    for stage in stages:
        stage.zero_grad_buffer()
    results = _run(stages, rows, partial(_loss, objective), forward_only=False)
    finalize_model_grads(stages, force_all_reduce=whole_gradients)
    return results


def forward(stages: Stages, rows: Sequence[TokenRow], read: Callable[[Learnt], Result]) -> list[Result]:
    """What `read` makes of each row, without gradients; arguments, order and ranks as in `forward_backward`."""

    def no_loss(learnt: Learnt) -> tuple[Tensor, Result]:
        return learnt.hidden_aD.sum() * 0, read(learnt)

    with torch.no_grad():
        return _run(stages, rows, partial(_loss, no_loss), forward_only=True)


def _run(stages: Stages, rows: Sequence[TokenRow], loss: Callable[..., Any], *, forward_only: bool) -> list[Any]:
    """The rows through megatron's schedule; what the objective gave besides the loss, without blank rows."""
    config = stages[0].config
    rows = [*rows, *_blanks(len(rows), config)]
    results: list[Any] = get_forward_backward_func()(
        forward_step_func=partial(_step, loss),
        data_iterator=[_cut(rows, config) for _ in stages],
        model=stages,
        num_microbatches=len(rows),
        seq_length=1,  # rows say themselves how long they are
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return [result for result in results if result is not _NOTHING]


_NOTHING = object()


def _blanks(num_rows: int, config: StageConfig) -> list[TokenRow]:
    """Rows to add, so that all data ranks have as many, and an interleaved schedule whole rounds."""
    device = torch.device("cpu" if config.use_cpu_initialization else torch.cuda.current_device())
    most = torch.tensor([num_rows], device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
    round_size = config.pipeline_model_parallel_size if config.virtual_pipeline_model_parallel_size else 1
    wanted = -(-int(most) // round_size) * round_size
    return [TokenRow.blank(device)] * (wanted - num_rows)


def _cut(rows: Sequence[TokenRow], config: StageConfig) -> Iterator[tuple[int, RankRow]]:
    return ((index, cut_row(row, config)) for index, row in enumerate(rows))


def _step(loss: Callable[..., Any], rows: Iterator[tuple[int, RankRow]], stage: Any) -> tuple[Any, Any]:
    index, row = next(rows)
    return stage(row), partial(loss, stage.module, index, row)


def _loss(
    objective: Objective[Result], stage: Stage, index: int, row: RankRow, output: tuple[Tensor, RowRouting]
) -> tuple[Tensor, Tensor, Any]:
    """The loss, a number of tokens that nobody divides by, and what the objective gives besides."""
    hidden_aD, routing = output
    no_number = torch.zeros((), dtype=torch.int, device=hidden_aD.device)
    if row.is_blank:
        return hidden_aD.sum() * 0, no_number, _NOTHING
    loss, result = objective(Learnt(index, row.learnt_a, hidden_aD, stage.lm_head, routing))
    return loss, no_number, result
