"""A WeightPackage as bytes, for a server that is told of new weights over HTTP.

    one line of JSON {"version": 3, "tensors": {name: {"shape", "dtype", "checksum"}}}, then every array in that order

What arrives is checked by rollout/weight_package.py like any other package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from cispo.errors import WeightSyncError
from rollout.weight_memory import TensorForm
from rollout.weight_package import Manifest, TensorRecord, WeightPackage

MEDIA_TYPE = "application/x-cispo-weights"
MAX_HEADER_BYTES = 1 << 26


def header_of(package: WeightPackage) -> bytes:
    """The line that tells of all tensors."""
    records = package.manifest.records
    tensors = {name: asdict(record.form) | {"checksum": record.checksum} for name, record in records.items()}
    return json.dumps({"version": package.manifest.version, "tensors": tensors}).encode() + b"\n"


def digest_of(package: WeightPackage) -> str:
    """SHA-256, in hex, of what the package says of version and tensors: equal packages have equal ones."""
    return hashlib.sha256(header_of(package)).hexdigest()


def num_bytes(package: WeightPackage) -> int:
    """Length of what `to_bytes` gives."""
    return len(header_of(package)) + sum(array.nbytes for array in package.arrays.values())


def to_bytes(package: WeightPackage) -> Iterator[bytes | memoryview]:
    """The package piece by piece, without a copy of the arrays."""
    yield header_of(package)
    for name in package.manifest.records:
        yield np.ascontiguousarray(package.arrays[name]).reshape(-1).view(np.uint8).data


def from_bytes(body: bytes | bytearray) -> WeightPackage:
    """The inverse; the arrays are views of `body` where it is aligned for them.

    Raises WeightSyncError for what `to_bytes` cannot have made.
    """
    end = body.find(b"\n", 0, MAX_HEADER_BYTES) + 1
    try:
        header = json.loads(bytes(body[:end]))
        version = int(header["version"])
        records = {
            str(name): TensorRecord(
                TensorForm(tuple(map(int, entry["shape"])), str(entry["dtype"])), int(entry["checksum"])
            )
            for name, entry in header["tensors"].items()
        }
        forms = {name: record.form for name, record in records.items()}
        sizes = {name: form.num_bytes for name, form in forms.items()}
        is_plain = all(f.array_dtype.kind in "fiub" and min(f.shape, default=0) >= 0 for f in forms.values())
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise WeightSyncError(
            f"weights must begin with a line of JSON that tells version and tensors, but {type(error).__name__}: "
            f"{error}; the old weights are kept."
        ) from error
    if not is_plain or end + sum(sizes.values()) != len(body):
        raise WeightSyncError(
            f"the weights of version {version} announce {sum(sizes.values())} bytes of plain numbers and "
            f"{len(body) - end} arrived; the old weights are kept."
        )
    arrays = {}
    for name, form in forms.items():
        part = np.frombuffer(body, dtype=np.uint8, count=sizes[name], offset=end)
        arrays[name] = np.require(part.view(form.array_dtype).reshape(form.shape), requirements="A")
        end += sizes[name]
    return WeightPackage(Manifest(version, records), arrays)
