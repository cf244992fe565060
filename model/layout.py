"""How one policy lies over the ranks of a learner: which dimension is cut into how many parts.

Ranks are numbered as megatron numbers them: tensor ranks are neighbours, then context, then data, and pipeline stages
are farthest apart. Experts are spread over context and data ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("tensor", "pipeline", "virtual_pipeline", "expert", "context")
"""The fields of Layout that count parts."""


@dataclass(frozen=True)
class Layout:
    """A product of parts; what is left of the ranks holds copies that learn from different rows.

    Attributes:
        tensor: parts of each projection and of the vocabulary.
        pipeline: stages of consecutive layers.
        virtual_pipeline: pieces of the layers that each stage holds, in turns (interleaved 1F1B); 1 is plain 1F1B.
        expert: parts of each layer's experts.
        context: parts of each packed row.
        sequence_parallel: between the projections, tensor ranks share a row's tokens; needs tensor > 1.
    """

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    expert: int = 1
    context: int = 1
    sequence_parallel: bool = False

    @property
    def ranks_per_copy(self) -> int:
        """Ranks that hold one copy of everything but experts."""
        return self.tensor * self.pipeline * self.context

    def num_copies(self, num_ranks: int) -> int:
        """Data ranks: copies that `num_ranks` ranks hold."""
        return num_ranks // self.ranks_per_copy

    def stage_layers(self, num_layers: int, pipeline_rank: int) -> tuple[int, ...]:
        """The layers that stage `pipeline_rank` holds, in order; with a virtual pipeline every stage has its turn."""
        size = num_layers // (self.pipeline * self.virtual_pipeline)
        firsts = range(pipeline_rank * size, num_layers, self.pipeline * size)
        return tuple(layer for first in firsts for layer in range(first, first + size))

    def pieces_in_flight(self, pipeline_rank: int) -> int:
        """Pieces of layers whose backward pass stage `pipeline_rank` still waits for, at most, in megatron's schedules.

        A stage has `virtual_pipeline` pieces. With fewer rows in an update than stages there are fewer.
        """
        behind = self.pipeline - pipeline_rank - 1
        if self.virtual_pipeline == 1:
            return behind + 1
        return 2 * behind + (self.virtual_pipeline - 1) * self.pipeline + 1

    def bubble_fraction(self, num_rows: int) -> float:
        """The part of an update that a rank waits, of `num_rows` equal rows: 1F1B, and interleaved 1F1B.

        Source: Narayanan et al., arXiv 2104.04473, section 2.2, where it is a part of the ideal time instead.
        """
        waits = self.pipeline - 1
        return waits / (waits + self.virtual_pipeline * num_rows)

    def __str__(self) -> str:
        parts = [f"{name}={getattr(self, name)}" for name in PARTS if name != "virtual_pipeline"]
        if self.virtual_pipeline != 1:
            parts.insert(2, f"virtual_pipeline={self.virtual_pipeline}")
        return " ".join([*parts, "sequence_parallel=true"] if self.sequence_parallel else parts)


def padded_vocabulary(vocab_size: int, num_parts: int) -> int:
    """Rows of the embedding and of the head, so that each of `num_parts` tensor ranks holds as many."""
    return -(-vocab_size // num_parts) * num_parts
