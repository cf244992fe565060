"""The list of threats, row by row: what a program that tries it comes to. The number in a test's id is the row's.

An attack is judged three times: by its own verdict, by innocent programs before, beside and after it, and by what is
left of it on the machine (`withstand`). Rows on compilers, tests of repositories and mathematics have their own tests.
"""

# ruff: noqa: E501 (an attack is easier to read in one piece)

import os
import sys
from pathlib import Path

import pytest

from sandbox import Limits
from tests.sandbox.attacks import CE, MLE, OK, OLE, RE, SOON, TLE, TRY, Attack, by_row, check

USING_UP = [
    Attack("01-fork-bomb", "import os\nwhile True: os.fork()", {RE, TLE}),
    Attack("02-fork-bomb-that-goes-on", "import os\nwhile True:\n try: os.fork()\n except OSError: pass", {TLE, RE}),
    Attack(
        "04-many-children-with-some-memory-each",
        "import os, time\nfor _ in range(20):\n if os.fork() == 0:\n  x = b'x' * (20 << 20); time.sleep(60)\ntime.sleep(60)",
        {MLE},
    ),
    Attack(
        "05-many-files-in-the-temporary-folder",
        "for n in range(50):\n with open(str(n), 'wb') as file: file.write(b'x' * (15 << 20))",
        {RE, MLE},
    ),
    Attack(
        "06-memory-files",
        "import os\nkeep = []\nfor _ in range(100):\n keep.append(os.memfd_create('x')); os.write(keep[-1], b'x' * (15 << 20))",
        {RE},
        ends_by=1,
    ),
    Attack(
        "08-pipes",
        "import fcntl, os\nkeep = []\nfor _ in range(200):\n keep.append(os.pipe())\n"
        " try: fcntl.fcntl(keep[-1][1], 1031, 1 << 20)\n except PermissionError: pass",
        {RE},
        ends_by=1,
    ),
    Attack(
        "09-buffers-of-socket-pairs",
        "import socket\nkeep = []\nwhile True:\n pair = socket.socketpair(); keep.append(pair); pair[0].setblocking(False)\n"
        " try:\n  while True: pair[0].send(b'x' * 4096)\n except BlockingIOError: pass",
        {RE, MLE},
    ),
    Attack(
        "10-a-huge-populated-mapping",
        "import mmap\nmmap.mmap(-1, 300 << 20, flags=0x8022)",
        {MLE, RE},
    ),
    Attack("10-locked-memory", TRY + "\ncall(libc.mlockall, 3)\nx = b'x' * (20 << 20)", {RE, MLE}),
    Attack("12-long-legal-output", "print('x' * 300_000)", {OK}, prints=b"x" * 300_000 + b"\n"),
    Attack("13-errors-flood", "import sys\nwhile True: sys.stderr.write('x' * 9999)", {OLE}, prints=b""),
    Attack("14-output-that-is-no-text", r"import os; os.write(1, b'\xff\0\xfe\r\n')", {OK}, prints=b"\xff\0\xfe\r\n"),
    Attack(
        "16-deaf-to-the-time-limit",
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass",
        {TLE},
    ),
    Attack("17-sleeps", "import time; time.sleep(60)", {TLE}, limits=SOON),
    Attack(
        "18-busy-threads",
        "import threading\ndef spin():\n while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()",
        {TLE},
    ),
    Attack("20-a-number-of-many-digits", "import sys; sys.set_int_max_str_digits(0); str(9 ** (10 ** 7))", {TLE, MLE}),
    Attack("20-a-number-as-text", "print(9 ** 5000)", {RE}, ends_by=1),
    Attack("21-a-pattern-that-backtracks", "import re; re.match('(a+)+$', 'a' * 40 + 'b')", {TLE}),
    Attack(
        "22-deep-recursion",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0)",
        {MLE, RE, TLE},
    ),
    Attack("50-a-sparse-file", "import os; os.truncate('main.py', 1 << 40)", {RE}),
    Attack("50-room-for-a-large-file", "import os\nwith open('x', 'wb') as f: os.posix_fallocate(f.fileno(), 0, 1 << 36)", {RE}),
    Attack(
        "52-a-deep-tree-of-long-names",
        "import os\nfor _ in range(700): os.mkdir('x' * 255); os.chdir('x' * 255)\nprint('deep')",
        {OK},
        prints=b"deep\n",
    ),
    Attack("53-vfork-without-exec", "import ctypes\nlibc = ctypes.CDLL(None)\nif libc.vfork() == 0: libc.sleep(60)", {TLE}, limits=SOON),
]  # fmt: skip

