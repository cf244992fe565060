"""Which weights of a checkpoint the parameters of this rank are, or parts of them.

Megatron's parameters know in which dimension tensor ranks cut them. Names need two translations: an expert's place on
its rank is not its number, and one matrix holds an expert's gate and up projection, of which each is cut by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from megatron.core import parallel_state
from torch import Tensor, nn

_EXPERT = re.compile(r"(.*\.experts)\.local_experts\.(\d+)\.(linear_fc1|linear_fc2)\.weight$")


@dataclass(frozen=True)
class WeightPart:
    """What this rank holds of one weight.

    Attributes:
        name: in checkpoints.
        parameter: where it is.
        rows: which rows of the parameter.
        dim: the dimension in which tensor ranks cut it into equal parts; None if each holds all of it.
    """

    name: str
    parameter: nn.Parameter
    rows: slice
    dim: int | None

    def of(self, tensor: Tensor) -> Tensor:
        """The part, from the parameter or from a tensor of its shape such as its gradient."""
        return tensor[self.rows]

    @property
    def first(self) -> int:
        """Where in the flattened parameter the part begins."""
        return (self.rows.start or 0) * (self.parameter.numel() // len(self.parameter))

    def cut(self, whole: Tensor, rank: int, num_ranks: int) -> Tensor:
        """Tensor rank `rank`'s part of a whole weight; what a padded vocabulary has more is 0."""
        if self.dim is None:
            return whole
        size = self.of(self.parameter).shape[self.dim]
        part = whole.narrow(self.dim, size * rank, min(size, whole.shape[self.dim] - size * rank))
        if part.shape[self.dim] == size:
            return part
        padding = [0, 0] * (whole.dim() - 1 - self.dim) + [0, size - part.shape[self.dim]]
        return nn.functional.pad(part, padding)


def parts_of(stage: nn.Module, num_experts: int) -> Iterator[WeightPart]:
    """All that a stage holds of a model with `num_experts` in each layer."""
    group = parallel_state.get_expert_model_parallel_group()
    first_expert = num_experts // group.size() * group.rank()
    for name, parameter in stage.named_parameters():
        dim = getattr(parameter, "partition_dim", None) if getattr(parameter, "tensor_model_parallel", False) else None
        for checkpoint_name, rows in _names(name, parameter, first_expert):
            yield WeightPart(checkpoint_name, parameter, rows, dim)


def _names(name: str, parameter: nn.Parameter, first_expert: int) -> Iterator[tuple[str, slice]]:
    name = name if name.startswith("lm_head.") else f"model.{name}"
    expert = _EXPERT.match(name)
    if expert is None:
        yield name.replace(".router.", ".gate."), slice(None)
        return
    stem = f"{expert[1]}.{first_expert + int(expert[2])}"
    if expert[3] == "linear_fc2":
        yield f"{stem}.w2.weight", slice(None)
    else:
        half = len(parameter) // 2
        yield f"{stem}.w1.weight", slice(half)
        yield f"{stem}.w3.weight", slice(half, None)
