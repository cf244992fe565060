"""A half-sampled sequence as plain arrays: what crosses from one engine to another, or into a checkpoint.

A linear-attention state cannot be cut back to an earlier token, so to go on later means to save it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cispo.types import Floats, Ints
from rollout.stopping import RuleState


@dataclass(frozen=True)
class PausedSequence:
    """One member of a group between two tokens.

    Attributes:
        cache: the model's state, by the cache's own names.
        rules: where the stop rules stand.
        token_ids, logp, version: the new tokens so far, as in Completion; the last id is not in `cache` yet.
    """

    cache: dict[str, Tensor]
    rules: RuleState
    token_ids: Ints
    logp: Floats
    version: Ints


def to_arrays(members: Mapping[int, PausedSequence]) -> dict[str, NDArray[np.generic]]:
    """One flat dictionary with keys "<member>/<what>".

    Cache tensors are "<member>/cache/<name>", or "<member>/bfloat16/<name>" in int16, because numpy has no bfloat16.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for member, paused in members.items():
        for name, tensor in paused.cache.items():
            is_bfloat16 = tensor.dtype == torch.bfloat16
            folder = "bfloat16" if is_bfloat16 else "cache"
            # A copy, because on a CPU the tensor may share its memory with the slot.
            arrays[f"{member}/{folder}/{name}"] = np.array((tensor.view(torch.int16) if is_bfloat16 else tensor).cpu())
        arrays[f"{member}/token_ids"] = paused.token_ids
        arrays[f"{member}/logp"] = paused.logp
        arrays[f"{member}/version"] = paused.version
        arrays[f"{member}/rules"] = np.array(list(asdict(paused.rules).values()), dtype=np.int64)
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[int, PausedSequence]:
    """The members that `to_arrays` was given, their cache tensors on the CPU."""
    return {int(key.split("/")[0]): _member(arrays, key.split("/")[0]) for key in arrays if key.endswith("/rules")}


def _member(arrays: Mapping[str, NDArray[Any]], member: str) -> PausedSequence:
    cache: dict[str, Tensor] = {}
    for key, array in arrays.items():
        owner, folder, *name = key.split("/", 2)
        if owner == member and folder in ("cache", "bfloat16"):
            tensor = torch.from_numpy(array.copy())
            cache[name[0]] = tensor.view(torch.bfloat16) if folder == "bfloat16" else tensor
    num_new, confident_run, num_thought, is_thinking = arrays[f"{member}/rules"].tolist()
    return PausedSequence(
        cache=cache,
        rules=RuleState(num_new, confident_run, num_thought, bool(is_thinking)),
        token_ids=arrays[f"{member}/token_ids"],
        logp=arrays[f"{member}/logp"],
        version=arrays[f"{member}/version"],
    )