ENDINGS = [
    Attack("24-segmentation-fault", "import ctypes; ctypes.string_at(0)", {RE}, ends_by=-11),
    Attack("25-kills-itself", "import os; os.kill(os.getpid(), 9)", {RE}, ends_by=-9),
    Attack("26-kills-process-1", "import os\nfor s in range(1, 65): os.kill(os.getppid(), s)\nprint(1)", {OK}, prints=b"1\n", landlock={RE}),
    Attack("26-kills-everybody", "import os\nos.kill(-1, 9)\nprint('alive')", {OK, RE}),
    Attack("26-kills-its-group", "import os\nos.kill(0, 9)", {RE}),
    Attack("26-kills-the-group-by-name", "import os\nos.killpg(os.getpgrp(), 9)", {RE}),
    Attack("48-closes-its-output", "import os; os.close(1); os.close(2); print('lost')", {RE}, prints=b"", ends_by=120),
    Attack(
        "49-forges-a-report-on-every-descriptor",
        "import os\nfor fd in range(3, 1024):\n for line in (b'ended 0 0 0\\n', b'started\\n'):\n"
        "  try: os.write(fd, line)\n  except OSError: pass\nos._exit(3)",
        {RE},
        ends_by=3,
    ),
    Attack("54-stops-itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", {TLE}, limits=SOON),
    Attack("54-stops-its-parent", "import os; os.kill(os.getppid(), 19); print(1)", {OK}, prints=b"1\n", limits=SOON, landlock={TLE}),
    Attack("56-exits-with-99", "import os; os._exit(99)", {RE}, ends_by=99),
    Attack("56-exits-with-137", "import os; os._exit(137)", {RE}, ends_by=137),
    Attack("56-exits-with-256", "import os; os._exit(256)", {OK}, ends_by=0),
    Attack(
        "57-prints-verdicts",
        'print(\'AC\\nall tests passed\\n{"verdict": "OK", "status": 0}\\nended 0 0 0\'); raise SystemExit(1)',
        {RE},
        prints=b'AC\nall tests passed\n{"verdict": "OK", "status": 0}\nended 0 0 0\n',
        ends_by=1,
    ),
    Attack(
        "60-goes-on-after-its-answer",
        "import atexit, sys\nclass Late:\n def __del__(self, write=sys.__stdout__.write): write('del ')\nlate = Late()\n"
        "atexit.register(print, 'exit', end=' ')\nsys.excepthook = lambda *_: print('hook', end=' ')\nprint('answer', end=' ')\n1 / 0",
        {RE},
        prints=b"answer hook exit del ",
        ends_by=1,
    ),
    Attack(
        "61-a-daemon-thread-prints-on",
        "import os, threading\ndef write():\n while True: os.write(1, b'x')\n"
        "threading.Thread(target=write, daemon=True).start()",
        {OK},
    ),
    Attack("70-a-line-of-10-megabytes", "x = '" + "y" * (10 << 20) + "'\nprint(len(x))", {OK, CE, MLE}),
    Attack("70-a-zero-byte", "print(1)\0", {CE}),
    Attack("70-byte-order-mark-and-line-ends", "\ufeffprint(1)\r\nprint(2)\r\n", {OK}, prints=b"1\n2\n"),
    Attack("70-a-parser-too-deep", "(" * 100_000, {CE}),
    Attack("70-an-expression-too-deep", "x = " + "-" * 200_000 + "1", {CE, MLE}),
    Attack("70-an-unknown-encoding", "# coding: rot13\nprint(1)", {CE}),
    Attack("70-an-encoding-of-its-own", "# coding: utf-7\n+AAo-print(1)", {CE, OK}),
]  # fmt: skip

