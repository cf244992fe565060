"""Attacks beyond the list of threats: near its rows, and where nobody looked. See test_threats.py."""
# ruff: noqa: E501 (an attack is easier to read in one piece)

import pytest

from sandbox import Limits
from tests.sandbox.attacks import MLE, OK, RE, SOON, TLE, TRY, Attack, by_row, check

SMALL = Limits(cpu_seconds=2, wall_seconds=5, memory_bytes=40 << 20, num_processes=24)

PROCESSES = [
    Attack(
        "every-signal-to-process-1-from-a-crowd",
        "import os\nfor _ in range(4):\n if os.fork() == 0:\n  for s in list(range(1, 65)) * 20:\n"
        "   try: os.kill(os.getppid() if s % 2 else 1, s)\n   except OSError: pass\n  os._exit(0)",
        {OK, RE},
    ),
    Attack("stops-everybody-it-sees", "import os\nfor _ in range(5):\n if os.fork() == 0:\n  while True: pass\nos.kill(-1, 19)\nprint(1)", {OK}, limits=SOON, landlock={TLE}),
    Attack(
        "orphans-of-orphans-that-spin",
        "import os\nfor _ in range(4):\n if os.fork() == 0:\n  if os.fork() == 0:\n   if os.fork() == 0:\n    while True: pass\n  os._exit(0)\nos._exit(0)",
        {OK},
        ends_by=0,
    ),
    Attack(
        "orphans-use-the-processor-while-it-sleeps",
        "import os, time\nfor _ in range(4):\n if os.fork() == 0:\n  if os.fork() == 0:\n   while True: pass\n  os._exit(0)\n os.wait()\ntime.sleep(60)",
        {TLE},
    ),
    Attack(
        "many-short-spinners",
        "import os, time\nwhile True:\n if os.fork() == 0:\n  end = time.process_time() + 0.05\n  while time.process_time() < end: pass\n  os._exit(0)\n os.wait()",
        {TLE},
    ),
    Attack("a-crowd-of-zombies", "import os\nfor _ in range(200):\n if os.fork() == 0: os._exit(0)", {RE}),
    Attack("vfork-storm", "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True:\n if libc.vfork() == 0: libc._exit(0)", {TLE, RE}),
    Attack(
        "a-sibling-forges-the-ending",  # CLONE_PARENT | SIGCHLD: a child of process 1 that ends with 0
        TRY + "if libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x8000 | 17, 0, 0, 0, 0) == 0: os._exit(0)\nos._exit(3)",
        {RE},
        ends_by=3,
    ),
    Attack("forks-at-its-end", "import atexit, os, time\natexit.register(lambda: os.fork() or time.sleep(60))\nprint(1)", {OK}, prints=b"1\n"),
    *(
        Attack(f"raises-beyond-its-end-{name}", source, {RE})
        for name, source in {
            "excepthook": "import sys\nsys.excepthook = lambda *_: 1 / 0\nraise ValueError",
            "no-excepthook": "import sys\ndel sys.excepthook\nraise ValueError",
            "exit-code-in-words": "class A:\n def __str__(self): raise KeyError\nraise SystemExit(A())",
            "exit-code-in-numbers": "class A(int):\n def __int__(self): raise KeyError\nraise SystemExit(A(5))",
            "traceback": "class E(Exception):\n def with_traceback(self, _): raise KeyError\nraise E",
            "out-of-memory": "import posix\nposix.kill = None\nraise MemoryError",
        }.items()
    ),
    Attack("never-ends-at-its-end", "import atexit, time\natexit.register(time.sleep, 60)", {TLE}, limits=SOON),
    Attack("a-thread-that-outlives-it", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", {TLE}, limits=SOON),
    Attack("becomes-another-program", "import os, sys\nos.execv(sys.executable, [sys.executable, '-S', '-c', 'raise SystemExit(5)'])", {RE}, ends_by=5),
    Attack("a-parent-for-all-orphans", TRY + "call(libc.prctl, 36, 1, 0, 0, 0)\nif os.fork() == 0:\n if os.fork() == 0:\n  while True: pass\n os._exit(0)\nprint(1)", {OK}, prints=b"1\n"),
    Attack("signals-at-its-end", "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(5)", {RE}, ends_by=-14),
    Attack(
        "a-flood-of-timers",
        "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)\nwhile True: time.sleep(0.01)",
        {TLE},
        limits=SOON,
    ),
    Attack("being-traced", TRY + "print(name_of_error(lambda: call(libc.ptrace, 0, 0, 0, 0)))", {OK}, prints=b"EPERM\n"),
    Attack(
        "its-own-ending-redefined",
        "import os, posix, sys\nsys.settrace(lambda *_: 1 / 0)\nposix._exit = os._exit = lambda code: None\nsys.exit = exit = lambda code=0: None\n1 / 0",
        {RE, OK},  # to end with 0 it could have asked more simply
    ),
    Attack("dies-of-a-broken-pipe", "import os, signal\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\nr, w = os.pipe(); os.close(r); os.write(w, b'x')", {RE}, ends_by=-13),
]  # fmt: skip

MEMORY = [
    Attack(
        "memory-under-a-name-that-confuses",
        TRY + "call(libc.prctl, 15, b') R 1 1 (\\n1 0', 0, 0, 0)\ncall(libc.prctl, 4, 0, 0, 0, 0)\nx = b'x' * (150 << 20)\nwhile True: pass",
        {MLE},
    ),
    Attack(
        "shared-memory-touched-and-let-go",
        "import mmap\nm = mmap.mmap(-1, 200 << 20)\nfor at in range(0, len(m), 8 << 20):\n m[at:at + (8 << 20)] = b'x' * (8 << 20); m.madvise(mmap.MADV_DONTNEED)",
        {RE, MLE},
    ),
    Attack(
        "shared-memory-of-the-zero-device",
        "import mmap, os\nm = mmap.mmap(os.open('/dev/zero', os.O_RDWR), 200 << 20)\nfor at in range(0, len(m), 8 << 20):\n m[at:at + (8 << 20)] = b'x' * (8 << 20); m.madvise(mmap.MADV_DONTNEED)",
        {RE, MLE},
    ),
    Attack(
        "files-that-are-deleted-and-open",
        "import os, time\nkeep = []\nfor n in range(12):\n keep.append(open('x', 'wb')); os.unlink('x'); keep[-1].write(b'x' * (4 << 20)); keep[-1].flush()\ntime.sleep(60)",
        {MLE},
        limits=Limits(cpu_seconds=2, wall_seconds=1.5, memory_bytes=40 << 20),
        landlock={MLE, TLE},  # on a disk they are no memory, and only files with a name are found there
    ),
    Attack(
        "files-in-shared-memory",
        "import time\nfor n in range(12):\n with open(f'/dev/shm/{n}', 'wb') as f: f.write(b'x' * (4 << 20))\ntime.sleep(60)",
        {MLE, RE},
        limits=SMALL,
    ),
    Attack("huge-pages", "import mmap\nmmap.mmap(-1, 2 << 20, flags=0x40022)", {RE}, ends_by=1),
    Attack("memory-in-a-grandchild", "import os, time\nif os.fork() == 0:\n if os.fork() == 0:\n  x = b'x' * (150 << 20); time.sleep(60)\n os._exit(0)\ntime.sleep(60)", {MLE}),
    Attack("a-heap-that-doubles", "x = [0]\nwhile True: x += x", {MLE}),
    Attack("a-knot-of-garbage", "import gc\ngc.disable()\nwhile True:\n a = []; a.append(a); a.append(b'x' * 4096)", {MLE, TLE}),
    Attack("a-chain-that-is-freed-deeply", "x = None\nfor _ in range(200_000): x = (x,)\ndel x\nprint(1)", {OK}, prints=b"1\n"),
    Attack("comes-back-from-the-dead", "class A:\n def __del__(self):\n  A()\nA()\nwhile True: pass", {TLE, RE, MLE}),
]  # fmt: skip

KERNEL_MEMORY = [
    Attack("event-descriptors", "import os, ctypes\nlibc = ctypes.CDLL(None)\nassert all(libc.eventfd(0, 0) != -1 for _ in range(2000))", {RE}),
    Attack("timer-descriptors", "import ctypes\nlibc = ctypes.CDLL(None)\nassert all(libc.timerfd_create(1, 0) != -1 for _ in range(2000))", {RE}),
    Attack("epoll-on-epoll", "import select\nkeep = []\nfor _ in range(2000):\n keep.append(select.epoll())\n if len(keep) > 1: keep[-1].register(keep[-2])", {RE}),
    Attack("watches", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.inotify_init() != -1", {RE}, ends_by=1),
    Attack("asynchronous-input-contexts", "import ctypes\nassert ctypes.CDLL(None, use_errno=True).syscall(206 if __import__('os').uname().machine == 'x86_64' else 0, 1024, ctypes.byref(ctypes.c_ulong())) == 0", {RE}, ends_by=1),
    Attack(
        "pages-given-to-pipes",
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nbuffer = ctypes.create_string_buffer(65536)\nvec = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 65536)\nassert libc.vmsplice(os.pipe()[1], vec, 1, 0) > 0",
        {RE},
        ends_by=1,
    ),
    Attack(
        "pipes-stuffed-by-splice",
        "import os\nopen('x', 'wb').write(b'x' * (1 << 20))\nkeep = []\nwhile True:\n keep.append(os.pipe()); file = os.open('x', 0); os.set_blocking(keep[-1][1], False)\n os.splice(file, keep[-1][1], 65536); os.close(file)",
        {RE},
    ),
    Attack(
        "descriptors-in-flight",
        "import os, socket\nkeep = []\nwhile True:\n a, b = socket.socketpair(); c, d = socket.socketpair()\n"
        " socket.send_fds(a, [b'x'], [c.fileno(), d.fileno()]); keep.append((a, b)); c.close(); d.close()",
        {RE},
    ),
    Attack("files-without-content", "for n in range(10**7): open(f'{n}', 'w').close()", {RE, TLE, MLE}),
    Attack("links-without-end", "import os\nfor n in range(10**7): os.symlink('x' * 100, f'{n}')", {RE, TLE, MLE}),
    Attack("names-of-one-file", "import os\nfor n in range(10**7): os.link('main.py', f'{n}')", {RE, TLE, MLE}),
    Attack("queued-signals", "import ctypes, os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [40])\nlibc = ctypes.CDLL(None)\nassert all(libc.sigqueue(os.getpid(), 40, 0) == 0 for _ in range(10**7))", {RE, TLE}),
    Attack("locks-byte-by-byte", "import fcntl\nfile = open('x', 'wb')\nfor at in range(10**7): fcntl.lockf(file, fcntl.LOCK_EX, 1, 10**8 - 2 * at)", {RE, TLE, MLE}),
    Attack("a-huge-command-line", "import os, sys\nos.execve(sys.executable, ['x' * 100_000] * 100, {'A' * 1000: 'B' * 100_000})", {RE}),
    Attack("a-huge-environment", "import os\nfor n in range(10**6): os.putenv('x' * 1000 + str(n), 'y' * 1000)", {MLE, TLE, RE}),
]  # fmt: skip

FILES = [
    Attack("folders-without-rights", "import os\nos.makedirs('a/b/c'); open('a/b/c/x', 'w').close()\nfor f in ('a/b/c', 'a/b', 'a'):\n try: os.chmod(f, 0)\n except PermissionError: pass\nprint(1)", {OK}, prints=b"1\n"),
    Attack("folders-made-without-rights", "import os\nos.umask(0o777)\nfor n in range(20): os.mkdir(str(n))\nprint(1)", {OK}, prints=b"1\n"),
    Attack("names-of-every-kind", "import os\nfor n in (b'\\xff\\xfe', b' ', b'\\n', 'ü'.encode() * 100, b'-rf', b'*', b'...', b'\\x1b[2J'):\n os.mkdir(n); open(n + b'/' + n, 'w').close()\nprint(1)", {OK}, prints=b"1\n"),
    Attack("a-fifo-that-nobody-writes", "import os\nos.mkfifo('f'); open('f').read()", {TLE}, limits=SOON),
    Attack("a-deeper-tree-than-a-path", "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nprint(1)", {OK}, prints=b"1\n", landlock={OK, TLE}),
    Attack("links-in-a-circle", "import os\nos.symlink('b', 'a'); os.symlink('a', 'b'); os.symlink('.', 'here')\nopen('here/here/here/main.py').close(); open('a')", {RE}, ends_by=1),
    Attack("its-own-source-gone", "import os\nos.unlink('main.py'); os.mkdir('main.py')\nprint(1)", {OK}, prints=b"1\n"),
    Attack("modules-in-the-librarys-place", "import os\nfor n in ('posix', 'sys', 'threading', 'atexit', 'io', 'encodings'):\n open(n + '.py', 'w').write('raise SystemExit(0)')\nimport threading, string\n1 / 0", {RE}, ends_by=1),
    Attack("a-working-folder-that-is-gone", "import os\nos.mkdir('x'); os.chdir('x'); os.rmdir('../x')\nprint(1)", {OK}, prints=b"1\n"),
]  # fmt: skip

STREAMS = [
    Attack("output-that-does-not-wait", "import os\nos.set_blocking(1, False)\ndone = 0\nwhile done < 500_000:\n try: done += os.write(1, b'x' * min(65536, 500_000 - done))\n except BlockingIOError: pass", {OK}, prints=b"x" * 500_000),
    Attack("reads-its-own-output", "import os\nfd = os.open('/proc/self/fd/1', os.O_RDONLY | os.O_NONBLOCK)\nos.write(1, b'x' * 100); os.read(fd, 50)", {OK, RE}),
    Attack("output-through-the-other-stream", "import os\nos.dup2(2, 1); print('there')", {OK}, prints=b""),
    Attack("output-by-a-copied-descriptor", "import os\nfd = os.dup(1); os.close(1); os.write(fd, b'here')", {OK, RE}, prints=b"here"),
    Attack("writes-to-its-input", "import os\nprint(input())\nfor how in (os.O_WRONLY, os.O_RDWR):\n try: os.write(os.open('/proc/self/fd/0', how), b'x'); print('changed')\n except OSError: print('refused')", {RE, OK}),
    Attack("types-into-its-terminal", TRY + "print({name_of_error(lambda: call(libc.ioctl, fd, 0x5412, b'x')) for fd in (0, 1, 2)}, refused(lambda: open('/dev/tty')))", {OK}, prints=b"{'EPERM'} True\n"),
    Attack("half-a-character", r"import os; os.write(1, '\N{SNOWMAN}'.encode()[:2])", {OK}, prints=b"\xe2\x98"),
    Attack("a-write-of-nothing-for-ever", "import os\nwhile True: os.write(1, b'')", {TLE}, prints=b""),
]  # fmt: skip

RIGHTS = [
    Attack(
        "limits-raised",
        "import resource as r\nfor kind in range(16):\n soft, hard = r.getrlimit(kind)\n if hard != -1:\n  for new in ((hard + 1, hard + 1), (-1, -1)):\n"
        "   try: r.setrlimit(kind, new); print('raised', kind)\n   except (ValueError, OSError): pass",
        {OK},
        prints=b"",
    ),
    Attack(
        "limits-of-process-1",  # without descriptors or time it could not tell the ending, and the sample would be masked
        "import resource as r, time\nfor kind in range(16):\n try: r.prlimit(1, kind, (0, 0)); print('lowered', kind)\n except PermissionError: pass\n"
        "time.sleep(0.2)\nraise SystemExit(7)",
        {RE},
        prints=b"",
        ends_by=7,
    ),
    Attack("the-time-limit-raised", "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (r.getrlimit(r.RLIMIT_CPU)[1],) * 2)\nwhile True: pass", {TLE}),
    Attack(
        "files-of-its-own-process",
        TRY + "print([name for name, text in (('oom_score_adj', '-1000'), ('uid_map', '0 0 1'), ('gid_map', '0 0 1'), ('setgroups', 'allow'), ('loginuid', '0'),"
        " ('attr/current', 'x'), ('timens_offsets', '1 1')) if not refused(lambda: os.write(os.open('/proc/self/' + name, os.O_WRONLY), text.encode()))])",
        {OK},
        prints=b"[]\n",
    ),
    Attack("harmless-files-of-its-own-process", TRY + "for name in ('comm', 'coredump_filter', 'oom_score_adj', 'clear_refs'):\n refused(lambda: os.write(os.open('/proc/self/' + name, os.O_WRONLY), b'1'))", {OK}),
    Attack("other-users", TRY + "print([n for n, f in enumerate((lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setreuid(0, 0))) if not refused(f)])", {OK}, prints=b"[]\n"),
    Attack("capabilities", TRY + "print(all(libc.prctl(23, n, 0, 0, 0) != 1 or libc.prctl(47, 2, n, 0, 0) == -1 for n in range(41)))", {OK}, prints=b"True\n"),
    Attack("the-clock", TRY + "import time\nprint(refused(lambda: time.clock_settime(0, 0)), refused(lambda: call(libc.settimeofday, b'\\0' * 16, None)))", {OK}, prints=b"True True\n"),
    Attack("a-better-priority", TRY + "print(refused(lambda: os.nice(-1)), refused(lambda: os.sched_setscheduler(0, 1, os.sched_param(10))))", {OK}, prints=b"True True\n"),
    Attack(
        "what-the-machine-is",
        TRY + "print([path for path in ('/sys/class', '/proc/kpagecount', '/proc/timer_list', '/dev/mem', '/dev/kmsg', '/dev/vda', '/dev/pts', '/etc/hostname')"
        " if not refused(lambda: os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(16))])",
        {OK},
        prints=b"[]\n",
    ),
    Attack("core-dumps", "import os, resource as r\nprint(r.getrlimit(r.RLIMIT_CORE)[1] <= 1, flush=True)\nos.abort()", {RE}, prints=b"True\n", ends_by=-6),
]  # fmt: skip


@pytest.mark.parametrize("attack", by_row(PROCESSES))
def test_no_process_gets_away(withstand, attack):
    check(attack, withstand)


@pytest.mark.parametrize("attack", by_row(MEMORY))
def test_no_memory_is_hidden(withstand, attack):
    check(attack, withstand)


@pytest.mark.parametrize("attack", by_row(KERNEL_MEMORY))
def test_nothing_is_hoarded_in_the_kernel(withstand, attack):
    check(attack, withstand)


@pytest.mark.parametrize("attack", by_row(FILES))
def test_no_file_confuses(withstand, attack):
    check(attack, withstand)


@pytest.mark.parametrize("attack", by_row(STREAMS))
def test_no_stream_confuses(withstand, attack):
    check(attack, withstand)


@pytest.mark.parametrize("attack", by_row(RIGHTS))
def test_no_right_is_gained(withstand, attack):
    check(attack, withstand)
