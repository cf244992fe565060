"""Whole weights in, and out again, under their checkpoint names, whatever the layout.

Neither way is the model ever in one place: in, each rank keeps its part of one tensor after the other; out, tensors
are put together in buckets. All ranks must go through a stream together, because every bucket is a collective.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from model.checkpoint import place_weights, unset_model
from model.checkpoint import stream_weights as stream_whole
from model.checkpoint_names import Stream
from model.megatron.optimizer import StageOptimizer
from model.megatron.schedule import Stages
from model.megatron.weight_parts import WeightPart, parts_of

BUCKET_BYTES = 256 * 1000**2
"""How much of the model is put together at a time; a larger tensor is a bucket of its own."""


@dataclass(frozen=True)
class _Whole:
    """A weight as checkpoints have it.

    Attributes:
        shape, dtype: of the whole.
        sources: the rank that gives its part, of each tensor rank's.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    sources: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ParallelWeights:
    """The weights of a model of which this rank holds `stages`. All ranks must make one together."""

    def __init__(self, stages: Stages) -> None:
        self.config = stages[0].config.hybrid
        self.blueprint = unset_model(self.config, "meta")
        self.tensor = parallel_state.get_tensor_model_parallel_group()
        self.parts: dict[str, WeightPart] = {
            part.name: part for stage in stages for part in parts_of(stage.module, self.config.num_local_experts)
        }
        self.wholes = self._find_sources()

    def _find_sources(self) -> list[_Whole]:
        """In the order of model.checkpoint.stream_weights."""
        own = (self.tensor.rank(), {name: part.dim for name, part in self.parts.items()})
        held_by: list[tuple[int, dict[str, int | None]]] = [own] * dist.get_world_size()
        dist.all_gather_object(held_by, own)
        sources: dict[str, dict[int, int]] = {}
        for rank, (tensor_rank, names) in enumerate(held_by):
            for name in names:
                sources.setdefault(name, {}).setdefault(tensor_rank, rank)
        self.dims = {name: dim for _, names in held_by for name, dim in names.items()}
        return [
            _Whole(name, weight.shape, weight.dtype, tuple(rank for _, rank in sorted(sources[name].items())))
            for name, weight in stream_whole(self.blueprint)
        ]

    def load(self, stream: Stream, optimizer: StageOptimizer | None = None) -> None:
        """Keep this rank's parts of a stream of whole weights, the same on all ranks.

        With bfloat16 weights an optimizer keeps float32 ones. Made before, it must be given, and takes over the stream
        as it is; made afterwards, it begins with the rounded weights. A tensor of a weight that this rank holds no part
        of may be on "meta" (`holds`). Raises ModelError as model.checkpoint.load_weights does, on all ranks alike.
        """

        def put(name: str, whole: Tensor) -> None:
            if name not in self.parts:
                return
            part = self.parts[name]
            own = part.cut(whole, self.tensor.rank(), self.tensor.size())
            part.of(part.parameter.data).copy_(own)
            if optimizer is not None:
                optimizer.put_master(part.parameter, part.first, own)

        place_weights(self.blueprint, stream, put)

    def holds(self, name: str) -> bool:
        """Whether this rank holds a part of weight `name`."""
        return name in self.parts

    def stream(self, *, only_first_rank: bool = False, bucket_bytes: int = BUCKET_BYTES) -> Stream:
        """(name, whole tensor) as model.checkpoint.stream_weights gives them, on every rank or on rank 0 only.

        Every rank must go through it to its end; where there is nothing to see it is empty.
        """
        own = {name: part.of(part.parameter.data) for name, part in self.parts.items()}
        return self._gather(self.wholes, own, only_first_rank, bucket_bytes)

    def gradients(self) -> Stream:
        """The same of the gradients that `forward_backward` left with whole_gradients=True, on every rank."""
        own = {name: part.of(cast(Any, part.parameter).main_grad) for name, part in self.parts.items()}
        dtype = torch.promote_types(self.config.dtype, torch.float32)
        return self._gather([dataclasses.replace(whole, dtype=dtype) for whole in self.wholes], own, False)

    def _gather(
        self,
        wholes: list[_Whole],
        own: dict[str, Tensor],
        only_first_rank: bool,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> Stream:
        for bucket in _buckets(wholes, bucket_bytes):
            parts = [self._receive(bucket, number, own, only_first_rank) for number in range(self.tensor.size())]
            if only_first_rank and dist.get_rank() != 0:
                continue
            for whole in bucket:
                dim = self.dims[whole.name]
                if dim is None:
                    yield whole.name, parts[0][whole.name]
                else:
                    yield whole.name, torch.cat([p[whole.name] for p in parts], dim).narrow(dim, 0, whole.shape[dim])

    def _receive(
        self, bucket: list[_Whole], number: int, own: dict[str, Tensor], only_first_rank: bool
    ) -> dict[str, Tensor]:
        """Tensor rank `number`'s parts of the bucket's weights, sent as one message; {} where nobody wants them."""
        wanted = [whole for whole in bucket if number == 0 or self.dims[whole.name] is not None]
        if not wanted:
            return {}
        rank, source = dist.get_rank(), bucket[0].sources[number]
        if only_first_rank and rank not in (0, source):
            return {}
        shapes = {whole.name: self._part_shape(whole) for whole in wanted}
        if rank == source:
            message = torch.cat([own[name].flatten() for name in shapes])
        else:
            some = next(iter(self.parts.values())).parameter
            message = some.new_empty(sum(map(math.prod, shapes.values())), dtype=bucket[0].dtype)
        if not only_first_rank:
            dist.broadcast(message, source)
        elif source != 0 and rank == 0:
            dist.recv(message, source)
        elif source != 0:
            dist.send(message, 0)
        sizes = [math.prod(shape) for shape in shapes.values()]
        return {name: flat.view(shapes[name]) for name, flat in zip(shapes, message.split(sizes), strict=True)}

    def _part_shape(self, whole: _Whole) -> tuple[int, ...]:
        dim, shape = self.dims[whole.name], list(whole.shape)
        if dim is not None:
            shape[dim] = -(-shape[dim] // self.tensor.size())
        return tuple(shape)


def _buckets(wholes: list[_Whole], max_bytes: int) -> Iterator[list[_Whole]]:
    """Neighbours of one dtype from the same ranks, up to `max_bytes` together."""
    bucket: list[_Whole] = []
    room = 0
    for whole in wholes:
        is_alike = bool(bucket) and (whole.dtype, whole.sources) == (bucket[0].dtype, bucket[0].sources)
        if bucket and (not is_alike or whole.num_bytes > room):
            yield bucket
            bucket = []
        if not bucket:
            room = max_bytes
        bucket.append(whole)
        room -= whole.num_bytes
    yield bucket
