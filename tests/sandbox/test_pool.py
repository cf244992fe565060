"""Many programs at once, the self-test, and running without a wall."""

import ast
import logging
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from sandbox import IsolationError, Limits, Program, Sandbox, SandboxConfig, SandboxError, SandboxPool, Verdict


def test_a_pool_runs_programs_of_many_threads(box):
    del box
    with SandboxPool(2) as pool:
        futures = [pool.submit(Program(f"print({n} * int(input()))", stdin="3")) for n in range(8)]
        assert [future.result().stdout for future in futures] == [b"%d\n" % (3 * n) for n in range(8)]


def test_a_pool_never_runs_more_than_its_size(box):
    del box
    most, lock, now = 0, threading.Lock(), [0]
    with SandboxPool(2) as pool:
        run = pool._sandbox.run

        def counted(program, limits=None, **more):
            nonlocal most
            with lock:
                now[0] += 1
                most = max(most, now[0])
            try:
                return run(program, limits, **more)
            finally:
                with lock:
                    now[0] -= 1

        pool._sandbox.run = counted
        [future.result() for future in [pool.submit(Program("")) for _ in range(6)]]
    assert most == 2


def test_a_closed_pool_says_so(box):
    del box
    pool = SandboxPool(1)
    pool.close()
    with pytest.raises(SandboxError, match="closed"):
        pool.submit(Program(""))


def test_a_machine_without_a_free_thread_is_a_system_error_and_not_a_closed_pool(box, monkeypatch):
    del box

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with SandboxPool(1) as pool:
        with monkeypatch.context() as machine:
            machine.setattr(threading.Thread, "start", refuse)
            execution = pool.run(Program("print(1)"))
        assert execution.verdict is Verdict.SE
        assert b"can't start new thread" in execution.stderr
        assert pool.run(Program("print(2)")).stdout == b"2\n"


def test_no_descriptor_leaks(box):
    box.run(Program(""))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for source in ("print(1)", "1 / 0", "x = (", "import os; os.kill(os.getpid(), 9)"):
        box.run(Program(source))
    Sandbox(bwrap="/bin/false").run(Program(""))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_machine_without_bubblewrap_is_refused_with_the_remedy():
    with pytest.raises(IsolationError, match="apt-get install bubblewrap"):
        Sandbox.check("/nonexistent/bwrap")
    with pytest.raises(IsolationError, match="bubblewrap"):
        SandboxPool(1, bwrap="/nonexistent/bwrap")


def test_a_bubblewrap_that_does_not_isolate_is_refused():
    """A stand-in that leaves the network and a folder of the machine open: the canaries must notice."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to the user nobody, as whom root runs it
        fake = Path(folder) / "bwrap"
        fake.write_text(FAKE_BWRAP.format(real=shutil.which("bwrap")))
        fake.chmod(0o755)
        Path(folder).chmod(0o777)
        with pytest.raises(IsolationError, match="could read a file outside, reach an abstract socket"):
            Sandbox.check(str(fake))


FAKE_BWRAP = """#!/bin/sh
first=$1; shift
exec {real} "$first" --share-net --ro-bind /etc /etc "$@"
"""


def test_unsafe_must_be_asked_for_and_warns(caplog):
    with caplog.at_level(logging.WARNING), SandboxPool(1, isolation="unsafe") as pool:
        execution = pool.run(Program("import os; print(os.getppid() > 1, input())", stdin="x"))
    assert execution.verdict is Verdict.OK
    assert execution.stdout == b"True x\n"
    assert "unsafe" in caplog.text


def test_unsafe_still_keeps_the_limits():
    unsafe = Sandbox(Limits(cpu_seconds=0.3, wall_seconds=5, memory_bytes=96 << 20), isolation="unsafe")
    assert unsafe.run(Program("while True: pass")).verdict is Verdict.TLE
    assert unsafe.run(Program("x = b'x' * (200 << 20)\nwhile True: pass")).verdict is Verdict.MLE
    assert unsafe.run(Program("import os, time\nif os.fork() == 0: time.sleep(60)")).verdict is Verdict.OK


def test_configuration_is_checked():
    assert SandboxConfig().isolation == "bubblewrap"
    with pytest.raises(ValueError, match="isolation"):
        SandboxConfig(isolation="hope")
    with pytest.raises(ValueError, match="size"):
        SandboxConfig(size=0)


def test_the_sandbox_imports_only_the_standard_library():
    script = "import sys, sandbox; print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    names = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(names) - {"__main__"} == {"sandbox"}
