"""The float32 head with its vocabulary cut over tensor ranks.

Each rank makes the logits of its own tokens, chunk by chunk as in model/head.py. What a distribution needs of the
whole vocabulary is a few numbers for each token: the largest logit, the sum of exponentials, the target's logit and
the expected logit, which are all-reduced. So no rank ever holds a row's logits, nor even a token's.

Shapes: T tokens, t tokens of a chunk, D model width, V vocabulary, v tokens of it on this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint
from torch import Tensor, nn

from model.head import Chunks, Head
from model.layout import padded_vocabulary
from model.megatron.config import StageConfig


class ParallelHead(Head):
    """model.head.Head over this rank's part of the vocabulary; all tensor ranks call it with the same arguments.

    The hidden states' gradient is then a part on each rank; stage.py adds them up. Where the vocabulary had to be
    padded, the rows behind its end take no part in anything.
    """

    def __init__(self, config: StageConfig, ranks: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        hybrid = config.hybrid
        self.ranks, self.vocab_size = ranks, hybrid.vocab_size
        size = padded_vocabulary(hybrid.vocab_size, ranks.size()) // ranks.size()
        self.first = size * ranks.rank()
        self.weight = nn.Parameter(torch.zeros(size, hybrid.hidden_size, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], gathered, without gradient: for looking at, not for learning."""
        with torch.no_grad():
            own = hidden.to(self._wide) @ self.weight.to(self._wide).T
            parts = [torch.empty_like(own) for _ in range(self.ranks.size())]
            dist.all_gather(parts, own.contiguous(), group=self.ranks)
            return torch.cat(parts, -1)[..., : self.vocab_size]

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.weight.dtype, torch.float32)

    def chunks(self, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Chunks:
        """See model.head.Head."""
        place_T = targets_T - self.first
        return _PartChunks(hidden_TD, weight_VD, place_T, len(self.weight), self.ranks)

    def _inputs(self, hidden_TD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        hidden_TD, weight_vD = super()._inputs(hidden_TD, temperature)
        num_real = self.vocab_size - self.first
        return hidden_TD, weight_vD[:num_real] if num_real < len(weight_vD) else weight_vD

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For megatron's checkpoints; another number of ranks may pad the vocabulary to another size."""
        sharded = make_tp_sharded_tensor_for_checkpoint(
            tensor=self.weight,
            key=f"{prefix}weight",
            allow_shape_mismatch=True,
            prepend_offsets=sharded_offsets,
            tp_group=self.ranks,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )
        return {f"{prefix}weight": sharded}


class _PartChunks(Chunks):
    def __init__(
        self, hidden_TD: Tensor, weight_vD: Tensor, place_T: Tensor, width: int, ranks: dist.ProcessGroup
    ) -> None:
        self.is_here_T = (place_T >= 0) & (place_T < len(weight_vD))
        self.ranks = ranks
        super().__init__(hidden_TD, weight_vD, place_T.clamp(0, len(weight_vD) - 1), width)

    def largest(self, peak_t: Tensor) -> Tensor:
        dist.all_reduce(peak_t, dist.ReduceOp.MAX, group=self.ranks)
        return peak_t

    def total(self, sum_t: Tensor) -> Tensor:
        dist.all_reduce(sum_t, group=self.ranks)
        return sum_t

    def at_targets(self, logits_tV: Tensor, part: slice) -> Tensor:
        return self.total(super().at_targets(logits_tV, part) * self.is_here_T[part])

    def add_at_targets(self, grad_tV: Tensor, part: slice, grad_t: Tensor) -> None:
        super().add_at_targets(grad_tV, part, grad_t * self.is_here_T[part])
