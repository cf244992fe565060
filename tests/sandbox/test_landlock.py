"""The tier without namespaces: what it keeps, what it must do in their stead, and how it says that it cannot."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import IsolationError, Limits, Program, Sandbox, SandboxPool, Verdict
from sandbox.landlock import landlock_abi, wall, why_no_landlock
from sandbox.landlock_tier import Landlock
from sandbox.private_folder import folder_bytes, private_folder
from sandbox.supervisor import execute

ROOT = Path(__file__).parents[2]
LIMITS = Limits(cpu_seconds=1, wall_seconds=4, memory_bytes=96 << 20, num_processes=24)


@pytest.fixture(scope="module")
def landlock():
    Sandbox.check(isolation="landlock")
    return Sandbox(LIMITS, isolation="landlock")


@pytest.mark.parametrize(
    ("source", "verdict", "exit_code", "signal"),
    [
        ("print(input())", Verdict.OK, 0, None),
        ("import sys; sys.exit(7)", Verdict.RE, 7, None),
        ("import os; os.kill(os.getpid(), 9)", Verdict.RE, None, 9),
        ("print(", Verdict.CE, 1, None),
        ("while True: pass", Verdict.TLE, None, None),
        ("x = b'x' * (200 << 20)\nwhile True: pass", Verdict.MLE, None, None),
        ("x = bytearray(10 << 30)", Verdict.MLE, None, 64),
        ("while True: print('x' * 9999)", Verdict.OLE, None, None),
        ("import os\nwhile True: os.fork()", Verdict.RE, None, None),
    ],
)
def test_verdicts_are_those_of_the_other_tier(landlock, source, verdict, exit_code, signal):
    execution = landlock.run(Program(source, stdin="x"))
    assert execution.verdict is verdict, execution
    if "fork" not in source:
        assert (execution.exit_code, execution.signal) == (exit_code, signal)


def test_files_of_a_program_and_its_own_folder(landlock):
    source = (
        "import os, subprocess, tempfile\nprint(open('data/x').read(), sorted(os.listdir()))\n"
        "os.mkdir('new'); os.rename('data/x', 'new/y'); print(open('new/y').read())\n"
        "print(tempfile.mkdtemp().startswith(os.getcwd()))\n"
        "print(subprocess.run(['/bin/echo', 'ran'], capture_output=True).stdout)"
    )
    execution = landlock.run(Program(source, files={"data/x": b"file"}))
    assert execution.stdout == b"file ['data', 'main.py']\nfile\nTrue\nb'ran\\n'\n", execution


def test_files_that_fill_the_disk_count(landlock):
    source = (
        "import time\nfor n in range(30):\n with open(str(n), 'wb') as f: f.write(b'x' * (4 << 20))\ntime.sleep(60)"
    )
    assert landlock.run(Program(source)).verdict is Verdict.MLE


@pytest.mark.parametrize(
    "attempt",
    [
        "os.setsid()",
        "os.setpgid(0, 0)",
        "os.chmod('main.py', 0o777)",
        "os.utime('/usr/bin/python3')",
        "os.setpriority(os.PRIO_PROCESS, 0, 19)",
        "os.sched_setaffinity(0, {0})",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair(type=socket.SOCK_DGRAM)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
        "os.kill(supervisor, 0)",
        "os.listdir('/proc')",
        "open('/proc/self/environ')",
        "open('/dev/zero')",
        "os.truncate('/usr/bin/python3', 0)",
        "os.link('/usr/bin/python3', 'python')",
    ],
)
def test_out_of_reach(landlock, attempt):
    source = (
        f"import os, resource, socket\nsupervisor = {os.getpid()}\ntry: {attempt}\nexcept OSError: print('refused')"
    )
    assert landlock.run(Program(source)).stdout == b"refused\n"


def test_before_signals_had_a_scope_none_can_be_sent():
    older = Landlock(abi=5)
    source = (
        "import os, signal\nfor attempt in (lambda: os.kill(os.getpid(), 0), lambda: signal.raise_signal(10),"
        f" lambda: os.kill({os.getpid()}, 0)):\n try: attempt()\n except OSError: print('refused')"
    )
    execution = execute(older, Program(source), LIMITS)
    assert (execution.verdict, execution.stdout) == (Verdict.OK, b"refused\n" * 3), execution
    assert execute(older, Program("while True: pass"), LIMITS).verdict is Verdict.TLE


def test_a_kernel_without_it_is_refused_with_the_remedy(monkeypatch):
    with pytest.raises(IsolationError, match=r"needs version 4 \(Linux 6.7\).* has 3; ask the administrator"):
        wall(Path("/tmp"), abi=3)
    with pytest.raises(IsolationError, match=r"lsm=.*landlock_restrict_self"):
        Landlock(abi=0)
    monkeypatch.setattr("sandbox.landlock.landlock_abi", lambda: 0)
    with pytest.raises(IsolationError, match="does not offer Landlock"):
        SandboxPool(1, isolation="landlock")
    assert landlock_abi() >= 4
    assert why_no_landlock(4) is None


def test_nothing_outlives_a_supervisor_that_is_killed():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom sandbox import *\nimport threading\n"
        "box = Sandbox(Limits(wall_seconds=60), isolation='landlock')\n"
        'box.run(Program("import os, time\\nos.fork()\\nos.fork()\\ntime.sleep(59.875)"))'
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script, str(ROOT)], start_new_session=True)
    try:
        until(lambda: len(group_of(supervisor.pid)) >= 4)
        group = group_of(supervisor.pid)
    finally:
        supervisor.kill()
        supervisor.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in group))


def group_of(supervisor):
    """Processes below a supervisor that are behind the wall: those in the group of the keeper's child."""
    parents, groups = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)], groups[int(folder.name)] = int(fields[1]), int(fields[2])
    below = {supervisor}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid for pid in below if groups.get(pid) not in (None, supervisor)}


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; a plain user runs all other tests")
@pytest.mark.parametrize("isolation", ["landlock", "bubblewrap"])
def test_a_plain_user_whose_programs_share_his_identity_is_held_too(isolation):
    """Here the programs run as the very user of the supervisor, so that no file right stands in their way."""
    python = "/usr/bin/python3"
    if not Path(python).exists() or not (ROOT.stat().st_mode & 0o005):
        pytest.skip("needs an interpreter and a source tree that a plain user can read")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom sandbox import *\n"
        f"Sandbox.check(isolation={isolation!r})\nbox = Sandbox(isolation={isolation!r})\n"
        "print(box.run(Program('print(1)')).stdout)\n"
        'box.run(Program(\'import os; os.umask(511); os.mkdir("a"); os.rename("a", "b")\'))'
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-B", "-c", script, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={}, check=False)
    assert done.stdout.startswith("b'1\\n'"), done.stderr


