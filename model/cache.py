"""What the model remembers of the sequences that it is generating: preallocated pools of slots.

Each layer's mixer says what it keeps (model/layer.py): one constant-size float32 state per slot, as lightning layers
do, or something for every position, as softmax layers do with keys and values. A state cannot be rolled back, so going
back takes a snapshot made earlier. What this costs in bytes is in docs/long_context.md.

Shapes: S slots, H heads, K key/value heads, M longest length, d head width.
"""

from __future__ import annotations

import math
import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import HybridConfig
from model.errors import ModelError
from model.families import kept_by_layer
from model.replay import ChoiceLog, record_dtype

Slots = Tensor | Sequence[int]
Pools = dict[int, Tensor]
"""Layer -> pool."""

SHORT = 4096
"""Length up to which sequences decode together. Beyond it those within a factor of four do, or a short one would be
compared with as many keys as the longest has."""


@dataclass(frozen=True)
class Part:
    """Sequences of a turn that a softmax layer attends together, because they are of similar length.

    Attributes:
        lanes: which of the turn's N.
        run: their slots, as an index into a pool.
        longest: the greatest length among them once the new tokens are in.
    """

    lanes: slice | Tensor
    run: slice | Tensor
    longest: int


@dataclass(frozen=True)
class Turn:
    """One decoding step as the layers see it: N different slots, of which each gets one token.

    Attributes:
        slots_N: int64, the slots.
        run: the same slots as an index into a pool: consecutive ones as a slice, which makes a view.
        length_N: int64, tokens that each slot has seen; the new token's position.
        parts: the slots by length, for softmax layers.
        cos_NR, sin_NR: float32 [N, rotary_dim / 2], the rotation of each new token's position.
    """

    slots_N: Tensor
    run: slice | Tensor
    length_N: Tensor
    parts: tuple[Part, ...]
    cos_NR: Tensor
    sin_NR: Tensor


