"""A repository as plain files: path to bytes. No history comes along, for a fix could be read in it.

`read_snapshot` takes a folder, a tar archive or the files themselves. `is_test` and `refusal` say which paths a patch
must leave alone: whatever decides how tests run or what Python imports before them.
"""

from __future__ import annotations

import io
import re
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cispo.errors import DataError

MAX_FILES = 2000
MAX_TOTAL_BYTES = 16 << 20
_MAX_PATH_CHARACTERS = 200
_MAX_NAME_BYTES = 255  # of a file system; a longer one could not be laid out, which would be nobody's failure
_MAX_FOLDERS = 16  # each is an inode of the sandbox's small disk

_LEFT_OUT = {
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".venv",
    "node_modules",
}
_TEST_FILE = re.compile(r"test_[^/]*\.py|[^/]*_test\.py|conftest\.py")
_TEST_FOLDERS = {"test", "tests", "testing"}
_PROTECTED_NAMES = {
    "conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "setup.py", "pyproject.toml", "noxfile.py",
    "sitecustomize.py", "usercustomize.py", "makefile",
}  # fmt: skip
_CHANGEABLE = {".py", ".pyi", ".txt", ".md", ".rst", ".json", ".csv", ".toml", ".ini", ".html", ".tmpl"}


def read_snapshot(source: Any, root: Path | None = None) -> dict[str, bytes]:
    """The files of a repository by relative path with "/".

    Args:
        source: a mapping of path to text, or the path of a folder or of a tar archive (.tar, .tar.gz, .tgz, .tar.xz).
        root: what a relative `source` is relative to; None is the working directory.

    Raises DataError when there is no such repository, when it holds anything but regular files with UTF-8 paths that
    stay inside it, or when it is larger than MAX_FILES or MAX_TOTAL_BYTES.
    """
    if isinstance(source, Mapping):
        files = {name: _as_bytes(name, content) for name, content in source.items()}
    elif isinstance(source, str) and source:
        path = (root or Path()) / source
        files = _read_folder(path) if path.is_dir() else _read_archive(path)
    else:
        raise DataError(
            f"a repository is an object of files or the path of a folder or tar, got {type(source).__name__}"
        )
    for name in files:
        fault = path_fault(name)
        if fault:
            raise DataError(f"a repository's paths must stay inside it, but {name!r} {fault}")
    size = sum(map(len, files.values()))
    if not files or len(files) > MAX_FILES or size > MAX_TOTAL_BYTES:
        raise DataError(
            f"a repository needs 1 to {MAX_FILES} files of at most {MAX_TOTAL_BYTES} bytes together, "
            f"got {len(files)} with {size} bytes"
        )
    return files


def _as_bytes(name: Any, content: Any) -> bytes:
    if not isinstance(name, str) or not isinstance(content, str):
        raise DataError(f"the files of a repository are texts by path, got {type(content).__name__} for {name!r}")
    return content.encode("utf-8", "surrogatepass")


def _read_folder(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _LEFT_OUT & set(name.split("/")) or path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file():
            raise DataError(f"a repository holds regular files only, but {path} is something else")
        files[name] = path.read_bytes()
    return files


def _read_archive(path: Path) -> dict[str, bytes]:
    """Nothing is unpacked to disk, so a member's name can do no harm."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir() or _LEFT_OUT & set(name.split("/")):
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or member.size > MAX_TOTAL_BYTES:
                    raise DataError(f"a repository holds regular files only, but {name} in {path} is something else")
                files[name] = content.read()
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"the repository {path} is neither a folder nor a tar archive: {error}") from error
    return files


def path_fault(name: str) -> str:
    """Why `name` is no relative path inside a tree; "" if it is one."""
    if not name or len(name) > _MAX_PATH_CHARACTERS:
        return f"is empty or longer than {_MAX_PATH_CHARACTERS} characters"
    if any(ord(character) < 32 or character in '\\\x7f"' for character in name) or not name.isprintable():
        return "has a backslash, a quote or a control character"
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        return "is absolute or has an empty part, '.' or '..'"
    if name.count("/") > _MAX_FOLDERS or any(len(part.encode()) > _MAX_NAME_BYTES for part in name.split("/")):
        return f"is deeper than {_MAX_FOLDERS} folders or has a part of over {_MAX_NAME_BYTES} bytes"
    return ""


def is_test(name: str) -> bool:
    """Whether `name` is a test or belongs to tests."""
    *folders, file = name.lower().split("/")
    return bool(_TEST_FOLDERS & set(folders)) or _TEST_FILE.fullmatch(file) is not None


def refusal(name: str) -> str:
    """Why a patch may not touch `name`; "" if it may."""
    fault = path_fault(name)
    if fault:
        return fault
    parts = name.lower().split("/")
    if is_test(name):
        return "belongs to the tests"
    if any(part.startswith(".") for part in parts):
        return "is hidden"
    if parts[-1] in _PROTECTED_NAMES:
        return "configures how tests run"
    if PurePosixPath(parts[-1]).suffix not in _CHANGEABLE:
        return f"is none of {', '.join(sorted(_CHANGEABLE))}"
    if parts[0].removesuffix(".py") in sys.stdlib_module_names:
        return "would stand in for a module of the standard library"
    return ""
