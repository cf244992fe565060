"""The engine: requests in, sampled tokens with their behaviour log-probabilities out.

`HybridEngine` batches continuously over the slots of one `HybridCache`. A step gives every running sequence one
token; the finished leave, and waiting ones take their slots in the same step. A prompt is prefilled once for its
whole group and its state copied to the members; a long one in pieces, one a step, so that nobody waits for it.
What a token is drawn from, when a sequence ends and what the model computes live in sampling.py, stopping.py and
model/; here is only who sits where. The protocol that it fulfils, with requests and completions, is
engine_protocol.py.

Shape suffixes: S slots, N sequences that get a token, V vocabulary, D model width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from cispo.errors import CispoError, InvalidRequest, WeightSyncError
from cispo.protocols import ModelState
from cispo.types import Floats, Ints, StopReason
from model import HybridCache, HybridLM, ModelError
from model.checkpoint import check_weights, load_weights
from model.replay import with_blanks
from rollout.engine_config import EngineConfig
from rollout.engine_protocol import Completion, Engine, Request, TokenIds
from rollout.prompt_reader import PromptReader, Reading
from rollout.sampling import Sampling
from rollout.slots import Lanes, Occupant, Slots
from rollout.snapshot import PausedRequest, PausedSequence
from rollout.stopping import FAILED, REASONS, STOP, RuleState, initial_state

__all__ = ["Completion", "Engine", "EngineConfig", "HybridEngine", "Request"]


STATE_VERSION = "version"
"""Beside the arrays of a state that a completion carries: the weights that computed it."""


@dataclass
class _Group:
    """A request some of whose members still wait for a slot.

    Attributes:
        waiting: members without a slot, in order.
        paused: those of them that come from a snapshot.
        prompt: cache state and logits_V after the prompt, kept while fresh members wait for a slot.
        reading: cache state after a part of the prompt, from a snapshot or from the turn before.
    """

    request: Request
    waiting: deque[int]
    paused: dict[int, PausedSequence] = field(default_factory=dict)
    prompt: tuple[dict[str, Tensor], Tensor] | None = None
    reading: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_unread(self) -> int:
        """Tokens of the prompt that no state at hand holds."""
        if self.prompt is not None:
            return 0
        return len(self.request.token_ids) - (int(self.reading["length"]) if self.reading else 0)


class HybridEngine:
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
        self._reader = PromptReader(lm, cache, self.config.prefill_tokens)
        self._slots = Slots(num_slots, max_length, cache.length_S.device)
        self._groups: deque[_Group] = deque()
        self._readings: deque[tuple[_Group, Reading]] = deque()  # long prompts, each in a slot
        self._requests: dict[str, Request] = {}  # those under way
        self._num_left: dict[str, int] = {}  # their members that have not ended
        self._undelivered: list[Completion] = []
        self._num_generate_calls = 0

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
        return sum(len(group.waiting) for group in self._unseated())

    @property
    def has_work(self) -> bool:
        """Some sequence is running or waiting, or has ended and was not yet returned by `step`."""
        return bool(self._groups or self._undelivered) or self.num_running > 0

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
            self._queue(_Group(replace(request, state=None), members, reading=self._usable(request.state)))

    def step(self) -> list[Completion]:
        """Give every running sequence a token and seat waiting ones; returns the sequences that ended.

        A sequence whose logits are not finite ends with `failed` set; the others do not notice.
        """
        undelivered, self._undelivered = self._undelivered, []
        return undelivered + self._step()

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Forget these requests, running or waiting; unknown ids are ignored."""
        gone = set(request_ids)
        self._groups = deque(group for group in self._groups if group.request.id not in gone)
        self._readings = deque(entry for entry in self._readings if entry[0].request.id not in gone)
        self._undelivered = [completion for completion in self._undelivered if completion.request_id not in gone]
        for id in gone:
            self._requests.pop(id, None)
            self._num_left.pop(id, None)
        for slot, occupant in list(self._slots.occupied()):
            if occupant.request_id in gone:
                self._slots.release(slot)

    def generate(
        self, prompts: Sequence[TokenIds], sampling: Sampling, seed: int = 0, num_samples: int = 1
    ) -> list[list[Completion]]:
        """Sample every prompt `num_samples` times and wait; result [prompt][member]. Prompt i has seed `seed + i`.

        Requests submitted before go on meanwhile; the next `step` returns those that ended.
        """
        self._num_generate_calls += 1
        ids = [f"generate/{self._num_generate_calls}/{i}" for i in range(len(prompts))]
        self.submit(
            Request(id, prompt if isinstance(prompt, np.ndarray) else tuple(prompt), num_samples, seed + i, sampling)
            for i, (id, prompt) in enumerate(zip(ids, prompts, strict=True))
        )
        ended: dict[str, list[Completion]] = {id: [] for id in ids}
        num_left = len(ids) * num_samples
        while num_left:
            for completion in self._step():
                mine = completion.request_id in ended
                ended.get(completion.request_id, self._undelivered).append(completion)
                num_left -= mine
        return [sorted(members, key=lambda c: c.member) for members in ended.values()]

    def stream(self, request: Request) -> Iterator[int]:
        """The new token ids of a request with one sample, each as soon as it is there.

        Requests submitted before go on meanwhile; the next `step` returns those that ended. Closing the iterator
        early cancels the request. Raises InvalidRequest as `submit` does, and CispoError when the logits fail.
        """
        if request.num_samples != 1:
            raise InvalidRequest(f"A streamed request has one sample, got num_samples={request.num_samples}.")
        self.submit([request])
        with closing(self.follow(request.id)) as steps:
            for token_ids in steps:
                yield from token_ids

    def follow(self, request_id: str) -> Generator[list[int], None, None]:
        """After each step what is new of a request under way with one sample: nothing while its prompt is read.

        Tokens that it had before come with the first. Otherwise as `stream`.
        """
        num_sent = 0
        try:
            while (ended := self._step_for(request_id)) is None:
                token_ids = self._tokens_since(request_id, num_sent).tolist()
                yield token_ids
                num_sent += len(token_ids)
            yield ended.token_ids[num_sent:].tolist()
            if ended.failed:
                raise CispoError(f"Request {request_id!r} could not go on: {ended.failed}.")
        finally:
            self.cancel([request_id])

    def since(self, seen: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], tuple[Ints, Floats, Ints]]:
        """What running sequences have beyond their first `seen[request id, member]` tokens: token ids,
        log-probabilities and versions (-1 where forced). Those that `seen` does not name are left out.
        """
        sitting = {(occupant.request_id, occupant.member): slot for slot, occupant in self._slots.occupied()}
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
        for group in self._groups:
            group.prompt = None
        if self.config.stale_states == "recompute":
            self._recompute_states()

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
        members: dict[int, PausedSequence] = {}
        fresh: list[int] = []
        reading: Mapping[str, Tensor] = {}
        for group in self._unseated():
            if group.request.id == request_id:
                members |= group.paused
                fresh += [member for member in group.waiting if member not in group.paused]
                reading = group.reading
        for slot, occupant in self._slots.occupied():
            if occupant.request_id == request_id and self._slots.has_begun(slot):
                members[occupant.member] = self._slots.pause(slot, self._cache.snapshot(slot))
        for group, read in self._readings:
            if group.request.id == request_id:
                fresh.append(self._slots.occupant(read.slot).member)
                reading = self._cache.snapshot(read.slot) if read.num_read else {}
        return PausedRequest(self._requests[request_id], sorted(fresh), members, reading).to_state()

    def resume(self, state: ModelState) -> None:
        """Queue a request exactly where `snapshot` saw it.

        Raises InvalidRequest as `submit` does, and for a state that contradicts itself. A state that does not fit
        this engine's model ends as a failed completion.
        """
        paused = PausedRequest.from_state(state)
        self._check(paused.request, self._requests, paused.faults(self._vocab_size))
        members = dict(paused.members)
        self._queue(_Group(paused.request, deque(sorted([*paused.fresh, *members])), members, None, paused.reading))

    def _check(self, request: Request, under_way: Collection[str], faults: Sequence[str] = ()) -> None:
        """Raise InvalidRequest with everything that is wrong with the request, `faults` known before included."""
        faults = [*request.faults(self._vocab_size, self.config.max_length), *faults]
        if request.id in under_way:
            faults.append("its id must differ from those of the requests under way")
        if faults:
            raise InvalidRequest(f"Request {request.id!r} cannot be sampled: {'; '.join(faults)}.")

    def _queue(self, group: _Group) -> None:
        self._requests[group.request.id] = group.request
        self._num_left[group.request.id] = len(group.waiting)
        self._groups.append(group)

    @torch.inference_mode()
    def _recompute_states(self) -> None:
        """Read everything again that the slots hold. Prompts that are half read, or were, are begun anew."""
        begun = [slot for slot, _ in self._slots.occupied() if self._slots.has_begun(slot)]
        self._reader.reread([(self._tokens_in(slot), slot) for slot in begun])
        for group, reading in self._readings:
            group.reading, reading.num_read = {}, 0
        for group in self._groups:
            group.reading = {}

    def _usable(self, state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """A state that came with a request, unless older weights made it and states are recomputed."""
        if state is None:
            return {}
        arrays = {name: array for name, array in state.items() if name != STATE_VERSION}
        is_stale = int(state.get(STATE_VERSION, torch.tensor(self._version))) != self._version
        return {} if is_stale and self.config.stale_states == "recompute" else arrays

    def _tokens_in(self, slot: int) -> Ints:
        """What the cache of a slot whose sequence has begun holds: all but its last token."""
        prompt = np.asarray(self._requests[self._slots.occupant(slot).request_id].token_ids, dtype=np.int64)
        return np.concatenate([prompt, self._slots.new_tokens(slot, 0)[:-1]])

    @torch.inference_mode()
    def _step(self) -> list[Completion]:
        ended: list[Completion] = []
        lanes = self._slots.running()
        if lanes.host_N.size:
            hidden_ND = self._lm.decode(self._slots.last_tokens(lanes), lanes.slots_N, self._cache)
            ended += self._advance(lanes, self._lm.logits(hidden_ND))
        if self._readings:
            ended += self._read_on()
        while self._groups and self._slots.num_free:
            ended += self._admit()
        return ended

    def _advance(self, lanes: Lanes, logits_NV: Tensor) -> list[Completion]:
        return [self._end(slot, verdict) for slot, verdict in self._slots.advance(lanes, logits_NV, self._version)]

    def _end(self, slot: int, verdict: int, failed: str = "") -> Completion:
        """Free the slot and hand out what its sequence was given."""
        occupant = self._slots.occupant(slot)
        token_ids, logp, version = self._slots.read(slot)
        if verdict == FAILED and not failed:
            # What was drawn from broken logits is no token.
            token_ids, logp, version = token_ids[:-1], logp[:-1], version[:-1]
            failed = f"after {len(token_ids)} new tokens, version {self._version} gave logits that are not finite"
            self._cache.reset([slot])
        state = None
        if verdict == STOP and token_ids[-1] in self._requests[occupant.request_id].keep_state_after:
            state = self._cache.snapshot(slot) | {STATE_VERSION: torch.tensor(self._version)}
        experts_TLk = None
        if self._cache.records_experts and not failed:
            num_tokens = len(self._requests[occupant.request_id].token_ids) + len(token_ids)
            experts_TLk = with_blanks(self._cache.experts(slot), num_tokens).numpy()  # it has not seen the last token
        self._slots.release(slot)
        self._num_left[occupant.request_id] -= 1
        if not self._num_left[occupant.request_id]:
            del self._requests[occupant.request_id], self._num_left[occupant.request_id]
        return Completion(
            request_id=occupant.request_id,
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

    def _admit(self) -> list[Completion]:
        """Seat waiting members, in order of submission, as far as free slots and `prefill_tokens` reach.

        Fresh members get their first token; those from a snapshot have theirs and join the next decode. A long prompt
        gets a slot to be read into and is overtaken.
        """
        ended: list[Completion] = []
        entries: list[tuple[_Group, list[int]]] = []
        budget = self.config.prefill_tokens
        while self._groups and self._slots.num_free:
            group = self._groups[0]
            is_long = group.num_unread > self.config.prefill_tokens
            budget -= 0 if is_long else group.num_unread
            if entries and budget < 0:
                break
            ended += self._seat_paused(group) + self._refuse_reading(group)
            if is_long and group.waiting and not group.paused and self._slots.num_free:
                self._groups.popleft()
                self._begin_reading(group)
                continue
            slots = self._seat_fresh(group)
            if slots:
                entries.append((group, slots))
            if not group.waiting:
                self._groups.popleft()
        return ended + self._advance_fresh(entries, self._read_prompts(entries))

    def _read_prompts(self, entries: list[tuple[_Group, list[int]]]) -> Iterator[Tensor]:
        """Read each group's prompt, or what its state lacks of it, into its first slot; the logits_V after each."""
        unread = [(group, slots[0]) for group, slots in entries if group.prompt is None]
        wholes = [(group.request.token_ids, slot) for group, slot in unread if not group.reading]
        rests = [(group.request.token_ids, slot, group.reading) for group, slot in unread if group.reading]
        whole, rest = iter(self._reader.read(wholes)), iter(self._reader.read_rest(rests))
        logits = [next(rest) if group.reading else next(whole) for group, _ in unread]
        for group, _ in unread:
            group.reading = {}
        return iter(logits)

    def _begin_reading(self, group: _Group) -> None:
        """Seat one member of a group whose prompt is long."""
        slot = self._seat(group.request, group.waiting.popleft())
        if group.reading:
            self._cache.restore(slot, group.reading)
        num_read = int(group.reading["length"]) if group.reading else 0
        group.reading = {}
        self._readings.append((group, Reading(group.request.token_ids, slot, num_read)))

    def _refuse_reading(self, group: _Group) -> list[Completion]:
        """All waiting members of a group, as failed, if the state that it comes with is another model's."""
        if not group.reading:
            return []
        try:
            self._cache.check_snapshot(group.reading)
        except ModelError as error:
            members, group.waiting = group.waiting, deque()
            return [self._end(self._seat(group.request, member), FAILED, failed=str(error)) for member in members]
        return []

    def _read_on(self) -> list[Completion]:
        """Read the next piece of the long prompt that came first; after the last one its members begin."""
        group, reading = self._readings[0]
        logits_V = self._reader.read_on(reading)
        if logits_V is None:
            return []
        self._readings.popleft()
        slots = [reading.slot, *self._seat_fresh(group)]
        ended = self._advance_fresh([(group, slots)], iter([logits_V]))
        if group.waiting:
            self._groups.appendleft(group)
        return ended

    def _unseated(self) -> Iterator[_Group]:
        """The groups with members that have no slot."""
        yield from self._groups
        yield from (group for group, _ in self._readings)

    def _seat_paused(self, group: _Group) -> list[Completion]:
        """Seat the members that come from a snapshot; returns those whose state does not fit this model."""
        ended = []
        for member in [member for member in group.waiting if member in group.paused][: self._slots.num_free]:
            group.waiting.remove(member)
            paused = group.paused.pop(member)
            slot = self._seat(group.request, member)
            self._slots.go_on(slot, paused)
            try:
                self._cache.restore(slot, paused.cache)
            except ModelError as error:
                ended.append(self._end(slot, FAILED, failed=str(error)))
                continue
            if self.config.stale_states == "recompute" and paused.version.max() != self._version:
                self._reader.reread([(self._tokens_in(slot), slot)])
        return ended

    def _seat_fresh(self, group: _Group) -> list[int]:
        """Seat as many other members as there are free slots."""
        if group.paused:
            return []
        num = min(len(group.waiting), self._slots.num_free)
        return [self._seat(group.request, group.waiting.popleft()) for _ in range(num)]

    def _seat(self, request: Request, member: int) -> int:
        return self._slots.seat(Occupant(request.id, member, request.seed, request.sampling))

    def _advance_fresh(self, entries: list[tuple[_Group, list[int]]], prefilled: Iterator[Tensor]) -> list[Completion]:
        """Bring each group's prompt into its slots and draw every member's first token.

        `prefilled` has the logits_V of the groups whose prompts were just read into their first slots.
        """
        if not entries:
            return []
        logits_NV = torch.cat([self._fill(group, slots, prefilled) for group, slots in entries])
        slots = [slot for _, members in entries for slot in members]
        states: list[RuleState] = []
        for group, members in entries:
            states += [initial_state(group.request.token_ids, group.request.sampling)] * len(members)
        self._slots.begin(slots, states)
        return self._advance(self._slots.lanes(slots), logits_NV)

    def _fill(self, group: _Group, slots: list[int], prefilled: Iterator[Tensor]) -> Tensor:
        """Give every slot the state after the group's prompt; returns the logits of their first tokens, [N, V].

        The state of a prompt with members left waiting is kept aside, so that it neither holds a slot nor has to be
        computed again.
        """
        first, *others = slots
        if group.prompt is not None:
            state, logits_V = group.prompt
            self._cache.restore(first, state)
        else:
            logits_V = next(prefilled)
            if group.waiting:
                group.prompt = self._cache.snapshot(first), logits_V.clone()
        if others:
            self._cache.fork(first, others)
        return logits_V.expand(len(slots), -1)

    def _step_for(self, request_id: str) -> Completion | None:
        """One step; returns the request's completion if it ended, and keeps the others' for `step`."""
        ended = self._step()
        self._undelivered += [completion for completion in ended if completion.request_id != request_id]
        return next((completion for completion in ended if completion.request_id == request_id), None)

    def _tokens_since(self, request_id: str, first: int) -> Ints:
        """New token ids, from number `first` on, of a request with one sample; empty while it waits."""
        for slot, occupant in self._slots.occupied():
            if occupant.request_id == request_id:
                return self._slots.new_tokens(slot, first)
        return np.empty(0, dtype=np.int64)
