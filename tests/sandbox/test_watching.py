"""Limits that the supervisor keeps by looking: where it cannot see, no program may pass as if it had been watched."""

import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest

from sandbox import IsolationError, Limits, Program, Sandbox, Verdict
from sandbox.inside import job
from sandbox.process_tree import look_at_tree

SLEEPS = Program("import time; time.sleep(60)")
SOON = Limits(wall_seconds=1)


@pytest.fixture
def answer_of_proc(monkeypatch):
    """Make the kernel answer with an error to whoever reads a file of that name below /proc/<pid>."""

    def refuse(name, error):
        read = Path.read_bytes

        def read_or_refuse(path):
            if path.name == name and path.parts[1] == "proc":
                raise OSError(error, os.strerror(error), str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", read_or_refuse)

    return refuse


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.EMFILE])
@pytest.mark.parametrize("name", ["stat", "children"])
def test_what_cannot_be_seen_is_not_counted_as_nothing(answer_of_proc, name, error):
    answer_of_proc(name, error)
    with pytest.raises(OSError, match=f"Errno {error}"):
        look_at_tree(os.getpid())


def test_what_has_just_ended_is_left_out(answer_of_proc):
    for error in (errno.ENOENT, errno.ESRCH):
        answer_of_proc("stat", error)
        assert look_at_tree(os.getpid()).num_tasks == 0


def test_a_program_that_cannot_be_watched_is_a_system_error(box, answer_of_proc):
    answer_of_proc("stat", errno.EACCES)
    execution = box.run(SLEEPS, SOON)
    assert execution.verdict is Verdict.SE
    assert b"Permission denied" in execution.stderr


def test_temporary_files_that_cannot_be_measured_are_a_system_error(box, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "statvfs", refuse)
    assert box.run(SLEEPS, SOON).verdict is Verdict.SE


@pytest.mark.parametrize(
    ("name", "error"),
    [("children", errno.ENOENT), ("smaps_rollup", errno.ENOENT), ("stat", errno.EACCES)],
    ids=["a kernel without lists of children", "a kernel without sums of maps", "a /proc that is closed"],
)
def test_a_machine_that_cannot_watch_is_refused(answer_of_proc, name, error):
    answer_of_proc(name, error)
    with pytest.raises(IsolationError, match=r"cannot be watched.*hidepid"):
        Sandbox.check(shutil.which("bwrap"))  # the fixture's own check was asked for by name, and is not done again


def test_process_1_of_a_job_looks_up_from_reaping(monkeypatch):
    """Where processes end faster than they are reaped, the word of the supervisor must be heard all the same."""
    ended = itertools.count(2)

    def wait_for_any(pid, options):
        assert (pid, options) == (-1, os.WNOHANG)
        number = next(ended)
        assert number < 100_000, "it reaps for ever"
        return number, 0

    monkeypatch.setattr(os, "waitpid", wait_for_any)
    assert job._reap(1, os.WNOHANG) is None
    assert job._reap(next(ended) + 3, os.WNOHANG) == 0