class HybridCache:
    """State pools for `num_slots` sequences of at most `max_length` tokens.

    Attributes:
        length_S: int64 [S], tokens that each slot has seen.
        constant: name -> layer -> [S, ...], states of constant size, float32 at least, whatever `dtype` is.
        growing: name -> layer -> [S, K, M, d] in `dtype`, what is kept of every token.
        states: the constant pools named "state", of layers with a decay: [S, H, d, d].
        keys, values: the growing pools of these names, of softmax layers.
        records_experts: the growing pool "experts" of layer 0 keeps, for all L layers with routers, which k experts
            each token visited: [S, L, M, k] in a dtype of `record_dtype`. So a record goes wherever a state goes.
    """

    def __init__(
        self,
        config: HybridConfig,
        num_slots: int,
        max_length: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        records_experts: bool = False,
    ) -> None:
        if num_slots <= 0 or max_length <= 0:
            raise ModelError(
                f"A cache needs at least one slot and one token, not {num_slots} slots of {max_length} tokens."
            )
        state_dtype = torch.promote_types(dtype, torch.float32)
        self.num_slots = num_slots
        self.max_length = max_length
        self.length_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.constant: dict[str, Pools] = defaultdict(dict)
        self.growing: dict[str, Pools] = defaultdict(dict)
        for layer, kept in enumerate(kept_by_layer(config)):
            for name, shape in kept.states.items():
                self.constant[name][layer] = torch.zeros(num_slots, *shape, dtype=state_dtype, device=device)
            for name, (heads, width) in kept.tokens.items():
                shape = (num_slots, heads, max_length, width)
                self.growing[name][layer] = _untouched_zeros(shape, dtype, device)
        self.records_experts = records_experts
        if records_experts:
            num_routers = config.num_hidden_layers - config.first_k_dense_replace
            record_shape = (num_slots, num_routers, max_length, config.num_experts_per_tok)
            self.growing["experts"][0] = _untouched_zeros(record_shape, record_dtype(config.num_local_experts), device)
        self.states = self.constant["state"]
        self.keys, self.values = self.growing["keys"], self.growing["values"]

    def reset(self, slots: Slots) -> None:
        """Forget what `slots` hold, as far as they were used.

        Keys and values beyond a length have weight 0, but 0 * NaN is NaN: left-overs must be numbers.
        """
        slots_N = self._indices(slots)
        longest = int(self.length_S[slots_N].max()) if len(slots_N) else 0
        self.length_S[slots_N] = 0
        for pool in _each(self.constant):
            pool[slots_N] = 0
        if longest:
            for pool in _each(self.growing):
                pool[slots_N, :, :longest] = 0

    def fork(self, source: int, targets: Slots) -> None:
        """Copy everything that slot `source` holds into each of `targets`."""
        slots_N = self._indices(targets)
        length = int(self.length_S[source])
        self.length_S[slots_N] = length
        for pool in _each(self.constant):
            pool[slots_N] = pool[source].clone()
        for pool in _each(self.growing):
            pool[slots_N, :, :length] = pool[source, :, :length].clone()

    def snapshot(self, slot: int) -> dict[str, Tensor]:
        """A copy, on the CPU, of all that `slot` holds; its size follows the length that was used."""
        length = int(self.length_S[slot])
        places = self._places(slot, length)
        return {"length": torch.tensor(length)} | {name: place.cpu().clone() for name, place in places.items()}

    def restore(self, slot: int, arrays: Mapping[str, Tensor]) -> None:
        """Put a snapshot into `slot`. Raises ModelError, and changes nothing, if it does not fit."""
        self.check_snapshot(arrays)
        length = int(arrays["length"])
        for name, place in self._places(slot, length).items():
            place.copy_(arrays[name])
        self.length_S[slot] = length

    def check_snapshot(self, arrays: Mapping[str, Tensor]) -> None:
        """Raise ModelError if a snapshot does not fit into a slot of this cache."""
        if "length" not in arrays or not 0 <= int(arrays["length"]) <= self.max_length:
            raise ModelError(
                f"A snapshot must have a length of at most {self.max_length} tokens to fit this cache, "
                f"but it has {int(arrays['length']) if 'length' in arrays else 'none'}."
            )
        wanted = {name: tuple(place.shape) for name, place in self._places(0, int(arrays["length"])).items()}
        found = {name: tuple(array.shape) for name, array in arrays.items() if name != "length"}
        if wanted != found:
            wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise ModelError(
                f"A snapshot must have the shapes of this model's cache, but {wrong[0]} is {found.get(wrong[0])} "
                f"where {wanted.get(wrong[0])} is needed ({len(wrong)} differ); use one made with the same model."
            )

    def record(self, choices: ChoiceLog, slots_T: Tensor, position_T: Tensor, wanted_N: Tensor | None = None) -> None:
        """Keep what was chosen for the tokens at these places; see `ChoiceLog.record` for `wanted_N`."""
        pool = self.growing["experts"][0]
        pool[slots_T, :, position_T] = choices.record(pool.dtype, len(slots_T), wanted_N)

    def experts(self, slot: int) -> Tensor:
        """A copy, on the CPU, of the record of all tokens that `slot` has seen, [T, L, k]."""
        return self.growing["experts"][0][slot, :, : int(self.length_S[slot])].transpose(0, 1).cpu().contiguous()

    def bytes(self) -> int:
        """Memory of all pools once every slot is full, in bytes; on the CPU, places never written cost nothing."""
        pools = (*_each(self.constant), *_each(self.growing))
        return sum(pool.numel() * pool.element_size() for pool in pools)

    def check_room(self, slots_N: Tensor, num_new_N: Tensor) -> int:
        """Longest length of `slots_N` after `num_new_N` more tokens each; raises ModelError if it does not fit."""
        longest = int((self.length_S[slots_N] + num_new_N).max())
        if longest > self.max_length:
            raise ModelError(
                f"A sequence may have at most {self.max_length} tokens in this cache, but one would grow to "
                f"{longest}; make the cache longer or stop earlier."
            )
        return longest

    def run(self, slots_N: Tensor) -> slice | Tensor:
        """How to index a pool by slots: consecutive ones as a slice, which makes a view, others as they are.

        Only on the CPU, where looking costs nothing and copying a pool's part costs more than using it.
        """
        if slots_N.device.type != "cpu":
            return slots_N
        first, last = int(slots_N[0]), int(slots_N[-1])
        if last - first + 1 == len(slots_N) and torch.equal(slots_N, torch.arange(first, last + 1)):
            return slice(first, last + 1)
        return slots_N

    def parts(self, slots_N: Tensor, length_N: Tensor, longest: int) -> tuple[Part, ...]:
        """The slots by length, `longest` being the greatest once each has one more token; see `Part`."""
        if longest <= SHORT:
            return (Part(slice(None), self.run(slots_N), longest),)
        # 0 up to SHORT, 1 up to 4 SHORT, 2 up to 16 SHORT, ...
        class_N = ((length_N + 1).clamp(min=SHORT).double() / SHORT).log2().div(2).ceil()
        parts = []
        for number in class_N.unique().tolist():
            lanes_n = (class_N == number).nonzero()[:, 0]
            parts.append(Part(lanes_n, self.run(slots_N[lanes_n]), int(length_N[lanes_n].max()) + 1))
        return tuple(parts)

    def _places(self, slot: int, length: int) -> dict[str, Tensor]:
        """Views of all that `slot` holds of a sequence of `length` tokens, under the names of a snapshot."""
        places: dict[str, Tensor] = {}
        for name, pools in self.constant.items():
            places |= {f"layers.{layer}.{name}": pool[slot] for layer, pool in pools.items()}
        for name, pools in self.growing.items():
            places |= {f"layers.{layer}.{name}": pool[slot, :, :length] for layer, pool in pools.items()}
        return places

    def _indices(self, slots: Slots) -> Tensor:
        return torch.as_tensor(slots, dtype=torch.int64, device=self.length_S.device)


def _each(named: dict[str, Pools]) -> Iterator[Tensor]:
    return (pool for pools in named.values() for pool in pools.values())


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """Zeros that, on the CPU, take no memory before they are written: places for a long sequence cost nothing until
    one is that long (`torch.zeros` writes them all)."""
    if torch.device(device).type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    # Without a reserve, or the system refuses more than it has, however little of it is ever written.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
