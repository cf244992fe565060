"""Who sits in which slot of the engine, and whose prompt is read when.

A prompt is prefilled once for its whole group and its state copied to the members; short prompts together, a long one
in pieces, one a step, so that nobody waits for it. Members without a slot wait in the order of submission.

Shape suffixes: N sequences that get their first token, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cispo.types import Ints
from model import HybridCache, ModelError
from rollout.engine_protocol import Request
from rollout.prompt_reader import PromptReader, Reading
from rollout.slots import Occupant, Slots
from rollout.snapshot import PausedSequence
from rollout.stopping import RuleState, initial_state


@dataclass
class Waiting:
    """A request some of whose members still wait for a slot.

    Attributes:
        members: those without a slot, in order.
        paused: those of them that come from a snapshot.
        prompt: cache state and logits_V after the prompt, kept while fresh members wait for a slot.
        reading: cache state after a part of the prompt, from a snapshot or from the turn before.
    """

    request: Request
    members: deque[int]
    paused: dict[int, PausedSequence] = field(default_factory=dict)
    prompt: tuple[dict[str, Tensor], Tensor] | None = None
    reading: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_unread(self) -> int:
        """Tokens of the prompt that no state at hand holds."""
        if self.prompt is not None:
            return 0
        return len(self.request.token_ids) - (int(self.reading["length"]) if self.reading else 0)


@dataclass(frozen=True)
class Begun:
    """Sequences that were just seated, and the logits_NV of their first tokens."""

    slots: Sequence[int]
    logits_NV: Tensor


@dataclass(frozen=True)
class Refused:
    """A member in a slot that cannot go on, because the state that it came with is another model's."""

    slot: int
    reason: str


