"""The processes that make one update together, and what they tell each other about it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from cispo.metrics import Metric, merge_all

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among them; alone by default.

    Attributes:
        rank, num_ranks: which one, of how many.
    """

    rank: int = 0
    num_ranks: int = 1

    @classmethod
    def join(cls, store: dist.Store, rank: int, num_ranks: int, *, device: str, deadline_seconds: float) -> Ranks:
        """Meet the others at `store`, which all of them have.

        Tensors of a GPU travel by NCCL, those of the CPU and everything small by gloo. Whoever waits for a rank that
        does not come, here or in any later exchange, gets torch's error after `deadline_seconds`.
        """
        on_cpu = torch.device(device).type == "cpu"
        dist.init_process_group(
            "gloo" if on_cpu else "cpu:gloo,cuda:nccl",
            store=store,
            rank=rank,
            world_size=num_ranks,
            timeout=datetime.timedelta(seconds=deadline_seconds),
        )
        return cls(rank, num_ranks)

    def leave(self) -> None:
        """End the group; nobody can be waited for afterwards."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def gather(self, mine: T) -> list[T]:
        """What every rank has, in their order, on each of them."""
        told = [mine] * self.num_ranks
        if self.num_ranks > 1:
            dist.all_gather_object(told, mine)
        return told

    def merge(self, loss: float, metrics: Mapping[str, Metric]) -> tuple[float, Mapping[str, Metric]]:
        """The sum of all ranks' losses and their metrics merged, the same on each rank to the last bit."""
        if self.num_ranks == 1:
            return loss, metrics
        told = self.gather((loss, dict(metrics)))
        return sum(loss for loss, _ in told), merge_all(metrics for _, metrics in told)