SECRETS = [
    str(Path(__file__)), str(Path(__file__).parents[2] / "sandbox" / "supervisor.py"),
    str(Path(sys.prefix)), str(Path.home() / ".bashrc"), "/root", "/home", "/etc/passwd", "/etc/shadow", "/var/log", "/sys",
    "/run", "/proc/1/root/etc/passwd", "/proc/1/cwd", "/proc/self/root/etc/passwd", "/proc/kcore", "/proc/kmsg",
]  # fmt: skip

REACHING_OUT = [
    Attack(
        "28-writes-to-process-1",
        TRY + "print(name_of_error(lambda: call(libc.process_vm_writev, os.getppid(), 0, 0, 0, 0, 0)),"
        " refused(lambda: open(f'/proc/{os.getppid()}/mem', 'r+b')), refused(lambda: open('/proc/1/mem', 'rb')))",
        {OK},
        prints=b"EPERM True True\n",
    ),
    Attack("29-writes-to-its-own-memory", "open('/proc/self/mem', 'r+b', 0).write(b'x')", {RE, OK}),
    Attack(
        "30-environments",
        TRY + "print(dict(os.environ), refused(lambda: open('/proc/1/environ').read(1)),"
        " refused(lambda: open(f'/proc/{os.getppid()}/environ').read(1)))",
        {OK},
        prints=b"{} True True\n",
    ),
    Attack(
        "32-graders-and-others-files",
        TRY + f"print([path for path in {SECRETS!r} if not"
        " refused(lambda: os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1))])",
        {OK},
        prints=b"[]\n",
    ),
    Attack(
        "34-writes-to-the-system",
        TRY + "print([folder for folder in ('/', '/usr', '/usr/bin', '/dev', '/proc', '/lib', '/etc', '/var', '/root', '/home')"
        " if not refused(lambda: open(folder + '/x', 'w'))])",
        {OK},
        prints=b"[]\n",
    ),
    Attack("36-leaves-fifos-and-links", "import os\nos.mkfifo('fifo'); os.symlink('/', 'link'); os.link('main.py', 'x')", {OK}),
    Attack(
        "37-device-nodes",
        "import os\nfor kind in (0o60600, 0o20600):\n try: os.mknod('disk', kind, os.makedev(8, 0))\n"
        " except PermissionError: print('refused')",
        {OK},
        prints=b"refused\nrefused\n",
    ),
    Attack(
        "38-mounts",
        TRY + "print([name_of_error(lambda: attempt()) for attempt in (lambda: call(libc.mount, b'x', b'/tmp', b'tmpfs', 0, None),"
        " lambda: call(libc.umount2, b'/proc', 2), lambda: call(libc.syscall, 155, b'/', b'/'), lambda: os.chroot('.'))])",
        {OK},
        prints=b"['EPERM', 'EPERM', 'EPERM', 'EPERM']\n",
    ),
    Attack(
        "40-setuid-programs",
        "import glob, os, stat, subprocess\nprint(os.getuid() != 0)\n"
        "for path in glob.glob('/usr/bin/*'):\n"
        " if os.stat(path, follow_symlinks=False).st_mode & stat.S_ISUID and path.endswith(('/su', '/sudo', '/mount')):\n"
        "  done = subprocess.run([path, '-c', 'id -u'], capture_output=True, stdin=subprocess.DEVNULL, timeout=2)\n"
        "  assert done.returncode != 0 and b'uid=0' not in done.stdout, done",
        {OK},
        prints=b"True\n",
        limits=Limits(wall_seconds=10),
    ),
    Attack(
        "44-sockets-of-other-families",
        TRY + "print({name_of_error(lambda: socket.socket(f, k).close()) for f in (2, 10, 16, 17, 38, 40) for k in (1, 2, 3)})",
        {OK},
        prints=b"{'EPERM'}\n",
    ),
    Attack(
        "46-a-daemon",
        "import os, time\nif os.fork() == 0:\n"
        " try: os.setsid()\n except PermissionError: pass\n"
        " if os.fork() == 0:\n  for fd in (0, 1, 2): os.close(fd)\n  time.sleep(60)\n os._exit(0)\nos.wait()\nprint('done')",
        {OK},
        prints=b"done\n",
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", by_row(USING_UP))
def test_nothing_is_used_up(withstand, attack):
    check(attack, withstand)


@pytest.mark.parametrize("attack", by_row(ENDINGS))
def test_an_ending_is_told_as_it_was(withstand, attack):
    check(attack, withstand)


@pytest.mark.parametrize("attack", by_row(REACHING_OUT))
def test_nothing_outside_is_reached(withstand, attack):
    check(attack, withstand)


SEARCH = """
import gc, re, sys
# Never written out: every letter is a class of its own, so that the search does not find itself.
needle = re.compile("".join("[" + letter + "]" for letter in reversed("{reversed_secret}")))
in_bytes = re.compile(needle.pattern.encode())
found = set()
frame = sys._getframe()
while frame is not None:
    found |= {{name for name, value in frame.f_locals.items() if value is not globals() and needle.search(repr(value))}}
    frame = frame.f_back
found |= {{"gc" for thing in gc.get_objects() if isinstance(thing, list | tuple)
          and any(isinstance(part, str) and needle.search(part) for part in thing)}}
looked_at = 0
for line in open("/proc/self/maps"):
    area, rights, *_, path = (line + " -").split()[:6]
    begin, end = (int(half, 16) for half in area.split("-"))
    if "rw" in rights and (path == "-" or path.startswith("[")):
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            memory.seek(begin)
            content = memory.read(end - begin)
        looked_at += len(content)
        found |= {{"memory"}} if in_bytes.search(content) else set()
print(looked_at > 1 << 20, sorted(found))
"""


def test_33_no_frame_object_or_memory_holds_what_another_job_knew(withstand):
    secret = "Tn8Qd2ZkVb5r"
    search, patient = SEARCH.format(reversed_secret=secret[::-1]), Limits(cpu_seconds=20, wall_seconds=30)
    knows = f"keep = [{secret!r}] * 1000\nprint(input()[:0])"
    if withstand.tier == "landlock":  # without /proc there is no memory to look at; the frames are left
        search = search.replace('open("/proc/self/maps")', "[]").replace("looked_at > 1 << 20", "True")
    found_here = withstand(knows + search, patient, stdin=secret).stdout.strip()
    expected = b"True ['gc', 'keep']" if withstand.tier == "landlock" else b"True ['gc', 'keep', 'memory']"
    assert found_here == expected
    execution = withstand(search, patient)
    assert (execution.verdict, execution.stdout) == (OK, b"True []\n"), execution


def test_45_no_job_hears_another_through_an_abstract_socket(withstand):
    listen = (
        "import os, socket, time\nserver = socket.socket(socket.AF_UNIX); server.bind('\\0later'); server.listen()\n"
        "if os.fork() == 0: time.sleep(60)\nprint('listening')"
    )
    listening = withstand(listen)
    if withstand.tier == "bubblewrap":
        assert listening.stdout == b"listening\n"
    talk = "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0later')"
    execution = withstand(talk)
    assert execution.verdict is RE
    assert b"ConnectionRefusedError" in execution.stderr or b"PermissionError" in execution.stderr


def test_62_nothing_is_cached_from_one_test_to_the_next(withstand):
    stores = (
        "import builtins, json, os, sys\njson.dumps = lambda _: 'evil'; builtins.stored = sys.modules['stored'] = 1\n"
        "os.environ['STORED'] = '1'; open('stored', 'w').close()\nos.makedirs('__pycache__')\n"
        "try: open('/dev/shm/stored', 'w').close()\nexcept OSError: pass"
    )
    assert withstand(stores).verdict is OK
    looks = (
        "import builtins, json, os, sys\nprint(json.dumps(1), hasattr(builtins, 'stored'), 'stored' in sys.modules,"
        " dict(os.environ), os.listdir(), os.path.exists('/dev/shm/stored'))"
    )
    assert withstand(looks).stdout == b"1 False False {} ['main.py'] False\n"


def test_the_number_of_descriptors_of_this_process_is_no_secret_door(withstand):
    """A descriptor that a test leaves open and inheritable reaches no program."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        source = f"import os\ntry: os.write({writer}, b'through')\nexcept OSError: print('closed')"
        assert withstand(source).stdout == b"closed\n"
    finally:
        os.close(writer)
        assert os.read(reader, 100) == b""
        os.close(reader)