class Seating:
    """See the head of the file.

    Args:
        slots: the seats, which the engine frees.
        cache: the model's state of each.
        reader: reads prompts into it.
        prefill_tokens: of prompts that are read in one step; a longer prompt is read in pieces.
    """

    def __init__(self, slots: Slots, cache: HybridCache, reader: PromptReader, prefill_tokens: int) -> None:
        self._slots = slots
        self._cache = cache
        self._reader = reader
        self._prefill_tokens = prefill_tokens
        self._groups: deque[Waiting] = deque()
        self._readings: deque[tuple[Waiting, Reading]] = deque()  # long prompts, each in a slot

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a slot."""
        return sum(len(group.members) for group in self._unseated())

    @property
    def has_groups(self) -> bool:
        """Some request has no slot at all yet, or not enough."""
        return bool(self._groups)

    def queue(self, group: Waiting) -> None:
        """Behind all others."""
        self._groups.append(group)

    def cancel(self, request_ids: set[str]) -> None:
        """Forget these requests; who sits in a slot gives it back."""
        self._groups = deque(group for group in self._groups if group.request.id not in request_ids)
        self._readings = deque(entry for entry in self._readings if entry[0].request.id not in request_ids)
        for slot, occupant in list(self._slots.occupied()):
            if occupant.request.id in request_ids:
                self._slots.release(slot)

    def unbegun(self, request_id: str) -> tuple[list[int], dict[int, PausedSequence], Mapping[str, Tensor]]:
        """Of a request: its members without a token, those from a snapshot that wait, and the prompt's state if it is
        read in part.
        """
        fresh: list[int] = []
        paused: dict[int, PausedSequence] = {}
        reading: Mapping[str, Tensor] = {}
        for group in self._unseated():
            if group.request.id == request_id:
                paused |= group.paused
                fresh += [member for member in group.members if member not in group.paused]
                reading = group.reading
        for group, read in self._readings:
            if group.request.id == request_id:
                fresh.append(self._slots.occupant(read.slot).member)
                reading = self._cache.snapshot(read.slot) if read.num_read else {}
        return sorted(fresh), paused, reading

    def forget_prompts(self) -> None:
        """New weights are there: a prompt that was read for members without a slot is to be read again."""
        for group in self._groups:
            group.prompt = None

    def recompute_states(self) -> None:
        """Read everything again that the slots hold. Prompts that are half read, or were, are begun anew."""
        begun = [slot for slot, _ in self._slots.occupied() if self._slots.has_begun(slot)]
        self._reader.reread([(self._tokens_in(slot), slot) for slot in begun])
        for group, reading in self._readings:
            group.reading, reading.num_read = {}, 0
        for group in self._groups:
            group.reading = {}

    def arrivals(self, recompute_unless: int | None) -> Iterator[Begun | Refused]:
        """Read on in a long prompt, and seat waiting members as long as slots are free; each arrival is to be dealt
        with before the next is asked for, because those that end at once free their slots.

        Args:
            recompute_unless: the version of the weights, if the state of a member from a snapshot that was sampled with
                another is to be recomputed; None keeps states as they are.
        """
        if self._readings:
            yield from self._read_on()
        while self._groups and self._slots.num_free:
            yield from self._admit(recompute_unless)

    def _admit(self, recompute_unless: int | None) -> Iterator[Begun | Refused]:
        """Seat waiting members, in order of submission, as far as free slots and `prefill_tokens` reach.

        Fresh members get their first token; those from a snapshot have theirs and join the next decode. A long prompt
        gets a slot to be read into and is overtaken.
        """
        entries: list[tuple[Waiting, list[int]]] = []
        budget = self._prefill_tokens
        while self._groups and self._slots.num_free:
            group = self._groups[0]
            is_long = group.num_unread > self._prefill_tokens
            budget -= 0 if is_long else group.num_unread
            if entries and budget < 0:
                break
            yield from self._seat_paused(group, recompute_unless)
            yield from self._refuse_reading(group)
            if is_long and group.members and not group.paused and self._slots.num_free:
                self._groups.popleft()
                self._begin_reading(group)
                continue
            slots = self._seat_fresh(group)
            if slots:
                entries.append((group, slots))
            if not group.members:
                self._groups.popleft()
        yield from self._begin(entries, self._read_prompts(entries))

    def _read_prompts(self, entries: list[tuple[Waiting, list[int]]]) -> Iterator[Tensor]:
        """Read each group's prompt, or what its state lacks of it, into its first slot; the logits_V after each."""
        unread = [(group, slots[0]) for group, slots in entries if group.prompt is None]
        wholes = [(group.request.token_ids, slot) for group, slot in unread if not group.reading]
        rests = [(group.request.token_ids, slot, group.reading) for group, slot in unread if group.reading]
        whole, rest = iter(self._reader.read(wholes)), iter(self._reader.read_rest(rests))
        logits = [next(rest) if group.reading else next(whole) for group, _ in unread]
        for group, _ in unread:
            group.reading = {}
        return iter(logits)

    def _begin_reading(self, group: Waiting) -> None:
        """Seat one member of a group whose prompt is long."""
        slot = self._seat(group.request, group.members.popleft())
        if group.reading:
            self._cache.restore(slot, group.reading)
        num_read = int(group.reading["length"]) if group.reading else 0
        group.reading = {}
        self._readings.append((group, Reading(group.request.token_ids, slot, num_read)))

    def _read_on(self) -> Iterator[Begun]:
        """Read the next piece of the long prompt that came first; after the last one its members begin."""
        group, reading = self._readings[0]
        logits_V = self._reader.read_on(reading)
        if logits_V is None:
            return
        self._readings.popleft()
        slots = [reading.slot, *self._seat_fresh(group)]
        yield from self._begin([(group, slots)], iter([logits_V]))
        if group.members:
            self._groups.appendleft(group)

    def _unseated(self) -> Iterator[Waiting]:
        """The groups with members that have no slot."""
        yield from self._groups
        yield from (group for group, _ in self._readings)

    def _refuse_reading(self, group: Waiting) -> Iterator[Refused]:
        """All waiting members of a group if the state that it comes with is another model's."""
        if not group.reading:
            return
        try:
            self._cache.check_snapshot(group.reading)
        except ModelError as error:
            members, group.members = group.members, deque()
            for member in members:
                yield Refused(self._seat(group.request, member), str(error))

    def _seat_paused(self, group: Waiting, recompute_unless: int | None) -> Iterator[Refused]:
        """Seat the members that come from a snapshot; those whose state does not fit this model are refused."""
        for member in [member for member in group.members if member in group.paused][: self._slots.num_free]:
            group.members.remove(member)
            paused = group.paused.pop(member)
            slot = self._seat(group.request, member)
            self._slots.go_on(slot, paused)
            try:
                self._cache.restore(slot, paused.cache)
            except ModelError as error:
                yield Refused(slot, str(error))
                continue
            if recompute_unless not in (None, paused.version.max()):
                self._reader.reread([(self._tokens_in(slot), slot)])

    def _seat_fresh(self, group: Waiting) -> list[int]:
        """Seat as many other members as there are free slots."""
        if group.paused:
            return []
        num = min(len(group.members), self._slots.num_free)
        return [self._seat(group.request, group.members.popleft()) for _ in range(num)]

    def _seat(self, request: Request, member: int) -> int:
        return self._slots.seat(Occupant(request, member))

    def _begin(self, entries: list[tuple[Waiting, list[int]]], prefilled: Iterator[Tensor]) -> Iterator[Begun]:
        """Bring each group's prompt into its slots; every member can be given its first token then.

        `prefilled` has the logits_V of the groups whose prompts were just read into their first slots.
        """
        if not entries:
            return
        logits_NV = torch.cat([self._fill(group, slots, prefilled) for group, slots in entries])
        slots = [slot for _, members in entries for slot in members]
        states: list[RuleState] = []
        for group, members in entries:
            states += [initial_state(group.request.token_ids, group.request.sampling)] * len(members)
        self._slots.begin(slots, states)
        yield Begun(slots, logits_NV)

    def _fill(self, group: Waiting, slots: list[int], prefilled: Iterator[Tensor]) -> Tensor:
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
            if group.members:
                group.prompt = self._cache.snapshot(first), logits_V.clone()
        if others:
            self._cache.fork(first, others)
        return logits_V.expand(len(slots), -1)

    def _tokens_in(self, slot: int) -> Ints:
        """What the cache of a slot whose sequence has begun holds: all but its last token."""
        prompt = np.asarray(self._slots.occupant(slot).request.token_ids, dtype=np.int64)
        return np.concatenate([prompt, self._slots.new_tokens(slot, 0)[:-1]])
