"""The untaken groups of a run in two files: what JSON can hold, and the arrays. Both are plain; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from cispo.protocols import ModelState, State
from cispo.types import Group, Prompt, Score, StopReason, Trajectory, Verdict
from rollout.ledger import Entry
from rollout.requests import Begun

VALUES, ARRAYS = "ledger.json", "arrays.npz"

Arrays = dict[str, np.ndarray]


def write_ledger(folder: Path, cursor: State, entries: Sequence[Entry]) -> None:
    """Write `cursor` and the entries below `folder`."""
    arrays: Arrays = {}
    values = {"cursor": cursor, "untaken": [_entry_values(entry, arrays) for entry in entries]}
    (folder / VALUES).write_text(json.dumps(values, indent=1))
    with (folder / ARRAYS).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # a name in the stub is taken


def read_ledger(folder: Path) -> tuple[State, list[Entry]]:
    """What `write_ledger` wrote."""
    values = json.loads((folder / VALUES).read_text())
    with np.load(folder / ARRAYS) as file:
        arrays: dict[str, Arrays] = {}
        for name in file.files:
            place, _, rest = name.partition("/")
            arrays.setdefault(place, {})[rest] = file[name]
    return values["cursor"], [_entry(entry, arrays.get(str(entry["index"]), {})) for entry in values["untaken"]]


def _entry_values(entry: Entry, arrays: Arrays) -> dict[str, Any]:
    values: dict[str, Any] = {"index": entry.index, "prompt": asdict(entry.prompt), "version": entry.version}
    place = str(entry.index)
    if entry.group:
        scores = [asdict(score) for score in entry.group.scores]
        values["group"] = {"trajectories": _trajectories(entry.group.trajectories, place, arrays), "scores": scores}
    if entry.begun:
        values["begun"] = {
            "members": list(entry.begun.trajectories),
            "trajectories": _trajectories(list(entry.begun.trajectories.values()), place, arrays),
        }
        if entry.begun.state:
            values["begun"]["state"] = entry.begun.state.meta
            arrays |= {f"{place}/state/{name}": array for name, array in entry.begun.state.arrays.items()}
    return values


def _entry(values: Mapping[str, Any], arrays: Arrays) -> Entry:
    prompt = Prompt(**values["prompt"] | {"token_ids": tuple(values["prompt"]["token_ids"])})
    index = int(values["index"])
    group = begun = None
    if "group" in values:
        trajectories = _trajectories_of(values["group"]["trajectories"], arrays)
        scores = tuple(Score(**s | {"verdict": Verdict(s["verdict"])}) for s in values["group"]["scores"])
        group = Group(index, prompt, trajectories, scores)
    if "begun" in values:
        trajectories = _trajectories_of(values["begun"]["trajectories"], arrays)
        state = None
        if "state" in values["begun"]:
            mine = {name.removeprefix("state/"): a for name, a in arrays.items() if name.startswith("state/")}
            state = ModelState(mine, values["begun"]["state"])
        begun = Begun(dict(zip(values["begun"]["members"], trajectories, strict=True)), state)
    return Entry(index, prompt, values["version"], begun, group)


def _trajectories(trajectories: Sequence[Trajectory], place: str, arrays: Arrays) -> list[dict[str, Any]]:
    """The fields that are not arrays, one mapping for each; the others go into `arrays`."""
    rows = []
    for number, trajectory in enumerate(trajectories):
        row: dict[str, Any] = {}
        for field in fields(trajectory):
            value = getattr(trajectory, field.name)
            if isinstance(value, np.ndarray):
                arrays[f"{place}/{number}/{field.name}"] = value
            else:
                row[field.name] = value
        rows.append(row)
    return rows


def _trajectories_of(rows: Sequence[Mapping[str, Any]], arrays: Arrays) -> tuple[Trajectory, ...]:
    trajectories = []
    for number, row in enumerate(rows):
        names = {field.name: f"{number}/{field.name}" for field in fields(Trajectory)}
        mine = {name: arrays[place] for name, place in names.items() if place in arrays}
        trajectories.append(Trajectory(**dict(row) | mine | {"stop_reason": StopReason(row["stop_reason"])}))
    return tuple(trajectories)
