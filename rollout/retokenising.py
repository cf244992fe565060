"""For evaluation only: completions of servers that give text, made into token ids by the policy's own tokenizer.

The ids need not be those that were sampled, so nothing may be learnt from them: their log-probabilities are NaN, which
keeps every token out of the loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cispo.types import StopReason
from rollout.completion_wire import Piece
from rollout.continuation import Growing

_STANDARD = ("model", "n", "seed", "temperature", "top_p", "max_tokens")


class TextTokenizer(Protocol):
    """What is asked of the policy's tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""


class Retokeniser:
    """Text out of token ids and back."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def body(self, body: Mapping[str, Any], members: Sequence[Growing]) -> dict[str, Any]:
        """The request in the fields of OpenAI's own API, its prompt as text; what `members` had is forgotten."""
        for growing in members:
            growing.text = ""
        return {name: body[name] for name in _STANDARD} | {"prompt": self._tokenizer.decode(body["prompt"])}

    def piece(self, piece: Piece, growing: Growing, version: int) -> Piece:
        """No tokens while the text grows, and all of them at its end."""
        growing.text += piece.text
        if piece.reason is None:
            return dataclasses.replace(piece, token_ids=[], logp=[], version=[])
        sampling = growing.request.sampling
        ids = self._tokenizer.encode(growing.text)
        if piece.reason is StopReason.STOP:
            ids += sampling.stop_token_ids[:1]
        return dataclasses.replace(piece, token_ids=ids, logp=[math.nan] * len(ids), version=[version] * len(ids))
