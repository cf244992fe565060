"""Applies a model's diff to files in memory. Nothing touches a disk, so no path in a diff can lead anywhere.

Unified diffs are read as `git apply` reads them, and where both accept one the result is the same, byte for byte: line
counts must be those of the hunk's head, context must match exactly, and a hunk that is not where its head says is
looked for near there; one at the first line or without context after it must be at the file's beginning or end.
Only changes, additions and deletions of text files are accepted: no modes, links, renames, copies or binary patches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewards.repository_files import refusal

MAX_PATCH_CHARACTERS = 100_000
MAX_PATCHED_FILES = 20
MAX_HUNKS = 200
MAX_FILE_BYTES = 1 << 20

_HUNK = re.compile(r"@@ -(\d{1,7})(?:,(\d{1,7}))? \+(\d{1,7})(?:,(\d{1,7}))? @@(?: .*)?")
_NO_NEWLINE = "\\ "
_HARMLESS = ("index ", "diff ")
_NOWHERE = "/dev/null"
_REGULAR = "100644"


class PatchError(Exception):
    """Why a diff is not applied, for the person who reads traces."""


@dataclass
class Hunk:
    """One change in one place.

    Attributes:
        new_start: the first line after the change, counted from 1, as the hunk's head has it.
        old_start: the same before the change.
        old, new: the lines with their ends, before and after.
        trailing: how many lines of context it ends with.
        num_changes: how many lines it adds and removes.
    """

    old_start: int
    new_start: int
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    trailing: int = 0
    num_changes: int = 0


@dataclass
class FilePatch:
    """What a diff does to one file: `is_new`, `is_deleted`, or it changes."""

    path: str
    hunks: list[Hunk]
    is_new: bool = False
    is_deleted: bool = False


def find_diff(answer: str) -> str | None:
    """The last complete ```diff block of an answer (also ```patch); None if there is none."""
    block: list[str] | None = None
    found: str | None = None
    for line in answer.splitlines(keepends=True):
        fence = line.strip()
        if block is None:
            block = [] if fence.lower() in ("```diff", "```patch") else None
        elif line.startswith("```") and fence == "```":
            found, block = "".join(block), None
        else:
            block.append(line)
    return found


def apply_diff(files: Mapping[str, bytes], diff: str) -> dict[str, bytes]:
    """The files after `diff`. Raises PatchError, whose text says which rule it breaks; `files` stays as it is."""
    patched = dict(files)
    for patch in parse_diff(diff):
        why = refusal(patch.path)
        if why:
            raise PatchError(f"{patch.path!r} may not be changed: it {why}")
        _apply_to_tree(patched, patch)
    return patched


def _apply_to_tree(files: dict[str, bytes], patch: FilePatch) -> None:
    exists = patch.path in files
    if patch.is_new == exists:
        raise PatchError(f"{patch.path} {'is there already' if exists else 'is not in the repository'}")
    if patch.is_new and any(_is_inside(patch.path, name) or _is_inside(name, patch.path) for name in files):
        raise PatchError(f"{patch.path} cannot be a file and a folder")
    try:
        lines = _split(files[patch.path].decode()) if exists else []
    except UnicodeDecodeError as error:
        raise PatchError(f"{patch.path} is no UTF-8 text") from error
    content = "".join(_apply_hunks(lines, patch)).encode("utf-8", "surrogatepass")
    if len(content) > MAX_FILE_BYTES:
        raise PatchError(f"{patch.path} would have {len(content)} bytes, more than {MAX_FILE_BYTES}")
    if patch.is_deleted:
        if content:
            raise PatchError(f"{patch.path} is deleted, but the diff leaves some of it")
        del files[patch.path]
    else:
        files[patch.path] = content


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder + "/")


def _split(text: str) -> list[str]:
    """Lines with their ends; unlike str.splitlines only a newline ends one."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _apply_hunks(lines: list[str], patch: FilePatch) -> list[str]:
    lines = list(lines)
    is_done = [False] * len(lines)  # a line that a hunk of this diff has matched is matched by no other
    for number, hunk in enumerate(patch.hunks, start=1):
        place = _find(lines, is_done, hunk)
        if place is None:
            raise PatchError(f"hunk {number} of {patch.path} does not match the file")
        lines[place : place + len(hunk.old)] = hunk.new
        is_done[place : place + len(hunk.old)] = [True] * len(hunk.new)
    return lines


def _find(lines: list[str], is_done: list[bool], hunk: Hunk) -> int | None:
    """Where the hunk's old lines are, nearest to where its head says; of two equally near the later."""
    size = len(hunk.old)
    last = len(lines) - size
    at_start, at_end = hunk.old_start <= 1, not hunk.trailing
    expected = max(0, min(hunk.new_start - 1, last))
    places = sorted(range(last + 1), key=lambda place: (abs(place - expected), -place))
    for place in places:
        if (at_start and place != 0) or (at_end and place != last):
            continue
        if lines[place : place + size] == hunk.old and not any(is_done[place : place + size]):
            return place
    return None


