"""A temporary folder that a stranger's program may fill, and that is gone afterwards whatever it put there."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

MOST_ENTRIES = 20_000
"""A folder with more entries than this is not added up any more: it counts as endless."""


@contextlib.contextmanager
def private_folder(owner: int | None = None) -> Iterator[Path]:
    """A new folder of mode 0700, of the user `owner` if that is another one (which only root may ask for)."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
    try:
        if owner is not None:
            os.chown(folder, owner, owner)
        yield folder
    finally:
        remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder that nobody uses any more.

    shutil.rmtree recurses, so that a deep tree ends it, and it gives up at a folder without rights. Here every folder
    is first moved to the top, so that any depth takes two descriptors and no path grows long.
    """
    folder.chmod(0o700)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _flatten(top)
    finally:
        os.close(top)
    folder.rmdir()


def _flatten(top: int) -> None:
    token = secrets.token_hex(8)  # so that no name is one that the program could have taken
    free_names = (f"{token}-{number}" for number in itertools.count())
    _empty(top, top, free_names)
    while names := os.listdir(top):
        for name in names:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            try:
                _empty(inner, top, free_names)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)


def _empty(folder: int, top: int, free_names: Iterator[str]) -> None:
    """Unlink the files of a folder and move its folders to the top."""
    for name in os.listdir(folder):
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        os.chmod(name, 0o700, dir_fd=folder)  # to move a folder one must be allowed to write to it
        os.rename(name, next(free_names), src_dir_fd=folder, dst_dir_fd=top)


def folder_bytes(folder: Path, most: int) -> int:
    """Bytes on disk below a folder, or more than `most` once that is sure or there are too many entries to count.

    A folder that cannot be read counts as its own size: what a program hides from itself it cannot use.
    """
    total, num_entries, waiting = 0, 0, [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                num_entries += 1
                if num_entries > MOST_ENTRIES or total > most:
                    return most + 1
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total