def test_a_hostile_folder_is_removed_whole(tmp_path):
    for attack in (deep_tree, without_rights, strange_names):
        with private_folder() as folder:
            here = Path.cwd()
            try:
                os.chdir(folder)
                attack()
            finally:
                os.chdir(here)
        assert not folder.exists(), attack.__name__
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    with private_folder() as folder:
        (folder / "link").symlink_to(outside)
    assert (outside / "kept").read_text() == "x"


def deep_tree():
    for _ in range(3000):
        Path("x" * 200).mkdir()
        os.chdir("x" * 200)
        Path("file").touch()


def without_rights():
    Path("a/b").mkdir(parents=True)
    Path("a/b/c").touch()
    Path("a/b").chmod(0)
    Path("a").chmod(0)
    Path().chmod(0)


def strange_names():
    for name in (b"\xff", b"\n", b" ", b"-rf", b"*"):
        folder = Path(os.fsdecode(name))
        folder.mkdir()
        (folder / "link").symlink_to("/")
        os.mkfifo(folder / "fifo")


def test_a_folder_is_added_up_but_not_for_ever(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to("/usr")
    assert 100_000 <= folder_bytes(tmp_path, 1 << 30) < 150_000
    assert folder_bytes(tmp_path, 1000) > 1000
    for number in range(30):
        (tmp_path / str(number)).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandbox.private_folder.MOST_ENTRIES", 20)
        assert folder_bytes(tmp_path, 1 << 30) > 1 << 30