def parse_diff(diff: str) -> list[FilePatch]:
    """The changes of a unified diff, git style or plain. Raises PatchError."""
    if len(diff) > MAX_PATCH_CHARACTERS or "\0" in diff:
        raise PatchError(f"a diff is text of at most {MAX_PATCH_CHARACTERS} characters, got {len(diff)}")
    patches = _Parser(_split(diff)).parse()
    paths = [patch.path for patch in patches]
    if not patches:
        raise PatchError("the diff changes nothing")
    if len(set(paths)) < len(paths) or len(paths) > MAX_PATCHED_FILES:
        raise PatchError(f"a diff names up to {MAX_PATCHED_FILES} files, each once, got {', '.join(paths)}"[:200])
    if sum(len(patch.hunks) for patch in patches) > MAX_HUNKS:
        raise PatchError(f"a diff has at most {MAX_HUNKS} hunks")
    return patches


class _Parser:
    """One pass over the lines of a diff."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._next = 0

    def parse(self) -> list[FilePatch]:
        patches = []
        is_new = is_deleted = False
        while self._next < len(self._lines):
            line = self._lines[self._next].rstrip("\r\n")
            if line.startswith("--- "):
                patches.append(self._file(is_new=is_new, is_deleted=is_deleted))
                is_new = is_deleted = False
                continue
            self._next += 1
            if line.startswith("new file mode "):
                is_new = _regular(line)
            elif line.startswith("deleted file mode "):
                is_deleted = _regular(line)
            elif line.strip() and not line.startswith(_HARMLESS):
                raise PatchError(f"a diff of text files has no line like {line[:60]!r}")
        if is_new or is_deleted:
            raise PatchError("a file without lines is neither added nor deleted")
        return patches

    def _file(self, *, is_new: bool, is_deleted: bool) -> FilePatch:
        old = _path(self._lines[self._next], "--- ")
        following = self._lines[self._next + 1] if self._next + 1 < len(self._lines) else ""
        if not following.startswith("+++ "):
            raise PatchError(f"no line '+++ ' after '--- {old}'")
        new = _path(following, "+++ ")
        self._next += 2
        patch = _file_patch(old, new)
        if is_new and not patch.is_new or is_deleted and not patch.is_deleted:
            raise PatchError(f"the mode line of {patch.path} does not fit its '---' and '+++'")
        while self._next < len(self._lines) and self._lines[self._next].startswith("@@"):
            patch.hunks.append(self._hunk())
        if not patch.hunks:
            raise PatchError(f"no hunk for {patch.path}")
        if patch.is_new and (len(patch.hunks) > 1 or patch.hunks[0].old):
            raise PatchError(f"{patch.path} is new and has no lines to match")
        return patch

    def _hunk(self) -> Hunk:
        head = _HUNK.fullmatch(self._lines[self._next].rstrip("\r\n"))
        if head is None:
            raise PatchError(f"no hunk begins with {self._lines[self._next][:60]!r}")
        self._next += 1
        old_left, new_left = (1 if count is None else int(count) for count in (head[2], head[4]))
        hunk = Hunk(int(head[1]), int(head[3]))
        while old_left or new_left:
            sign, text = self._hunk_line()
            old_left -= sign in " -"
            new_left -= sign in " +"
            if min(old_left, new_left) < 0:
                raise PatchError(f"the hunk {head[0]} has other line counts than its head")
            self._take(hunk, sign, text)
        if not hunk.num_changes:
            raise PatchError(f"the hunk {head[0]} changes nothing")
        return hunk

    def _hunk_line(self) -> tuple[str, str]:
        """Its sign and its text with the end that the file has."""
        if self._next >= len(self._lines):
            raise PatchError("the diff ends in the middle of a hunk")
        line = self._lines[self._next]
        self._next += 1
        if line == "\n":
            line = " \n"  # editors and models drop the space of an empty context line
        if line[0] not in " -+":
            raise PatchError(f"a line of a hunk begins with ' ', '-' or '+', not {line[:60]!r}")
        text = line[1:] if line.endswith("\n") else line[1:] + "\n"
        if self._next < len(self._lines) and self._lines[self._next].startswith(_NO_NEWLINE):
            self._next += 1
            text = text.removesuffix("\n")
        return line[0], text

    @staticmethod
    def _take(hunk: Hunk, sign: str, text: str) -> None:
        if sign in " -":
            hunk.old.append(text)
        if sign in " +":
            hunk.new.append(text)
        hunk.trailing = hunk.trailing + 1 if sign == " " else 0
        hunk.num_changes += sign != " "


def _regular(line: str) -> bool:
    mode = line.rpartition(" ")[2]
    if mode != _REGULAR:
        raise PatchError(f"a patch makes and deletes plain files (mode {_REGULAR}), not mode {mode[:20]}")
    return True


def _path(line: str, head: str) -> str:
    """The path of a '---' or '+++' line, without the time that may follow it."""
    return line.removeprefix(head).partition("\t")[0].rstrip("\r\n")


def _file_patch(old: str, new: str) -> FilePatch:
    """The file that both lines mean; in git style with a/ and b/ before it."""
    paths = {_strip(old, "a/", new, "b/"), _strip(new, "b/", old, "a/")} - {_NOWHERE}
    if len(paths) != 1:
        raise PatchError(f"'---' and '+++' must name one file, got {old[:60]!r} and {new[:60]!r}")
    return FilePatch(paths.pop(), [], is_new=old == _NOWHERE, is_deleted=new == _NOWHERE)


def _strip(path: str, prefix: str, other: str, other_prefix: str) -> str:
    if path.startswith(prefix) and (other.startswith(other_prefix) or other == _NOWHERE):
        return path.removeprefix(prefix)
    return path
