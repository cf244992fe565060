"""The working folder of an episode, carried from one sandboxed call to the next.

A sandbox keeps nothing: every call is a fresh program in a fresh place. So the folder travels. Its files are laid into
the call's working directory, and a few lines around the call print what is there afterwards behind a mark at the end of
the output. The call can forge that, and gains nothing by it: it could write those files anyway.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from sandbox import Execution, Limits, Program

CALL_FILE = ".call"
"""What the model wrote, in the working directory; it is gone before the call begins."""

_RUN = {
    "python": """
try:
    exec(compile(_call, "call.py", "exec", dont_inherit=True), {"__name__": "__main__"})
finally:
    _keep()
""",
    "shell": """
import subprocess
_status = subprocess.run(["/bin/bash", "-c", _call], stdin=subprocess.DEVNULL).returncode
_keep()
if _status:
    sys.exit(_status if 0 < _status < 256 else 1)
""",
}
"""By tool, what runs the text `_call`. A call that ends otherwise (a limit, os._exit) leaves the folder as it was."""

_AROUND = """
import os, sys
with open({call!r}) as file:
    _call = file.read()
for _name in ({call!r}, "main.py"):
    if os.path.exists(_name):
        os.unlink(_name)
def _keep(unlink=os.unlink, walk=os.walk, join=os.path.join, relpath=os.path.relpath, islink=os.path.islink,
          isfile=os.path.isfile, getsize=os.path.getsize, out=sys.stdout, open=open, folder=os.getcwd()):
    import base64, json
    paths = [join(place, name) for place, _, names in walk(folder) for name in names]
    paths = [path for path in paths if isfile(path) and not islink(path) and relpath(path, folder) != "main.py"]
    if len(paths) > {num_files} or sum(getsize(path) for path in paths) > {num_bytes}:
        kept = None
    else:
        kept = {{}}
        for path in sorted(paths):
            with open(path, "rb") as file:
                kept[relpath(path, folder)] = base64.b64encode(file.read()).decode()
    out.flush()
    out.write({mark!r} + json.dumps(kept))
    out.flush()
"""


@dataclass(frozen=True)
class FolderLimits:
    """What a working folder may hold."""

    num_bytes: int
    num_files: int = 64


@dataclass(frozen=True)
class Call:
    """One call, ready for the sandbox.

    Attributes:
        program: the call with its working folder.
        limits: of the sandbox, with room for the folder behind the output.
        mark: what stands between the output and the folder.
    """

    program: Program
    limits: Limits
    mark: bytes


Files = Mapping[str, str]
"""Contents by relative path, in base64: plain data for a checkpoint. Without `main.py`, the name of the call itself."""


def call_program(tool: str, source: str, files: Files, limits: Limits, folder: FolderLimits) -> Call:
    """The call of `tool` ("python" or "shell") with the text that the model wrote."""
    mark = f"\n{secrets.token_hex(16)}\n"
    around = _AROUND.format(call=CALL_FILE, mark=mark, num_files=folder.num_files, num_bytes=folder.num_bytes)
    contents = {path: base64.b64decode(content) for path, content in files.items()}
    # A lone surrogate has no bytes: the replacement character is no valid program either.
    contents[CALL_FILE] = source.encode("utf-8", "replace")
    # base64 takes 4 bytes for 3, and every file brings its name.
    room = folder.num_bytes * 4 // 3 + folder.num_files * 512
    more = Limits(**(vars(limits) | {"output_bytes": limits.output_bytes + room}))
    return Call(Program(around + _RUN[tool], files=contents), more, mark.encode())


@dataclass(frozen=True)
class Outcome:
    """What came back of a call.

    Attributes:
        output: what it printed.
        files: the folder from now on.
        note: what became of the folder, if it is not what the call left behind.
    """

    output: bytes
    files: Files
    note: str = ""


def outcome(call: Call, execution: Execution, before: Files, folder: FolderLimits) -> Outcome:
    """Output and folder apart again. The folder stays as it was `before` if it came back broken or too large."""
    output, mark, behind = execution.stdout.rpartition(call.mark)
    if not mark:
        return Outcome(execution.stdout, before)
    try:
        kept = json.loads(behind)
        if kept is None:
            note = f"the folder would pass {folder.num_bytes} bytes or {folder.num_files} files: its changes are undone"
            return Outcome(output, before, note)
        return Outcome(output, _checked(kept, folder))
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        return Outcome(output, before, "the folder came back broken: its changes are undone")


def _checked(kept: Mapping[str, str], folder: FolderLimits) -> Files:
    """`kept` if it is what an honest call prints. Raises ValueError, TypeError or AttributeError if it is not."""
    contents = {str(path): base64.b64decode(content, validate=True) for path, content in kept.items()}
    if len(contents) > folder.num_files or sum(map(len, contents.values())) > folder.num_bytes:
        raise ValueError("more than the harness lets through")
    if CALL_FILE in contents:
        raise ValueError("the call's own file")
    Program("", files=contents)  # knows which paths are none
    return dict(kept)
