"""What breaks under a running sandbox: cells, supervisor, descriptors, space. No wrong verdict, no hang, no leak."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from sandbox import Limits, Program, Sandbox, SandboxError, SandboxPool, Verdict, cells, watch
from sandbox.process_tree import children

ADDS = Program("print(int(input()) + 1)", stdin="41")
SLEEPS = Program("import time; print('begun', flush=True); time.sleep(60)")
SLOWLY = Program("import time; time.sleep(0.7); print(6 * 7)")


@pytest.fixture
def shop(box):
    del box
    sandbox = Sandbox(Limits(cpu_seconds=2, wall_seconds=20))
    assert sandbox.run(ADDS).stdout == b"42\n"
    yield sandbox
    sandbox.close()


def idle_cells(sandbox):
    return [cell for idle in sandbox._cells._idle.values() for cell in idle]


def eventually(happens, seconds=15.0):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def in_background(function, *arguments):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)))
    thread.start()
    return lambda: (thread.join(), results[0])[1]


def test_a_cell_that_is_killed_in_mid_job_is_replaced_and_the_job_done_again(shop):
    (cell,) = idle_cells(shop)
    result = in_background(shop.run, SLOWLY)
    eventually(lambda: cell.job_root() is not None)
    os.kill(cell.pid, signal.SIGKILL)
    execution = result()
    assert (execution.verdict, execution.stdout) == (Verdict.OK, b"42\n")
    assert [other.pid != cell.pid for other in idle_cells(shop)] == [True]


def test_a_process_1_that_is_killed_takes_its_cell_along(shop):
    """They share their memory: what it was in the middle of could be anything."""
    (cell,) = idle_cells(shop)
    result = in_background(shop.run, SLOWLY)
    eventually(lambda: cell.job_root() is not None)
    os.kill(cell.job_root(), signal.SIGKILL)
    execution = result()
    assert (execution.verdict, execution.stdout) == (Verdict.OK, b"42\n")
    assert cell.pid not in [other.pid for other in idle_cells(shop)]


def test_a_cell_that_died_while_it_was_idle_costs_nobody_a_verdict(shop):
    for cell in idle_cells(shop):
        os.kill(cell.pid, signal.SIGKILL)
    assert shop.run(ADDS).stdout == b"42\n"


def test_a_cell_that_stands_still_is_given_up(shop, monkeypatch):
    monkeypatch.setattr(watch, "STARTUP_SECONDS", 1.0)
    (cell,) = idle_cells(shop)
    os.kill(cell.pid, signal.SIGSTOP)
    assert shop.run(ADDS).stdout == b"42\n"
    eventually(lambda: not is_alive(cell.pid))


def test_a_job_whose_process_1_is_stopped_is_given_up(shop, monkeypatch):
    monkeypatch.setattr(watch, "KILL_SECONDS", 1.0)
    (cell,) = idle_cells(shop)
    result = in_background(shop.run, SLEEPS, Limits(wall_seconds=2))
    eventually(lambda: cell.job_root() is not None)
    os.kill(cell.job_root(), signal.SIGSTOP)
    assert result().verdict is Verdict.TLE, "on a fresh cell"
    eventually(lambda: not is_alive(cell.pid))


def test_nothing_outlives_a_supervisor_that_is_killed(box):
    del box
    script = (
        "import sys, time\nfrom sandbox import *\nfrom sandbox.process_tree import children\nimport os\n"
        "pool = SandboxPool(2, Limits(wall_seconds=100))\n"
        "sleeps = Program('import os, time\\nfor _ in range(3): os.fork()\\ntime.sleep(90)')\n"
        "pending = [pool.submit(sleeps) for _ in range(2)]\n"
        "print('up', flush=True)\ntime.sleep(90)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert supervisor.stdout.readline() == b"up\n"
    eventually(lambda: len(everybody_below(supervisor.pid)) >= 2 * (2 + 1 + 8))  # bwrap, zygote, process 1, programs
    family = everybody_below(supervisor.pid)
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    eventually(lambda: not any(map(is_alive, family)))


def everybody_below(root):
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        try:
            threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
            below = children(pid, num_threads=threads)
        except OSError:
            continue
        found += below
        waiting += below
    return found


def test_a_full_disk_is_the_programs_own(shop):
    fills = Program(
        "import errno\ntry:\n    for n in range(10**6):\n        with open(f'f{n}', 'wb') as f: f.write(b'x' * 65536)\n"
        "except OSError as error:\n    print(errno.errorcode[error.errno])"
    )
    execution = shop.run(fills, Limits(file_bytes=8 << 20))
    assert (execution.verdict, execution.stdout) == (Verdict.OK, b"ENOSPC\n")
    many = Program("for n in range(10**6): open(f'f{n}', 'w').close()")
    assert shop.run(many, Limits(cpu_seconds=5)).verdict is Verdict.RE
    assert shop.run(Program("import os; print(os.listdir())")).stdout == b"['main.py']\n"


def test_a_machine_without_descriptors_gives_system_errors_and_recovers(shop):
    shop.run(ADDS)
    before = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for room in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + room, hard))
        try:
            execution = shop.run(ADDS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (execution.verdict, execution.stdout) == (Verdict.OK, b"42\n") or execution.verdict is Verdict.SE
    assert shop.run(ADDS).stdout == b"42\n"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_cell_is_replaced_after_a_number_of_jobs(shop, monkeypatch):
    monkeypatch.setattr(cells, "JOBS_PER_CELL", 4)
    pids = []
    for _ in range(9):
        assert shop.run(ADDS).stdout == b"42\n"
        pids += [cell.pid for cell in idle_cells(shop)]
    assert len(set(pids)) == 3  # the fixture's job was the first of the first


@pytest.mark.parametrize("num_jobs", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_very_many_jobs_at_once(box, num_jobs):
    del box
    with SandboxPool(2) as pool:
        pool.run(ADDS)
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        pending = [pool.submit(Program(f"print({n} * int(input()))", stdin="3")) for n in range(num_jobs)]
        assert [future.result().stdout for future in pending] == [b"%d\n" % (3 * n) for n in range(num_jobs)]
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 4  # those of a second cell


def test_cancelling_ends_a_program_that_runs(box):
    del box
    with SandboxPool(1, Limits(wall_seconds=60)) as pool:
        running, waiting = pool.submit(SLEEPS), pool.submit(SLEEPS)
        eventually(running.running)
        assert waiting.cancel()
        began = time.monotonic()
        running.cancel()
        assert pool.run(ADDS).stdout == b"42\n"
        assert time.monotonic() - began < 20, "it would have slept for a minute"
        assert running.result().verdict is Verdict.SE
        with pytest.raises(CancelledError):
            waiting.result()


def test_a_task_of_asyncio_can_wait_and_be_cancelled(box):
    del box

    async def both(pool):
        sleeping = asyncio.create_task(pool.run_async(SLEEPS))
        await asyncio.sleep(0.3)
        sleeping.cancel()
        execution = await pool.run_async(ADDS)
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        return execution

    with SandboxPool(1, Limits(wall_seconds=60)) as pool:
        assert asyncio.run(both(pool)).stdout == b"42\n"


def test_a_full_line_says_so(box):
    del box
    with SandboxPool(1, queue_size=1, queue_seconds=0.2) as pool:
        pending = [pool.submit(SLEEPS) for _ in range(2)]
        with pytest.raises(SandboxError, match="line was full"):
            pool.submit(ADDS)
        for future in pending:
            future.cancel()
        assert pool.run(ADDS).stdout == b"42\n"


def test_a_closed_pool_leaves_no_process(box):
    del box
    pool = SandboxPool(2)
    for future in [pool.submit(ADDS) for _ in range(4)]:
        future.result()
    zygotes = [cell.pid for cell in idle_cells(pool._sandbox)]
    assert zygotes
    pool.close()
    assert not any(map(is_alive, zygotes))
