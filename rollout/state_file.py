"""Sampling that survives a kill: the state of one request in a file, from which another process goes on.

The file is an npz archive, so every array has a checksum, and it is written under another name and renamed: whoever
reads it sees a whole state or none. It names the model that made it, because a state means nothing to other weights.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from cispo.errors import CheckpointError
from cispo.protocols import ModelState
from rollout.engine import HybridEngine
from rollout.engine_protocol import Request
from rollout.snapshot import PausedRequest

HEADER = "header.json"


def save_state(path: Path, state: ModelState, model: str) -> None:
    """Replace the file at `path`; `model` is the fingerprint (model/checkpoint.py) of what made the state."""
    header = json.dumps({"model": model, "meta": dict(state.meta)}).encode()
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{HEADER: np.frombuffer(header, dtype=np.uint8), **state.arrays})
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_state(path: Path, model: str) -> ModelState:
    """Read what `save_state` wrote. Raises CheckpointError if it is damaged or another model's."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive[HEADER].tobytes())
            found, meta = header["model"], header["meta"]
            # Asked before the arrays are read, which may be gigabytes.
            arrays = {name: archive[name] for name in archive.files if name != HEADER} if found == model else {}
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"The saved state {path} cannot be read ({error}); delete it to start again.") from error
    if found != model:
        raise CheckpointError(
            f"The saved state {path} is of model {found[:12]}, and this is model {model[:12]}: other weights cannot go "
            f"on from it; give the policy that wrote it, or delete it to start again."
        )
    return ModelState(arrays, meta)


def stream_resumably(
    engine: HybridEngine, request: Request, path: Path, model: str, save_seconds: float = 60.0
) -> Iterator[int]:
    """`engine.stream(request)` that goes on from the state in `path`, if there is one, and saves itself there.

    All new tokens are given, those from before the restart first. The file is written between two steps, also while
    the prompt is being read, whenever the last save is `save_seconds` ago, and deleted at the end. Raises
    CheckpointError for a damaged state, another model's and another request's, and otherwise as `stream` does.
    """
    if path.exists():
        state = load_state(path, model)
        _check_same(PausedRequest.from_state(state).request, request, path)
        engine.resume(state)
    else:
        engine.submit([request])
    saved = time.monotonic()
    with closing(engine.follow(request.id)) as steps:
        for token_ids in steps:
            yield from token_ids
            if time.monotonic() - saved >= save_seconds and engine.is_under_way(request.id):
                save_state(path, engine.snapshot(request.id), model)
                saved = time.monotonic()
    path.unlink(missing_ok=True)


def _check_same(found: Request, wanted: Request, path: Path) -> None:
    """Raise CheckpointError, naming what differs, unless the state is of the request that is asked for."""
    if found == wanted:
        return
    parts = {
        "prompt": np.array_equal(found.token_ids, wanted.token_ids),
        "seed": found.seed == wanted.seed,
        "sampling settings": found.sampling == wanted.sampling,
        "id or number of samples": (found.id, found.num_samples) == (wanted.id, wanted.num_samples),
    }
    differing = " and ".join(part for part, is_same in parts.items() if not is_same)
    raise CheckpointError(
        f"The saved state {path} is of a request with another {differing}; ask for the same as before, or delete it "
        f"to start again."
    )
