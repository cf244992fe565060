"""The untaken groups of a run in two files: what JSON can hold, and the arrays. Both are plain; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cispo.protocols import ModelState, State
from cispo.types import Group, ObservationSpan, Prompt, Score, StopReason, Trajectory, Verdict
from rollout.episode import EpisodeSoFar
from rollout.ledger import Entry
from rollout.requests import Begun

VALUES, ARRAYS = "ledger.json", "arrays.npz"

Arrays = dict[str, np.ndarray]
T = TypeVar("T")


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
        values["group"] = _rows(dict(enumerate(entry.group.trajectories)), f"{place}/ended", arrays)
        values["scores"] = [asdict(score) for score in entry.group.scores]
    if entry.begun:
        values["begun"] = _rows(entry.begun.trajectories, f"{place}/ended", arrays)
        values["episodes"] = _rows(entry.begun.episodes, f"{place}/episode", arrays)
        if entry.begun.state:
            values["state"] = entry.begun.state.meta
            arrays |= {f"{place}/state/{name}": array for name, array in entry.begun.state.arrays.items()}
    return values


def _entry(values: Mapping[str, Any], arrays: Arrays) -> Entry:
    prompt = Prompt(**values["prompt"] | {"token_ids": tuple(values["prompt"]["token_ids"])})
    index = int(values["index"])
    group = begun = None
    if "group" in values:
        trajectories = _of_rows(Trajectory, values["group"], "ended", arrays)
        scores = tuple(Score(**s | {"verdict": Verdict(s["verdict"])}) for s in values["scores"])
        group = Group(index, prompt, tuple(trajectories.values()), scores)
    if "begun" in values:
        state = None
        if "state" in values:
            mine = {name.removeprefix("state/"): a for name, a in arrays.items() if name.startswith("state/")}
            state = ModelState(mine, values["state"])
        begun = Begun(
            _of_rows(Trajectory, values["begun"], "ended", arrays),
            state,
            _of_rows(EpisodeSoFar, values["episodes"], "episode", arrays),
        )
    return Entry(index, prompt, values["version"], begun, group)


def _rows(members: Mapping[int, Trajectory | EpisodeSoFar], place: str, arrays: Arrays) -> dict[str, dict[str, Any]]:
    """By member the fields that JSON can hold; the arrays go into `arrays`."""
    rows: dict[str, dict[str, Any]] = {}
    for member, item in members.items():
        row = rows[str(member)] = {}
        for field in fields(item):
            value = getattr(item, field.name)
            if isinstance(value, np.ndarray):
                arrays[f"{place}/{member}/{field.name}"] = value
            else:
                row[field.name] = [asdict(span) for span in value] if field.name == "observations" else value
    return rows


def _of_rows(kind: type[T], rows: Mapping[str, Mapping[str, Any]], place: str, arrays: Arrays) -> dict[int, T]:
    """The inverse, for the entry that `arrays` belong to."""
    members: dict[int, T] = {}
    for member, row in rows.items():
        values = dict(row) | {"observations": tuple(ObservationSpan(**span) for span in row["observations"])}
        if "stop_reason" in row:
            values["stop_reason"] = StopReason(row["stop_reason"])
        names = {field.name: f"{place}/{member}/{field.name}" for field in fields(kind)}  # type: ignore[arg-type]
        members[int(member)] = kind(**values | {name: arrays[at] for name, at in names.items() if at in arrays})
    return members
