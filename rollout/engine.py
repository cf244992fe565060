"""The engine: requests in, sampled tokens with their behaviour log-probabilities out.

`HybridEngine` batches continuously over the slots of one `HybridCache`. A step gives every running sequence one
token; the finished leave, and waiting ones take their slots in the same step (seating.py). What a token is drawn from,
when a sequence ends and what the model computes live in sampling.py, stopping.py and model/. The protocol that it
fulfils, with requests and completions, is engine_protocol.py.

Shape suffixes: N sequences that get a token, V vocabulary, D model width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cispo.errors import InvalidRequest, WeightSyncError
from cispo.protocols import ModelState
from cispo.types import Floats, Ints, StopReason
from model import HybridCache, HybridLM, ModelError
from model.checkpoint import check_weights, load_weights
from model.replay import with_blanks
from rollout.engine_calls import EngineCalls
from rollout.engine_config import EngineConfig
from rollout.engine_protocol import Completion, Engine, Request
from rollout.prompt_reader import PromptReader
from rollout.seating import Refused, Seating, Waiting
from rollout.slots import Lanes, Slots
from rollout.snapshot import PausedRequest
from rollout.stopping import FAILED, REASONS, STOP

__all__ = ["Completion", "Engine", "EngineConfig", "HybridEngine", "Request"]


STATE_VERSION = "version"
"""Beside the arrays of a state that a completion carries: the weights that computed it."""


class HybridEngine(EngineCalls):
    """Samples from a HybridLM; see `Engine` for the methods and the head of the file for the way it works.

    Args:
        lm: the policy; its weights are replaced in place by `load_weights`.
        config: sizes.
        version: version of the weights that `lm` has now.
        cache: where the states of the slots live; by default a HybridCache of the config's size beside the weights.
        records_experts: completions tell which experts each token visited; a cache that is given decides itself.
    """

    def __init__(
        self,
        lm: HybridLM,
        config: EngineConfig | None = None,
        *,
        version: int = 0,
        cache: HybridCache | None = None,
        records_experts: bool = False,
    ) -> None:
        super().__init__()
        self.config = config or EngineConfig()
        self._lm = lm
        self._version = version
        self._vocab_size: int = lm.config.vocab_size
        num_slots, max_length = self.config.num_slots, self.config.max_length
        if cache is None:
            weight = next(lm.parameters())
            cache = HybridCache(
                lm.config, num_slots, max_length, weight.device, weight.dtype, records_experts=records_experts
            )
        self._cache = cache
        self._slots = Slots(num_slots, max_length, cache.length_S.device)
        prefill_tokens = self.config.prefill_tokens
        self._seating = Seating(self._slots, cache, PromptReader(lm, cache, prefill_tokens), prefill_tokens)
        self._requests: dict[str, Request] = {}  # those under way
        self._num_left: dict[str, int] = {}  # their members that have not ended

    @property
    def version(self) -> int:
        """Version of the weights that sample now."""
        return self._version

    @property
    def num_running(self) -> int:
        """Sequences that sit in a slot, those whose prompts are being read included."""
        return self._slots.num_taken

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a slot."""
        return self._seating.num_waiting

    @property
    def has_work(self) -> bool:
        """Some sequence is running or waiting, or has ended and was not yet returned by `step`."""
        return bool(self._ended) or self._seating.has_groups or self.num_running > 0

    def is_under_way(self, request_id: str) -> bool:
        """Some member of the request has not ended."""
        return request_id in self._requests

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests in order. Raises InvalidRequest, and then queues none of them."""
        accepted: dict[str, Request] = {}
        for request in requests:
            self._check(request, self._requests.keys() | accepted.keys())
            accepted[request.id] = request
        for request in accepted.values():
            members = deque(range(request.num_samples))
            self._queue(Waiting(replace(request, state=None), members, reading=self._usable(request.state)))

    def since(self, seen: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], tuple[Ints, Floats, Ints]]:
        """What running sequences have beyond their first `seen[request id, member]` tokens: token ids,
        log-probabilities and versions (-1 where forced). Those that `seen` does not name are left out.
        """
        sitting = {(occupant.request.id, occupant.member): slot for slot, occupant in self._slots.occupied()}
        return {
            key: self._slots.read(slot, seen[key])
            for key, slot in sitting.items()
            if key in seen and self._slots.has_begun(slot)
        }

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights between two steps.

        Sequences under way go on, and each token records the version that sampled it. Their states stay those of the
        older weights, and a prompt that is half read is read on, unless `stale_states` says to recompute them. A
        prompt whose group is not seated yet is prefilled again with the new weights in any case.
        Raises WeightSyncError if names or shapes are not the model's; the old weights are then kept whole, for which
        all of `weights` is looked at before the first is written.
        """
        arrived = list(weights)
        try:
            check_weights(self._lm, arrived)
        except ModelError as error:
            raise WeightSyncError(
                f"Version {version} cannot be loaded, and version {self._version} is kept: {error}"
            ) from error
        load_weights(self._lm, iter(arrived))
        self._version = version
        self._seating.forget_prompts()
        if self.config.stale_states == "recompute":
            with torch.inference_mode():
                self._seating.recompute_states()

    @torch.inference_mode()
    def logp(self, token_ids: Ints) -> Floats:
        """See `ComputesLogp`. The first token is prefilled, the others are decoded, in a cache of their own."""
        tokens_T = torch.from_numpy(token_ids).to(self._cache.length_S.device)
        weight = next(self._lm.parameters())
        cache = HybridCache(self._lm.config, 1, len(tokens_T), device=weight.device, dtype=weight.dtype)
        slot = torch.zeros(1, dtype=torch.int64, device=tokens_T.device)
        border = torch.tensor([0, 1], device=tokens_T.device)
        hidden = [self._lm.prefill(tokens_T[:1], border, slot, cache)]
        hidden += [self._lm.decode(token, slot, cache) for token in tokens_T[1:-1].split(1)]
        logp = self._lm.logp(torch.cat(hidden), tokens_T[1:]).float().cpu().numpy()
        return np.concatenate([np.full(1, np.nan, np.float32), logp])

    def snapshot(self, request_id: str) -> ModelState:
        """All that `resume` needs, in this engine or another, to go on with a request's unfinished members.

        The request goes on here unless it is cancelled. Raises InvalidRequest for a request that is not under way.
        """
        if request_id not in self._requests:
            raise InvalidRequest(f"Only a request under way can be saved, and {request_id!r} is not.")
        fresh, members, reading = self._seating.unbegun(request_id)
        for slot, occupant in self._slots.occupied():
            if occupant.request.id == request_id and self._slots.has_begun(slot):
                members[occupant.member] = self._slots.pause(slot, self._cache.snapshot(slot))
        return PausedRequest(self._requests[request_id], fresh, members, reading).to_state()

    def resume(self, state: ModelState) -> None:
        """Queue a request exactly where `snapshot` saw it.

        Raises InvalidRequest as `submit` does, and for a state that contradicts itself. A state that does not fit
        this engine's model ends as a failed completion.
        """
        paused = PausedRequest.from_state(state)
        self._check(paused.request, self._requests, paused.faults(self._vocab_size))
        members = dict(paused.members)
        self._queue(Waiting(paused.request, deque(sorted([*paused.fresh, *members])), members, None, paused.reading))

    def _check(self, request: Request, under_way: Collection[str], faults: Sequence[str] = ()) -> None:
        """Raise InvalidRequest with everything that is wrong with the request, `faults` known before included."""
        faults = [*request.faults(self._vocab_size, self.config.max_length), *faults]
        if request.id in under_way:
            faults.append("its id must differ from those of the requests under way")
        if faults:
            raise InvalidRequest(f"Request {request.id!r} cannot be sampled: {'; '.join(faults)}.")

    def _queue(self, group: Waiting) -> None:
        self._requests[group.request.id] = group.request
        self._num_left[group.request.id] = len(group.members)
        self._seating.queue(group)

    def _usable(self, state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """A state that came with a request, unless older weights made it and states are recomputed."""
        if state is None:
            return {}
        arrays = {name: array for name, array in state.items() if name != STATE_VERSION}
        is_stale = int(state.get(STATE_VERSION, torch.tensor(self._version))) != self._version
        return {} if is_stale and self.config.stale_states == "recompute" else arrays

    @torch.inference_mode()
    def _go_on(self) -> None:
        """Give every running sequence a token and seat waiting ones."""
        lanes = self._slots.running()
        if lanes.host_N.size:
            hidden_ND = self._lm.decode(self._slots.last_tokens(lanes), lanes.slots_N, self._cache)
            self._advance(lanes, self._lm.logits(hidden_ND))
        recompute_unless = self._version if self.config.stale_states == "recompute" else None
        for arrival in self._seating.arrivals(recompute_unless):
            if isinstance(arrival, Refused):
                self._end(arrival.slot, FAILED, failed=arrival.reason)
            else:
                self._advance(self._slots.lanes(arrival.slots), arrival.logits_NV)

    def _advance(self, lanes: Lanes, logits_NV: Tensor) -> None:
        for slot, verdict in self._slots.advance(lanes, logits_NV, self._version):
            self._end(slot, verdict)

    def _give_up(self, request_ids: set[str]) -> None:
        self._seating.cancel(request_ids)
        for id in request_ids:
            self._num_left.pop(id, None)
            self._requests.pop(id, None)

    def _tokens_since(self, request_id: str, first: int) -> Ints:
        for slot, occupant in self._slots.occupied():
            if occupant.request.id == request_id:
                return self._slots.new_tokens(slot, first)
        return np.empty(0, dtype=np.int64)

    def _end(self, slot: int, verdict: int, failed: str = "") -> None:
        """Free the slot and hand out what its sequence was given."""
        occupant = self._slots.occupant(slot)
        request = occupant.request
        token_ids, logp, version = self._slots.read(slot)
        if verdict == FAILED and not failed:
            # What was drawn from broken logits is no token.
            token_ids, logp, version = token_ids[:-1], logp[:-1], version[:-1]
            failed = f"after {len(token_ids)} new tokens, version {self._version} gave logits that are not finite"
            self._cache.reset([slot])
        state = None
        if verdict == STOP and token_ids[-1] in request.keep_state_after:
            state = self._cache.snapshot(slot) | {STATE_VERSION: torch.tensor(self._version)}
        experts_TLk = None
        if self._cache.records_experts and not failed:
            num_tokens = len(request.token_ids) + len(token_ids)
            experts_TLk = with_blanks(self._cache.experts(slot), num_tokens).numpy()  # it has not seen the last token
        self._slots.release(slot)
        self._num_left[request.id] -= 1
        if not self._num_left[request.id]:
            del self._requests[request.id], self._num_left[request.id]
        completion = Completion(
            request_id=request.id,
            member=occupant.member,
            token_ids=token_ids,
            logp=logp,
            version=version,
            action_mask=version >= 0,
            stop_reason=REASONS.get(verdict, StopReason.LENGTH),
            failed=failed,
            state=state,
            experts_TLk=experts_TLk,
        )
        self._ended.append(completion)
