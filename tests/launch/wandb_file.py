"""Reads back what W&B wrote offline: its file is a LevelDB log of protobuf records, and it ships no reader of it."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

BLOCK, HEADER, MAGIC = 32768, 7, 7
FULL, FIRST, MIDDLE = 1, 2, 3


@dataclass
class WandbRun:
    """The files of a run together.

    Attributes:
        ids: of the run, one for each file.
        config: of the last file.
        history: {"_step": ..., metric: value}, in the order of writing.
        summary: all of it together.
        alerts: (title, text).
        exit_codes: one for each file that was ended.
        max_in_summary: metrics whose largest value is kept.
        about: name, project, group, tags, notes of the last file.
        artifacts: their types.
    """

    ids: list = field(default_factory=list)
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    alerts: list = field(default_factory=list)
    exit_codes: list = field(default_factory=list)
    max_in_summary: list = field(default_factory=list)
    about: dict = field(default_factory=dict)
    artifacts: list = field(default_factory=list)


def read_wandb(run_folder: Path) -> WandbRun:
    """All files below a run's folder, the oldest first."""
    from wandb.proto import wandb_internal_pb2

    found = WandbRun()
    files = sorted((run_folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for path in files:
        for data in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            _add(found, record)
    return found


def _add(found, record):
    kind = record.WhichOneof("record_type")
    if kind == "run":
        found.ids.append(record.run.run_id)
        run = record.run
        found.about = {"name": run.display_name, "project": run.project, "group": run.run_group,
                       "tags": list(run.tags), "notes": run.notes}  # fmt: skip
        found.config |= _items(record.run.config.update)
    elif kind == "config":
        found.config |= _items(record.config.update)
    elif kind == "history":
        found.history.append(_items(record.history.item) | {"_step": record.history.step.num})
    elif kind == "summary":
        found.summary |= _items(record.summary.update)
    elif kind == "alert":
        found.alerts.append((record.alert.title, record.alert.text))
    elif kind == "exit":
        found.exit_codes.append(record.exit.exit_code)
    elif kind == "metric" and record.metric.summary.max:
        found.max_in_summary.append(record.metric.glob_name or record.metric.name)
    elif kind == "artifact":
        found.artifacts.append(record.artifact.type)


def _items(items):
    """Values by key; a value that is an object comes in parts, each with the way to it."""
    found = {}
    for item in items:
        *way, last = item.nested_key or [item.key]
        place = found
        for name in way:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def _records(data):
    place, parts = MAGIC, b""
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if left < HEADER or (kind == 0 and length == 0):
            place += left
            continue
        part = data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind == FULL:
            yield part
        elif kind in (FIRST, MIDDLE):
            parts += part
        else:
            yield parts + part
            parts = b""
