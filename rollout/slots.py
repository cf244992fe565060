"""The engine's slots: who sits where, what each sequence was given so far, and one more token for any of them.

Everything per slot is a preallocated column. What the next draw needs is on the device; what was sampled is on the
host; one transfer a step carries it over.

Shape suffixes: S slots, N of them that get a token together, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cispo.types import Floats, Ints
from rollout.engine_protocol import Request
from rollout.sampling import Drawing, Sampling, SamplingBatch, stream_key
from rollout.snapshot import PausedSequence
from rollout.stopping import RUNNING, RuleState, StopRules


@dataclass(frozen=True)
class Occupant:
    """Who sits in a slot: one member of a request."""

    request: Request
    member: int


@dataclass(frozen=True)
class Lanes:
    """Slots that get a token together: on the host, on the device, and how they are drawn from."""

    host_N: NDArray[np.int64]
    slots_N: Tensor
    drawing: Drawing


class Slots:
    """Seats for `num_slots` sequences of at most `max_length` new tokens."""

    def __init__(self, num_slots: int, max_length: int, device: torch.device) -> None:
        self._device = device
        self._free = list(range(num_slots))  # a heap: low slots first
        self._occupants: list[Occupant | None] = [None] * num_slots
        self._has_begun_S = [False] * num_slots  # not while the prompt is still being read
        self._rules = StopRules(num_slots, device)
        self._samplings = SamplingBatch.of([Sampling()] * num_slots, [0] * num_slots, device)
        self._last_token_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        # The record. Untouched pages cost nothing, so rows may be as long as the longest sequence.
        self._num_S = np.zeros(num_slots, dtype=np.int64)
        self._token_ST = np.empty((num_slots, max_length), dtype=np.int64)
        self._logp_ST = np.empty((num_slots, max_length), dtype=np.float32)
        self._version_ST = np.empty((num_slots, max_length), dtype=np.int64)
        self._running: Lanes | None = None  # None: somebody came or went since it was put together

    @property
    def num_free(self) -> int:
        """Slots that nobody sits in."""
        return len(self._free)

    @property
    def num_taken(self) -> int:
        """Slots that somebody sits in."""
        return len(self._occupants) - len(self._free)

    def occupied(self) -> Iterator[tuple[int, Occupant]]:
        """Every taken slot and who sits there."""
        return ((slot, occupant) for slot, occupant in enumerate(self._occupants) if occupant is not None)

    def occupant(self, slot: int) -> Occupant:
        """Who sits in a taken slot."""
        occupant = self._occupants[slot]
        assert occupant is not None, f"slot {slot} is used but nobody sits in it"
        return occupant

    def seat(self, occupant: Occupant) -> int:
        """Give the lowest free slot away. It gets no tokens before `begin` or `go_on`."""
        slot = heappop(self._free)
        self._occupants[slot] = occupant
        self._num_S[slot] = 0
        return slot

    def release(self, slot: int) -> None:
        """Free a slot."""
        self._occupants[slot] = None
        self._has_begun_S[slot] = False
        self._running = None
        heappush(self._free, slot)

    def begin(self, slots: Sequence[int], states: Sequence[RuleState]) -> None:
        """Start the sequences that were just seated in `slots`."""
        occupants = [self.occupant(slot) for slot in slots]
        samplings = [occupant.request.sampling for occupant in occupants]
        keys = [stream_key(occupant.request.seed, occupant.member) for occupant in occupants]
        slots_N = torch.tensor(slots, device=self._device)
        self._samplings.put(slots_N, SamplingBatch.of(samplings, keys, self._device))
        self._rules.assign(slots_N, samplings, states)
        for slot in slots:
            self._has_begun_S[slot] = True
        self._running = None

    def go_on(self, slot: int, paused: PausedSequence) -> None:
        """Continue a sequence that was just seated in `slot` as if it had never left one."""
        self.begin([slot], [paused.rules])
        num = len(paused.token_ids)
        self._token_ST[slot, :num] = paused.token_ids
        self._logp_ST[slot, :num] = paused.logp
        self._version_ST[slot, :num] = paused.version
        self._num_S[slot] = num
        self._last_token_S[slot] = int(paused.token_ids[-1])

    def pause(self, slot: int, cache: dict[str, Tensor]) -> PausedSequence:
        """What `go_on` needs, given the model's state of the slot; the sequence stays."""
        return PausedSequence(cache, self._rules.state(slot), *self.read(slot))

    def read(self, slot: int, first: int = 0) -> tuple[Ints, Floats, Ints]:
        """Copies of what the sequence was given from token number `first` on: token ids, log-probabilities, versions
        (-1 where forced).
        """
        num = self._num_S[slot]
        return (
            self._token_ST[slot, first:num].copy(),
            self._logp_ST[slot, first:num].copy(),
            self._version_ST[slot, first:num].copy(),
        )

    def new_tokens(self, slot: int, first: int) -> Ints:
        """A copy of the sequence's token ids from number `first` on."""
        return self._token_ST[slot, first : self._num_S[slot]].copy()

    def running(self) -> Lanes:
        """All slots whose sequences have begun."""
        if self._running is None:
            self._running = self.lanes([slot for slot, _ in self.occupied() if self._has_begun_S[slot]])
        return self._running

    def has_begun(self, slot: int) -> bool:
        """The prompt of the sequence in a taken slot has been read."""
        return self._has_begun_S[slot]

    def lanes(self, slots: Sequence[int]) -> Lanes:
        """These slots together."""
        slots_N = torch.tensor(slots, dtype=torch.int64, device=self._device)
        return Lanes(np.array(slots, dtype=np.int64), slots_N, self._samplings.take(slots_N))

    def last_tokens(self, lanes: Lanes) -> Tensor:
        """int64 [N], what the model has not seen yet."""
        return self._last_token_S[lanes.slots_N]

    def advance(self, lanes: Lanes, logits_NV: Tensor, version: int) -> list[tuple[int, int]]:
        """Draw a token for each lane and record it; returns (slot, verdict) of those that end with it."""
        token_N, logp_N = lanes.drawing.draw(logits_NV, self._rules.num_new_S[lanes.slots_N])
        ruling = self._rules.apply(lanes.slots_N, token_N, logp_N)
        self._last_token_S[lanes.slots_N] = ruling.token_N
        # float64 holds ids, float32 values and codes exactly, so that the host waits for the device only once.
        columns = (ruling.token_N, ruling.logp_N, ruling.forced_N, ruling.verdict_N)
        token, logp, forced, verdict = torch.stack([column.double() for column in columns]).cpu().numpy()
        place_N = self._num_S[lanes.host_N]
        self._token_ST[lanes.host_N, place_N] = token
        self._logp_ST[lanes.host_N, place_N] = logp
        self._version_ST[lanes.host_N, place_N] = np.where(forced, -1, version)
        self._num_S[lanes.host_N] = place_N + 1
        return [(int(lanes.host_N[lane]), int(verdict[lane])) for lane in np.flatnonzero(verdict != RUNNING)]
