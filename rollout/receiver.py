"""A version of the weights on its way to the workers: what it should be, and the check that it is.

A worker that took a torn, stale or foreign set of weights would sample from a policy nobody trained, silently. So every
tensor travels with its shape, dtype and checksum, and a package is checked whole before a single weight is replaced.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cispo.errors import WeightSyncError


@dataclass(frozen=True)
class TensorRecord:
    """What one tensor must be on arrival."""

    shape: tuple[int, ...]
    dtype: str
    crc32: int


@dataclass(frozen=True)
class WeightPackage:
    """One version of the weights, in the checkpoint's names, with what each tensor must be.

    Arrays put into Ray's object store are read by every worker on the node without a copy.
    """

    version: int
    records: dict[str, TensorRecord]
    arrays: dict[str, NDArray[Any]]


def make_package(weights: Iterable[tuple[str, NDArray[Any]]], version: int) -> WeightPackage:
    """Copy the stream (the learner goes on changing its own memory) and note what every tensor is."""
    arrays = {name: np.array(array, order="C", copy=True) for name, array in weights}
    return WeightPackage(version, {name: record_of(array) for name, array in arrays.items()}, arrays)


def record_of(array: NDArray[Any]) -> TensorRecord:
    """Shape, dtype and checksum of an array."""
    return TensorRecord(tuple(array.shape), str(array.dtype), zlib.crc32(np.ascontiguousarray(array).data))


def verified(package: WeightPackage, *, expected_version: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of `package`, once all of them are what they should be.

    Raises WeightSyncError naming every tensor that is missing, unexpected or damaged, or the wrong version.
    """
    if package.version != expected_version:
        raise WeightSyncError(
            f"expected the weights of version {expected_version} but version {package.version} arrived; "
            f"the worker keeps the weights it has."
        )
    missing = sorted(package.records.keys() - package.arrays.keys())
    extra = sorted(package.arrays.keys() - package.records.keys())
    damaged = sorted(
        name
        for name in package.records.keys() & package.arrays.keys()
        if record_of(package.arrays[name]) != package.records[name]
    )
    faults = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("missing", missing),
            ("not announced", extra),
            ("checksum, shape or dtype differ", damaged),
        )
        if names
    ]
    if faults:
        raise WeightSyncError(
            f"the weights of version {package.version} did not arrive as they were sent ({'; '.join(faults)}); "
            f"the worker keeps the weights it has."
        )
    return iter(package.arrays.items())
