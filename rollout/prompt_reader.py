"""Prompts into slots: short ones together in one forward pass, a long one piece by piece between the others' steps.

Shape suffixes: N prompts, T tokens of packed prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from model import HybridCache, HybridLM
from rollout.engine_protocol import TokenIds

State = Mapping[str, Tensor]
"""What `HybridCache.snapshot` gives."""


@dataclass
class Reading:
    """A prompt on its way into a slot.

    Attributes:
        num_read: tokens of it that the slot's state holds already.
    """

    token_ids: TokenIds
    slot: int
    num_read: int = 0


class PromptReader:
    """Runs prompts through the model, at most `piece` tokens of one prompt at a time."""

    def __init__(self, lm: HybridLM, cache: HybridCache, piece: int) -> None:
        self._lm = lm
        self._cache = cache
        self._piece = piece

    def read(self, prompts: Sequence[tuple[TokenIds, int]]) -> list[Tensor]:
        """Run (short prompt, slot) from the beginning; returns the logits_V after each.

        Rows of a packed forward share matrix products, in which one prompt's NaN can reach its neighbours (0 * NaN),
        so prompts that come out broken together are tried again one by one.
        """
        if not prompts:
            return []
        logits_NV = self._read_packed(prompts)
        if len(prompts) > 1:
            for row in _broken(logits_NV):
                logits_NV[row] = self._read_packed([prompts[row]])[0]
        return list(logits_NV)

    def read_rest(self, prompts: Sequence[tuple[TokenIds, int, State]]) -> list[Tensor]:
        """Run what is missing of (prompt, slot, state after its beginning); returns the logits_V after each.

        Broken rows are tried again as in `read`. Raises ModelError if a state is another model's.
        """
        if not prompts:
            return []
        logits_NV = self._read_rest_packed(prompts)
        if len(prompts) > 1:
            for row in _broken(logits_NV):
                logits_NV[row] = self._read_rest_packed([prompts[row]])[0]
        return list(logits_NV)

    def read_on(self, reading: Reading) -> Tensor | None:
        """Run the next piece of a prompt; the logits_V after the prompt once it has been read, None before.

        A prompt whose state is no longer finite is not read to its end: the logits, not finite either, come at once.
        """
        if reading.num_read == 0:
            self._cache.reset([reading.slot])
        piece = reading.token_ids[reading.num_read : reading.num_read + self._piece]
        hidden_1D = self._forward([piece], [reading.slot])
        reading.num_read += len(piece)
        if reading.num_read < len(reading.token_ids) and bool(hidden_1D.isfinite().all()):
            return None
        return self._lm.logits(hidden_1D)[0]

    def reread(self, sequences: Sequence[tuple[TokenIds, int]]) -> None:
        """Compute the states of slots anew with the present weights, from all (tokens, slot) that they hold."""
        row: list[tuple[TokenIds, int]] = []
        for token_ids, slot in sequences:
            self._cache.reset([slot])
            if len(token_ids) > self._piece:
                for first in range(0, len(token_ids), self._piece):
                    self._forward([token_ids[first : first + self._piece]], [slot])
                continue
            if row and sum(len(ids) for ids, _ in row) + len(token_ids) > self._piece:
                self._forward(*zip(*row, strict=True))
                row = []
            row.append((token_ids, slot))
        if row:
            self._forward(*zip(*row, strict=True))

    def _read_packed(self, prompts: Sequence[tuple[TokenIds, int]]) -> Tensor:
        token_ids, slots = zip(*prompts, strict=True)
        self._cache.reset(slots)
        return self._lm.logits(self._forward(token_ids, slots))

    def _read_rest_packed(self, prompts: Sequence[tuple[TokenIds, int, State]]) -> Tensor:
        for _, slot, state in prompts:
            self._cache.restore(slot, state)
        rests = [token_ids[int(state["length"]) :] for token_ids, _, state in prompts]
        return self._lm.logits(self._forward(rests, [slot for _, slot, _ in prompts]))

    def _forward(self, token_ids: Sequence[TokenIds], slots: Sequence[int]) -> Tensor:
        """Append to the slots; hidden states [N, D] of the last positions."""
        device = self._cache.length_S.device
        tokens_T = torch.tensor(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids]), device=device)
        cu_seqlens = torch.tensor([0, *accumulate(map(len, token_ids))], device=device)
        return self._lm.prefill(tokens_T, cu_seqlens, torch.tensor(slots, device=device), self._cache)


def _broken(logits_NV: Tensor) -> list[int]:
    """Rows that are not finite."""
    rows: list[int] = (~logits_NV.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    return rows
