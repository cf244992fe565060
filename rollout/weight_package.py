"""A version of the weights on its way to the workers: what every tensor must be, and the bytes.

A worker that took a torn, stale or foreign set of weights would sample from a policy nobody trained, silently. So every
tensor travels with its shape, dtype and checksum, and a version is checked whole before a single weight is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cispo.errors import WeightSyncError
from cispo.protocols import WeightStream
from rollout.canary import Canary
from rollout.checksum import checksum, copy_with_checksum
from rollout.weight_memory import Array, TensorForm, WeightMemory, array_of, tensor_of


@dataclass(frozen=True)
class TensorRecord:
    """What one tensor must be on arrival."""

    form: TensorForm
    checksum: int


@dataclass(frozen=True)
class Manifest:
    """What one version must be on arrival, by checkpoint name, and what it must compute."""

    version: int
    records: Mapping[str, TensorRecord]
    canary: Canary | None = None

    @property
    def forms(self) -> dict[str, TensorForm]:
        """Of all tensors."""
        return {name: record.form for name, record in self.records.items()}

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""
        return sum(record.form.num_bytes for record in self.records.values())


@dataclass(frozen=True)
class WeightPackage:
    """One whole version. Arrays put into Ray's object store are read by every worker on the node without a copy.

    Attributes:
        manifest: what it must be.
        arrays: by checkpoint name.
        is_base: the next version may come as changes to this one, so whoever takes it keeps a copy.
    """

    manifest: Manifest
    arrays: Mapping[str, Array]
    is_base: bool = False

    @property
    def num_bytes(self) -> int:
        """That travel."""
        return self.manifest.num_bytes

    def tensors(self) -> WeightStream:
        """(name, tensor) on the memory of the arrays."""
        for name, record in self.manifest.records.items():
            yield name, tensor_of(self.arrays[name], record.form)


def make_package(
    weights: Iterable[tuple[str, Tensor]], version: int, canary: Canary | None = None, *, copies: bool = True
) -> WeightPackage:
    """Note what every tensor is, and keep a copy, because the learner goes on changing its own memory.

    Without `copies` the arrays may lie on that memory: for a package that is written elsewhere before the next update.
    """
    forms, arrays = {}, {}
    for name, tensor in weights:
        forms[name], array = TensorForm.of(tensor), array_of(tensor)
        arrays[name] = array.copy() if copies else array
    return WeightPackage(Manifest(version, records_of(arrays, forms), canary), arrays)


def fill(memory: WeightMemory, weights: Iterable[tuple[str, Tensor]], version: int) -> dict[str, TensorRecord]:
    """Write a version into memory of its forms; returns what it must be elsewhere."""
    memory.version = None
    records = {}
    for name, tensor in weights:
        form = TensorForm.of(tensor)
        if memory.forms.get(name) != form:
            raise WeightSyncError(
                f"version {version} has {name} as {form}, where the versions before had {memory.forms.get(name)}; "
                f"weights keep their names, shapes and dtypes throughout a run."
            )
        records[name] = TensorRecord(form, copy_with_checksum(memory.arrays[name], array_of(tensor)))
    memory.version = version
    return records


def check_arrays(manifest: Manifest, arrays: Mapping[str, Array]) -> None:
    """Raise WeightSyncError that names every tensor which is missing, not announced or not what it should be."""
    forms = {name: form for name, form in manifest.forms.items() if name in arrays}
    check_found(manifest, records_of(arrays, forms), arrays)


def check_found(manifest: Manifest, found: Mapping[str, TensorRecord], arrays: Mapping[str, Array]) -> None:
    """`check_arrays` with the records of what came, by name, known already."""
    faults = [
        f"{what}: {', '.join(sorted(names))}"
        for what, names in (
            ("missing", manifest.records.keys() - arrays.keys()),
            ("not announced", arrays.keys() - manifest.records.keys()),
            (
                "checksum, shape or dtype differ",
                {name for name, record in found.items() if manifest.records[name] != record},
            ),
        )
        if names
    ]
    if faults:
        raise WeightSyncError(
            f"the weights of version {manifest.version} did not arrive as they were sent ({'; '.join(faults)}); "
            f"the worker keeps the weights it has."
        )


def records_of(arrays: Mapping[str, Array], forms: Mapping[str, TensorForm]) -> dict[str, TensorRecord]:
    """`record_of` each of `forms`, in as many threads as torch has: numpy lets go of the interpreter while it sums."""
    names, num_threads = list(forms), torch.get_num_threads()

    def records(mine: list[str]) -> dict[str, TensorRecord]:
        return {name: record_of(arrays[name], forms[name]) for name in mine}

    if num_threads == 1:
        return records(names)
    with ThreadPoolExecutor(num_threads) as pool:
        shares = list(pool.map(records, [names[first::num_threads] for first in range(num_threads)]))
    found = {name: record for share in shares for name, record in share.items()}
    return {name: found[name] for name in names}


def record_of(array: Array, expected: TensorForm) -> TensorRecord:
    """What `array` is, where a tensor of form `expected` should be."""
    dtype = expected.dtype if array.dtype == expected.array_dtype else str(array.dtype)
    return TensorRecord(TensorForm(tuple(array.shape), dtype), checksum(array))
