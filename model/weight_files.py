"""Safetensors files, read and written one tensor at a time, and every fault of a model folder's files at once.

The format is eight bytes with the header's length, a JSON header of dtypes, shapes and places, and the numbers
(https://huggingface.co/docs/safetensors). The library of that name reads through a memory map, whose pages count as
the process's own until the file is closed, and writes whole files from memory: reading a sharded model of 127 MB took
169 MB, and would take twice the model from a single file. Here either takes one tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from model.errors import ModelError

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What a weight may be. Others (8-bit floats, integers) need scales that this code does not know of."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100 * 1000**2  # the format's own limit


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: `num_bytes` from byte `start` of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        if self.num_bytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        content = bytearray(self.num_bytes)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(content) != self.num_bytes:
                raise ModelError(f"{self.file} became shorter while it was read; download or export the model again.")
        return torch.frombuffer(content, dtype=self.dtype).view(self.shape)


@dataclass(frozen=True)
class WeightFiles:
    """What the headers of a model folder say.

    Attributes:
        entries: name -> tensor that can be read.
        faults: everything that is wrong with the files, one clause each.
        unreadable: names that are known to exist but cannot be read, which `faults` accounts for.
        is_complete: every name in the files is known: no header is missing or damaged.
    """

    entries: dict[str, Entry]
    faults: list[str]
    unreadable: set[str]
    is_complete: bool


class _Scan:
    """Collects what the headers say, file by file."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.faults: list[str] = []
        self.unreadable: set[str] = set()
        self.is_complete = True

    def file(self, path: Path) -> set[str]:
        """Take in one file; the names in it."""
        try:
            header, start = _read_header(path)
        except ModelError as error:
            self.faults.append(str(error))
            self.is_complete = False
            return set()
        size = path.stat().st_size
        cut, end = [], start
        for name, what in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = (start + offset for offset in what["data_offsets"])
            fault = _entry_fault(what, has_right_place=first == end)
            end = last
            if fault:
                self.faults.append(f"{name} in {path.name} {fault}")
                self.unreadable.add(name)
            elif last > size:
                cut.append(name)
                self.unreadable.add(name)
            elif name not in self.entries:  # a copy in a second file is a fault of the index
                self.entries[name] = Entry(path, DTYPES[what["dtype"]], tuple(what["shape"]), first, last - first)
        if cut:
            self.faults.append(
                f"{path.name} is cut off after {size} of {end} bytes, so {', '.join(cut)} cannot be read"
            )
        elif size > end:
            self.faults.append(f"{path.name} has {size - end} bytes behind its last tensor")
        return set(header)

    def compare(self, weight_map: Mapping[str, str], found: Mapping[str, set[str]]) -> None:
        """Note where the index and the files disagree. `found`: file -> names in it, or an empty set if unknown."""
        places: dict[str, list[str]] = {}
        for file, names in found.items():
            for name in names:
                places.setdefault(name, []).append(file)
        for name, file in sorted(weight_map.items()):
            if not found[file]:
                self.unreadable.add(name)  # its file is missing or damaged, which is a fault already
            elif name not in found[file]:
                elsewhere = places.get(name)
                where = f"in {', '.join(elsewhere)}" if elsewhere else "in no file"
                self.faults.append(f"the index places {name} in {file}, but it is {where}")
                self.unreadable.add(name)
        for name, files in sorted(places.items()):
            strays = [file for file in files if weight_map.get(name, file) != file]
            if name not in weight_map:
                self.faults.append(f"{name} is in {files[0]}, but the index does not name it")
            elif strays and weight_map[name] in files:
                self.faults.append(f"{name} is in {strays[0]} too, which is not where the index places it")


def scan_folder(folder: Path) -> WeightFiles:
    """Read all headers of a model folder: of the files that its index names, else of the only one. No weight is read.

    Raises ModelError only if the index itself cannot be read.
    """
    scan = _Scan()
    if (folder / INDEX_FILE).exists():
        weight_map = _weight_map(folder / INDEX_FILE)
        found = {file: scan.file(folder / file) for file in sorted(set(weight_map.values()))}
        scan.compare(weight_map, found)
        scan.is_complete = True  # what is in damaged files the index tells
    else:
        scan.file(folder / WEIGHTS_FILE)
    return WeightFiles(scan.entries, scan.faults, scan.unreadable, scan.is_complete)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; beside the tensors themselves it holds one of them at a time in memory."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        first, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ModelError if there is none."""
    if not path.is_file():
        raise ModelError(f"A model folder needs {path.name}, but {path} does not exist; check the path.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download or export the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(values).__name__}.")
    return values


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} must have a weight_map; download or export the model again.")
    outside = sorted(
        {str(file) for file in weight_map.values() if not isinstance(file, str) or Path(file).name != file}
    )
    if outside:
        raise ModelError(f"{path} must place every weight in a file beside it, not in {', '.join(outside)}.")
    return weight_map


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """name -> {dtype, shape, data_offsets}, and where the numbers begin."""
    if not path.is_file():
        raise ModelError(f"{path.name} does not exist")
    with path.open("rb") as file:
        text = _header_text(file)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        is_valid = all(_is_entry(what) for what in header.values())
    except (ValueError, AttributeError):
        is_valid = False
    if not is_valid:
        raise ModelError(f"{path.name} is damaged: its first bytes are no safetensors header")
    return header, 8 + len(text)


def _header_text(file: BinaryIO) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    text = file.read(min(length, _MAX_HEADER_BYTES))
    return text if len(text) == length else b""


def _is_entry(what: Any) -> bool:
    numbers: Iterable[Any] = [*what["shape"], *what["data_offsets"]] if _has_keys(what) else [None]
    return all(type(number) is int and number >= 0 for number in numbers) and len(what["data_offsets"]) == 2


def _has_keys(what: Any) -> bool:
    return (
        isinstance(what, dict)
        and isinstance(what.get("dtype"), str)
        and isinstance(what.get("shape"), list)
        and isinstance(what.get("data_offsets"), list)
    )


def _entry_fault(what: Mapping[str, Any], *, has_right_place: bool) -> str:
    """Why a tensor cannot be read, or "" if it can."""
    dtype = DTYPES.get(what["dtype"])
    if dtype is None:
        return f"has dtype {what['dtype']} where one of {', '.join(DTYPES)} is needed"
    first, last = what["data_offsets"]
    wanted = math.prod(what["shape"]) * dtype.itemsize
    if last - first != wanted:
        return f"has {last - first} bytes where shape {tuple(what['shape'])} needs {wanted}"
    return "" if has_right_place else "does not begin where the tensor before it ends"
