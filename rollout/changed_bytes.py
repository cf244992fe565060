"""A version as the difference to the one before: which blocks of bytes changed, and what they are now.

With a small learning rate most updates of a bfloat16 weight are below its rounding step, so most bytes stay
(docs/weight_sync.md has the shares that were measured). Whoever has the older version patches a copy of it in place;
checksums of whole tensors say whether the result is what the learner has, and if not the patch is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cispo.errors import NeedsWhole, WeightSyncError
from rollout.canary import Canary
from rollout.checksum import Bytes, as_bytes, copy_with_checksum
from rollout.weight_memory import Array, TensorForm, WeightMemory, array_of
from rollout.weight_package import Manifest, TensorRecord, WeightPackage, check_arrays


@dataclass(frozen=True)
class TensorChanges:
    """Of one tensor.

    Attributes:
        changed: uint8, one bit for each block, as numpy.packbits packs them.
        blocks: the changed blocks, one after the other, as words.
        rest: uint8, the bytes beyond the last whole block, changed or not.
    """

    changed: Bytes
    blocks: Array
    rest: Bytes

    @property
    def num_bytes(self) -> int:
        """That travel."""
        return self.changed.nbytes + self.blocks.nbytes + self.rest.nbytes


@dataclass(frozen=True)
class Changes:
    """What makes one version of another.

    Attributes:
        manifest: what the new version must be, tensors without changes included.
        base_version: the older one.
        block_bytes: of a block.
        tensors: of those that changed, by name.
    """

    manifest: Manifest
    base_version: int
    block_bytes: int
    tensors: Mapping[str, TensorChanges]

    @property
    def num_bytes(self) -> int:
        """That travel."""
        return sum(changes.num_bytes for changes in self.tensors.values())


def find_changes(
    memory: WeightMemory,
    records: Mapping[str, TensorRecord],
    weights: Iterable[tuple[str, Tensor]],
    version: int,
    block_bytes: int,
) -> Changes:
    """What `weights` change in `memory`, which afterwards holds them; the canary is to be added.

    Args:
        memory: the version published last.
        records: what its tensors are.
        weights: the new version, of the same names, shapes and dtypes.
        version: its number.
        block_bytes: of a block, a power of 2.
    """
    base_version, memory.version = memory.version, None
    if base_version is None:
        raise WeightSyncError(f"version {version} cannot be told as changes, because no whole version came before it.")
    found: dict[str, TensorChanges] = {}
    new_records: dict[str, TensorRecord] = {}
    for name, tensor in weights:
        old, new = as_bytes(memory.arrays[name]), as_bytes(array_of(tensor))
        changed = _changed(_blocks(old, block_bytes), _blocks(new, block_bytes))
        rest = new[len(changed) * block_bytes :].copy()
        if changed.any() or (old[len(changed) * block_bytes :] != rest).any():
            found[name] = TensorChanges(np.packbits(changed), _blocks(new, block_bytes)[changed], rest)
            new_records[name] = TensorRecord(TensorForm.of(tensor), copy_with_checksum(old, new))
        else:
            new_records[name] = records[name]
    memory.version = version
    return Changes(Manifest(version, new_records), base_version, block_bytes, found)


def apply_changes(memory: WeightMemory | None, changes: Changes) -> WeightPackage:
    """The new version, in `memory`, which held the older one.

    Raises NeedsWhole if it did not, and WeightSyncError, with the older version in place again, if the result is not
    what the learner has.
    """
    version = changes.manifest.version
    held = None if memory is None else memory.version
    if memory is None or held != changes.base_version:
        raise NeedsWhole(
            f"version {version} came as changes to version {changes.base_version}, and this worker holds "
            f"{'none' if held is None else f'version {held}'}"
        )
    memory.version = None
    replaced = {name: _patch(memory, name, each, changes.block_bytes) for name, each in changes.tensors.items()}
    try:
        check_arrays(changes.manifest, memory.arrays)
    except WeightSyncError:
        for name, old in replaced.items():
            _patch(memory, name, old, changes.block_bytes)
        memory.version = held
        raise
    memory.version = version
    return WeightPackage(changes.manifest, memory.arrays)


def with_canary(changes: Changes, canary: Canary | None) -> Changes:
    """`changes` with what the new version must compute."""
    manifest = Manifest(changes.manifest.version, changes.manifest.records, canary)
    return Changes(manifest, changes.base_version, changes.block_bytes, changes.tensors)


def _patch(memory: WeightMemory, name: str, changes: TensorChanges, block_bytes: int) -> TensorChanges:
    """Write the changes of a tensor; returns those that take them back."""
    data = as_bytes(memory.arrays[name])
    blocks = _blocks(data, block_bytes)
    changed = np.unpackbits(changes.changed, count=len(blocks)).view(bool)
    rest = data[len(blocks) * block_bytes :]
    before = TensorChanges(changes.changed, blocks[changed], rest.copy())
    blocks[changed] = changes.blocks
    rest[:] = changes.rest
    return before


def _changed(old: Array, new: Array) -> NDArray[np.bool_]:
    """Which blocks differ, bool [blocks]."""
    differs: NDArray[np.bool_] = old != new
    if differs.shape[1] == 1:  # numpy is slow over an axis of one
        return differs[:, 0]
    return np.logical_or.reduce(differs, axis=1)


def _blocks(data: Bytes, block_bytes: int) -> Array:
    """[blocks, words of a block] on the same memory, in the largest words that fit."""
    word = min(block_bytes, 8)
    whole = data[: len(data) // block_bytes * block_bytes]
    blocks: Array = whole.view(f"u{word}").reshape(-1, block_bytes // word)
    return blocks
