"""A sandbox with tight limits for all tests of this folder, and a way to attack it that looks for what is left."""

import ctypes
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import IsolationError, Limits, Program, Sandbox, Verdict

TIGHT = Limits(cpu_seconds=0.5, wall_seconds=3.0, memory_bytes=96 << 20, output_bytes=1 << 20, num_processes=24)
PATIENT = Limits(cpu_seconds=20, wall_seconds=60)
PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="session")
def box():
    """Skipping where a machine cannot isolate would hide a broken sandbox: the missing piece fails the test."""
    try:
        Sandbox.check()
    except IsolationError as error:
        pytest.fail(str(error))
    return Sandbox(TIGHT)


@pytest.fixture(scope="module")
def boxes(box):
    """One sandbox by tier. What they put into the temporary folder lies where `withstand` looks."""
    folder = tempfile.mkdtemp(prefix="threats-")
    Path(folder).chmod(0o711)
    patch = pytest.MonkeyPatch()
    patch.setattr(tempfile, "tempdir", folder)
    # Whatever gets away from a sandbox becomes our child, and is found there.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield {"bubblewrap": box, "landlock": Sandbox(TIGHT, isolation="landlock")}
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    patch.undo()
    Path(folder).rmdir()


def descendants():
    """Everything below this process, zombies too."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def traces():
    """What a run might leave on this machine: processes, open files, temporary files, mounts."""
    return {
        "processes": len(descendants()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "files": sorted(path.name for path in Path(tempfile.gettempdir()).iterdir()),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
    }


INNOCENT, ITS_ANSWER = Program("print(sum(range(int(input()))))", stdin="1000"), (Verdict.OK, b"499500\n")


@pytest.fixture(scope="module")
def warm():
    """Tiers that have run something."""
    return set()


@pytest.fixture(params=["bubblewrap", "landlock"])
def withstand(request, boxes, warm):
    """Run an attack beside an innocent program, see that innocent ones come to no harm and nothing is left.

    Two innocent programs run at once before the first attack and after each, so that what a sandbox keeps for two is
    there whenever it is counted.
    """
    box = boxes[request.param]

    def run_innocent(other):
        with ThreadPoolExecutor(1) as beside:
            theirs = beside.submit(box.run, INNOCENT, PATIENT)
            execution = box.run(*other)
            assert (theirs.result().verdict, theirs.result().stdout) == ITS_ANSWER
        return execution

    def attack(source, limits=None, *, stdin=b"", files=None):
        if request.param not in warm:
            run_innocent((INNOCENT, PATIENT))
            warm.add(request.param)
        before = traces()
        execution = run_innocent((Program(source, stdin=stdin, files=files or {}), limits or TIGHT))
        after = run_innocent((INNOCENT, PATIENT))
        assert (after.verdict, after.stdout) == ITS_ANSWER
        deadline = time.monotonic() + 5
        while traces() != before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert traces() == before
        return execution

    attack.tier = request.param
    return attack
