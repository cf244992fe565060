"""Experts that routers chose while sampling, kept so that learning can visit the same ones.

A router picks the largest of its probabilities, so a difference in the last digit between sampling and learning can
send a token elsewhere. R3 (arXiv 2510.11370) takes the recorded choice in learning instead. How much each expert counts
stays the learner's own: its router's probabilities of the recorded experts, over their sum, with their gradient.

A record holds expert numbers in a small dtype, whose largest number stands where nothing was recorded. Shapes: T
tokens, L layers with routers, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Prescription = Callable[[Tensor], Tensor]
"""A router's own choice of experts, int64 [T, k] -> the experts to visit, of the same shape."""


def record_dtype(num_experts: int) -> torch.dtype:
    """The smallest dtype with room for `num_experts` numbers and one that means none."""
    return torch.uint8 if num_experts <= torch.iinfo(torch.uint8).max else torch.int16


def nothing_in(dtype: torch.dtype) -> int:
    """What stands in a record of that dtype where nothing was recorded."""
    return torch.iinfo(dtype).max


def with_blanks(record_TLk: Tensor, num_tokens: int) -> Tensor:
    """The record for `num_tokens` tokens, with nothing at the end for those that it lacks."""
    missing = num_tokens - len(record_TLk)
    return torch.cat([record_TLk, record_TLk.new_full((missing, *record_TLk.shape[1:]), nothing_in(record_TLk.dtype))])


class ChoiceLog:
    """Notes what the routers of one sampling step decide; the layers of that step are given it one after the other."""

    def __init__(self) -> None:
        self._by_layer: dict[int, Tensor] = {}

    def note(self, layer: int, expert_Tk: Tensor) -> None:
        """int64 [T, k]: the choice of one layer."""
        self._by_layer[layer] = expert_Tk

    def record(self, dtype: torch.dtype, num_tokens: int, wanted_N: Tensor | None = None) -> Tensor:
        """[T, L, k]; of a last layer that ran on the `wanted_N` tokens only, nothing for the others."""
        *layers, last = (expert_Tk.to(dtype) for _, expert_Tk in sorted(self._by_layer.items()))
        if wanted_N is not None:
            whole = last.new_full((num_tokens, last.shape[1]), nothing_in(dtype))
            last = whole.index_copy_(0, wanted_N, last)
        return torch.stack([*layers, last], dim=1)


class Replay:
    """The choices that the routers of a training pass are to repeat.

    Attributes:
        experts_TLk: a record, in a dtype of `record_dtype`.
    """

    def __init__(self, experts_TLk: Tensor) -> None:
        self.experts_TLk = experts_TLk
        self._counts: dict[int, Tensor] = {}  # by layer: a layer that runs again for its gradients counts once

    def prescription(self, layer: int) -> Prescription:
        """What turns the choice of that layer's router into the recorded one."""
        expert_Tk = self.experts_TLk[:, layer]
        is_recorded_T = expert_Tk[:, 0] != nothing_in(expert_Tk.dtype)

        def prescribe(own_Tk: Tensor) -> Tensor:
            chosen_Tk = torch.where(is_recorded_T[:, None], expert_Tk.long(), own_Tk)
            differs_T = (own_Tk.sort(-1).values != chosen_Tk.sort(-1).values).any(-1)
            self._counts[layer] = torch.stack([differs_T.sum(), is_recorded_T.sum()])
            return chosen_Tk

        return prescribe

    def cut(self, start: int, stop: int) -> Replay:
        """That of some of the tokens, which counts together with this one; beyond the end nothing is recorded."""
        part = Replay(with_blanks(self.experts_TLk[start:stop], stop - start))
        part._counts = self._counts
        return part

    @property
    def counts(self) -> tuple[int, int]:
        """(token, layer) pairs whose own choice would have been other experts than those recorded, and all recorded."""
        if not self._counts:
            return 0, 0
        changed, recorded = torch.stack(list(self._counts.values())).sum(0).tolist()
        return int(changed), int(recorded)
