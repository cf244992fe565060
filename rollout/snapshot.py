"""A half-sampled request as plain arrays: what crosses from one engine to another, or into a file.

A linear-attention state cannot be cut back to an earlier token, so to go on later means to save it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cispo.errors import InvalidRequest
from cispo.protocols import ModelState
from cispo.types import Floats, Ints
from rollout.engine_protocol import Request
from rollout.sampling import Sampling
from rollout.stopping import RuleState

Arrays = Mapping[str, NDArray[Any]]


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


@dataclass(frozen=True)
class PausedRequest:
    """A request between two steps.

    Attributes:
        fresh: members that have no token yet.
        members: those that have some and did not end.
        reading: the model's state after the first part of the prompt, if that is being read in pieces.
    """

    request: Request
    fresh: Sequence[int]
    members: Mapping[int, PausedSequence]
    reading: Mapping[str, Tensor] = field(default_factory=dict)

    def to_state(self) -> ModelState:
        """Arrays "prompt", "reading/..." and "<member>/...", and the rest as values that JSON can hold."""
        request = self.request
        arrays: dict[str, NDArray[np.generic]] = {"prompt": np.array(request.token_ids, dtype=np.int64)}
        arrays |= _cache_arrays("reading", self.reading)
        for member, paused in self.members.items():
            arrays |= _cache_arrays(str(member), paused.cache)
            arrays[f"{member}/token_ids"] = paused.token_ids
            arrays[f"{member}/logp"] = paused.logp
            arrays[f"{member}/version"] = paused.version
            arrays[f"{member}/rules"] = np.array(list(asdict(paused.rules).values()), dtype=np.int64)
        fields: dict[str, Any] = {"id": request.id, "num_samples": request.num_samples, "seed": request.seed}
        if request.keep_state_after:
            fields["keep_state_after"] = list(request.keep_state_after)
        sampling = asdict(request.sampling) | {"stop_token_ids": list(request.sampling.stop_token_ids)}
        return ModelState(arrays, {"request": fields, "sampling": sampling, "fresh": list(self.fresh)})

    @classmethod
    def from_state(cls, state: ModelState) -> PausedRequest:
        """The inverse. Raises InvalidRequest for what `to_state` cannot have written."""
        arrays, meta = state.arrays, state.meta
        try:
            fields = dict(meta["sampling"])
            sampling = Sampling(**fields | {"stop_token_ids": tuple(fields["stop_token_ids"])})
            prompt = arrays["prompt"].astype(np.int64, casting="safe", copy=False)
            request = Request(token_ids=prompt, sampling=sampling, **_request_fields(meta["request"]))
            names = [key.split("/")[0] for key in arrays if key.endswith("/rules")]
            members = {int(name): _member(arrays, name) for name in names}
            return cls(request, list(meta["fresh"]), members, _cache_tensors("reading", arrays))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"A saved state must hold what `snapshot` wrote, but {type(error).__name__}: {error}; save it again."
            ) from error

    def faults(self, vocab_size: int) -> list[str]:
        """Everything that contradicts itself or a vocabulary of that size, one sentence each."""
        faults = []
        num_prompt, everyone = len(self.request.token_ids), [*self.fresh, *self.members]
        if len(set(everyone)) < len(everyone) or not set(everyone) <= set(range(self.request.num_samples)):
            faults.append(f"its members must differ and be among {self.request.num_samples}, got {sorted(everyone)}")
        if self.reading and not 0 < _length(self.reading) < num_prompt:
            faults.append(f"a part of {num_prompt} prompt tokens must have been read, got {_length(self.reading)}")
        for member, paused in self.members.items():
            ids, num_new = paused.token_ids, paused.rules.num_new
            if ids.size == 0 or ids.dtype.kind not in "iu" or not 0 <= ids.min() <= ids.max() < vocab_size:
                faults.append(f"the new tokens of member {member} must be ids in [0, {vocab_size}), at least one")
            lengths = (len(ids), len(paused.logp), len(paused.version), _length(paused.cache) - num_prompt + 1)
            if any(length != num_new for length in lengths):
                faults.append(f"member {member} has {num_new} new tokens by its rules, but arrays for {lengths}")
        return faults


def _request_fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    return dict(saved) | {"keep_state_after": tuple(saved.get("keep_state_after", ()))}


def _length(cache: Mapping[str, Tensor]) -> int:
    return int(cache["length"]) if "length" in cache else -1


def _cache_arrays(owner: str, cache: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    """Keys "<owner>/cache/<name>", or "<owner>/bfloat16/<name>" in int16, because numpy has no bfloat16."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, tensor in cache.items():
        is_bfloat16 = tensor.dtype == torch.bfloat16
        folder = "bfloat16" if is_bfloat16 else "cache"
        arrays[f"{owner}/{folder}/{name}"] = (tensor.view(torch.int16) if is_bfloat16 else tensor).cpu().numpy()
    return arrays


def _cache_tensors(owner: str, arrays: Arrays) -> dict[str, Tensor]:
    """The tensors that `_cache_arrays` was given, on the CPU."""
    cache: dict[str, Tensor] = {}
    for key, array in arrays.items():
        for folder in ("cache", "bfloat16"):
            prefix = f"{owner}/{folder}/"
            if key.startswith(prefix):
                tensor = torch.from_numpy(array.copy())
                cache[key.removeprefix(prefix)] = tensor.view(torch.bfloat16) if folder == "bfloat16" else tensor
    return cache


def _member(arrays: Arrays, name: str) -> PausedSequence:
    num_new, confident_run, num_thought, is_thinking = arrays[f"{name}/rules"].tolist()
    return PausedSequence(
        cache=_cache_tensors(name, arrays),
        rules=RuleState(num_new, confident_run, num_thought, bool(is_thinking)),
        token_ids=arrays[f"{name}/token_ids"],
        logp=arrays[f"{name}/logp"],
        version=arrays[f"{name}/version"],
    )
