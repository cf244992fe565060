"""How one policy lies over the ranks of a learner: which dimension is cut into how many parts.

Ranks are numbered as megatron numbers them: tensor ranks are neighbours, then context, then data, and pipeline stages
are farthest apart. Experts are spread over context and data ranks.
"""

from __future__ import annotations

from dataclasses import dataclass


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
