"""A packed batch on disk, for whoever wants to know why an update was not finite."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cispo.types import PackedBatch, PackedRow


def save_batch(batch: PackedBatch, path: Path) -> None:
    """Write every stream of every row; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{number}/{field.name}": np.asarray(getattr(row, field.name))
        for number, row in enumerate(batch.rows)
        for field in dataclasses.fields(row)
        if getattr(row, field.name) is not None
    }
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load_batch(path: Path) -> PackedBatch:
    """What `save_batch` wrote: give it to a learner's `update` to see the fault again."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    num_rows = 1 + max(int(name.split("/")[0]) for name in arrays)
    names = [field.name for field in dataclasses.fields(PackedRow)]
    rows = [{name: arrays.get(f"{number}/{name}") for name in names} for number in range(num_rows)]
    return PackedBatch(tuple(_row(values) for values in rows))


def _row(values: dict[str, Any]) -> PackedRow:
    members = tuple((int(group), int(member)) for group, member in values.pop("members"))
    share = float(values.pop("share"))
    return PackedRow(**values, members=members, share=share)
