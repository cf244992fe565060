"""Everything a restart needs, atomically.

A checkpoint is a folder checkpoints/step_N that is complete or absent: it is written under another name, flushed to
disk, described by a manifest with the checksum of every file, and renamed. The folder holds the loop's progress, the
learner, and the rollouts' cursor with every group that was drawn but not taken.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cispo.errors import CheckpointError, ConfigError
from cispo.protocols import Learner, RolloutSource
from cispo.types import Progress

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CheckpointConfig:
    """How many are kept.

    Attributes:
        keep: newest checkpoints that stay on disk; older ones are deleted after a newer one is complete.
    """

    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"checkpoints.keep must be at least 1; got {self.keep}.")


log = logging.getLogger(__name__)


class FolderCheckpoints:
    """Implements the Checkpoints protocol in the folder of a run."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config

    def save(self, progress: Progress, learner: Learner, rollouts: RolloutSource) -> None:
        """Write checkpoints/step_N; a crash at any moment leaves the older ones as they were."""
        for left_over in self.folder.glob(".step_*"):  # by a save that was killed
            shutil.rmtree(left_over)
        unfinished = self.folder / f".step_{progress.step}.unfinished"
        unfinished.mkdir(parents=True)
        write_json(unfinished / "progress.json", asdict(progress))
        (unfinished / "rollouts").mkdir()
        rollouts.save(unfinished / "rollouts")
        learner.save(unfinished / "learner")
        write_json(unfinished / MANIFEST, checksums(unfinished))
        _flush_tree(unfinished)
        self._discard(progress.step)
        unfinished.rename(self.folder / f"step_{progress.step}")
        _flush(self.folder)
        for old in self.steps()[: -self.config.keep]:
            self._discard(old)

    def restore(self, learner: Learner, rollouts: RolloutSource) -> Progress:
        """Load the newest checkpoint; a fresh Progress if there is none. Raises CheckpointError if it is damaged."""
        steps = self.steps()
        if not steps:
            return Progress()
        folder = self.folder / f"step_{steps[-1]}"
        verify(folder)
        learner.load(folder / "learner")
        rollouts.load(folder / "rollouts")
        progress = Progress(**json.loads((folder / "progress.json").read_text()))
        if progress.step:
            log.info("going on from step %d (%s)", progress.step, folder)
        return progress

    def _discard(self, step: int) -> None:
        """Delete a checkpoint that may not exist; renamed first, so that none is ever seen half deleted."""
        doomed = self.folder / f".step_{step}.discarded"
        shutil.rmtree(doomed, ignore_errors=True)
        with suppress(FileNotFoundError):
            (self.folder / f"step_{step}").rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)


def checksums(folder: Path) -> dict[str, list[int]]:
    """[size, crc32] of every file below `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): [path.stat().st_size, _crc32(path)] for path in files}


def verify(folder: Path) -> None:
    """Raise CheckpointError, naming every damaged file, unless `folder` is what its manifest says."""
    advice = f"delete {folder} to resume from the checkpoint before it"
    try:
        expected = dict(json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"the manifest of checkpoint {folder} cannot be read ({error}); {advice}.") from error
    present = checksums(folder)
    damaged = sorted(name for name in expected if present.get(name) != expected[name])
    if damaged:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} missing or "
            f"changed since it was written; {advice}."
        )


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON; floats survive exactly."""
    path.write_text(json.dumps(value, indent=1))


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
