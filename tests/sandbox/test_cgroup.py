"""Control groups, in a folder that looks like a delegated one: this machine need not delegate any."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import IsolationError, Limits, Program, Sandbox, Verdict, cgroup

ADDS = Program("print(int(input()) + 1)", stdin="41")


@pytest.fixture
def delegated(tmp_path, monkeypatch):
    """A folder with the files that the kernel would make, also in every group that is made in it."""
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    make = Path.mkdir

    def make_group(path, *args, **kwargs):
        make(path, *args, **kwargs)
        if path.parent == tmp_path:
            (path / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")

    monkeypatch.setattr(Path, "mkdir", make_group)
    return tmp_path


def test_a_cell_and_its_limits_are_written_down(delegated):
    sandbox = Sandbox(Limits(memory_bytes=96 << 20, num_processes=7), cgroup=str(delegated))
    assert sandbox.run(ADDS).stdout == b"42\n"
    (group,) = [path for path in delegated.iterdir() if path.is_dir()]
    (cell,) = [cell for idle in sandbox._cells._idle.values() for cell in idle]
    assert int((group / "cgroup.procs").read_text()) == cell.pid
    assert int((group / "memory.max").read_text()) == (96 << 20) + cgroup._CELL_BYTES
    assert int((group / "pids.max").read_text()) == 7 + cgroup._CELL_PROCESSES
    assert (group / "memory.swap.max").read_text() == "0"
    sandbox.close()


def test_a_kill_by_the_kernel_is_the_memory_limit(delegated, monkeypatch):
    sandbox = Sandbox(cgroup=str(delegated))
    counts = iter([0, 1, 1, 1])
    monkeypatch.setattr(cgroup.CellGroup, "num_killed", property(lambda group: next(counts)))
    assert sandbox.run(Program("import os; os.kill(os.getpid(), 9)")).verdict is Verdict.MLE
    assert sandbox.run(Program("import os; os.kill(os.getpid(), 9)")).verdict is Verdict.RE
    sandbox.close()


def test_a_cell_that_the_kernel_takes_for_its_job_is_the_memory_limit(delegated):
    """A job can fill what is no process's memory and make itself the last to go: then its cell is the first."""
    sandbox = Sandbox(cgroup=str(delegated))
    sandbox.run(ADDS)
    (group,) = [path for path in delegated.iterdir() if path.is_dir()]
    (cell,) = [cell for idle in sandbox._cells._idle.values() for cell in idle]
    pending = ThreadPoolExecutor(1).submit(sandbox.run, Program("import time; time.sleep(50)"))
    while cell.job_root() is None:
        time.sleep(0.01)
    (group / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    os.kill(cell.pid, 9)
    assert pending.result(timeout=30).verdict is Verdict.MLE
    assert sandbox.run(ADDS).stdout == b"42\n"  # in a new cell
    sandbox.close()


def test_a_folder_that_is_not_delegated_says_what_to_ask_for(tmp_path):
    with pytest.raises(IsolationError, match="must be a folder of cgroup v2"):
        Sandbox(cgroup=str(tmp_path / "none"))
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    with pytest.raises(IsolationError, match=r"does not pass on pids.*echo '\+pids' > "):
        Sandbox(cgroup=str(tmp_path))


def test_strangers_are_the_first_to_go(box):
    source = "print(open('/proc/self/oom_score_adj').read().strip())"
    assert box.run(Program(source)).stdout == b"1000\n"
    assert int(Path(f"/proc/{os.getpid()}/oom_score_adj").read_text()) < 1000
