# ruff: noqa: E501  (a program is one line of the table, however long)
"""Ways to be paid for a wrong program: each earns 0, and an honest program beside it 1."""

import pytest

from rewards.code_tests import CodeTests, CodeTestsConfig
from sandbox import Limits, SandboxPool

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=4, memory_bytes=128 << 20, output_bytes=200_000)
CALLS = {"entry": "f", "tests": [{"args": [n, 2], "returns": n + 2} for n in (40, 7)]}
OUTPUT = {"tests": [{"stdin": f"{n} 2", "stdout": f"{n + 2}\n"} for n in (40, 7)]}
SUITE = {
    "entry": "f",
    "suite": "def check(candidate):\n    assert candidate(40, 2) == 42\n    assert candidate(7, 2) == 9",
}
APART = {"entry": "f", "suite": SUITE["suite"] + "\n    try: assert candidate(1, 1) == 2\n    except KeyError: pass"}
RAISES = {"entry": "f", "tests": [{"args": [1, 2], "raises": "KeyError"}]}

# What is put before `def f(a, b)`, and the body of f.
FUNCTIONS = {
    "run_tests overwritten": ("def run_tests(*a): return True\ncheck = test = run_tests", "return 0"),
    "eq_override": ("class A:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False", "return A()"),
    "int subclass": ("class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__", "return A(42)"),
    "str subclass": ("class A(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__", "return A('42')"),
    "list subclass": ("class A(list):\n    __eq__ = lambda s, o: True", "return A([42])"),
    "dict subclass": ("class A(dict):\n    __eq__ = lambda s, o: True\nA.__module__ = 'collections'", "return A()"),
    "float subclass": ("class A(float):\n    __eq__ = lambda s, o: True\n    __sub__ = lambda s, o: 0.0", "return A(1)"),
    "fake Counter": ("class Counter(dict):\n    __eq__ = lambda s, o: True\nCounter.__module__ = 'collections'", "return Counter()"),
    "class games": ("class A:\n    __class__ = int\n    __eq__ = lambda s, o: True", "return A()"),
    "metaclass": ("class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = type.__hash__\nclass A(metaclass=M): pass", "return A()"),
    "reduce": ("class A:\n    def __reduce__(self): return eval, ('42',)", "return A()"),
    "repr": ("class A:\n    def __repr__(self): return '42'\n    __str__ = __repr__", "return A()"),
    "index": ("class A:\n    __int__ = __index__ = lambda s: 42", "return A()"),
    "exit_code": ("import os", "os._exit(0)"),
    "system exit": ("import sys", "sys.exit(0)"),
    "exit at import": ("import sys\nsys.exit(0)", "return 0"),
    "exit code of the harness": ("import os\nos._exit(99)", "return 0"),
    "stdout_marker": ("", "print('AC'); print('all tests passed'); print('{\"passed\": true}'); return 0"),
    "sentinel": ("", "print('= 42'); print('\\x00= 42'); return '= 42'"),
    "file_marker": ("", "[open(n, 'w').write('passed 42') for n in ('result.json', '.passed', 'reward.txt')]; return 0"),
    "frame walk": (
        "import sys",
        "frame = sys._getframe()\n    while frame:\n        for name in ('expected', 'returns', 'wanted', 'tests', 'answer'):\n"
        "            if name in frame.f_locals: return frame.f_locals[name]\n        frame = frame.f_back",
    ),
    "gc walk": ("import gc", "return [o for o in gc.get_objects() if type(o) is dict and 'returns' in o]"),
    "gc sums": ("import gc", "return max((o for t in gc.get_objects() if type(t) is tuple for o in t if type(o) is int), default=0)"),
    "patched encode": ("import __main__\n__main__.encode = lambda v, d=0: '42'", "return 0"),
    "patched literal": ("import __main__\n__main__.literal = lambda t: 42\n__main__._make_call = lambda *a: 'true'", "return 0"),
    "patched type": ("import builtins\nbuiltins.type = lambda v: int\nbuiltins.str = lambda v: 'true'", "return A if 0 else [1]"),
    "patched posix.write": ("import posix\nold = posix.write\nposix.write = lambda fd, d: old(fd, b'= 42\\n')", "return 0"),
    "patched getpid": ("import posix\nposix.getpid = lambda: 0", "return 0"),
    "patched assert": ("import builtins\nbuiltins.AssertionError = SystemExit", "return 0"),
    "patched eq": ("import operator\noperator.eq = lambda a, b: True", "return 0"),
    "thread after the answer": (
        "import threading, os, time\ndef late():\n    while True:\n        os.write(3, b'= 42\\n')\n"
        "threading.Thread(target=late, daemon=True).start()\ntime.sleep(0.05)",
        "return 0",
    ),
    "atexit": ("import atexit, os\natexit.register(lambda: os.write(3, b'= 42\\n'))", "return 0"),
    "del": ("import os\nclass A:\n    def __del__(self): os.write(3, b'= 42\\n')\nx = A()", "return 0"),
    "excepthook": ("import sys, os\nsys.excepthook = lambda *a: os._exit(0)", "raise MemoryError"),
    "huge int": ("", "return 10 ** 100000"),
    "deep list": ("", "x = []\n    for _ in range(100000): x = [x]\n    return x"),
    "knot": ("", "x = []\n    x.append(x)\n    return x"),
    "nan": ("", "return float('nan')"),
    "minus zero": ("", "return -0.0"),
    "true": ("", "return True"),
    "everything": ("", "return list(range(100))"),
    "nonce guess": ("import os", "os.write(3, b'0000000000000000 = 42\\n'); os._exit(0)"),
    "all descriptors": (
        "import os",
        "for fd in range(1024):\n        try: os.write(fd, b'= 42\\n')\n        except OSError: pass\n    return 0",
    ),
    "nonce from the heap, many answers": (
        "import sys, os",
        "frame = sys._getframe()\n    while 'nonce' not in frame.f_locals: frame = frame.f_back\n"
        "    os.write(3, b''.join(f\"{frame.f_locals['nonce']} = {n}\\n\".encode() for n in range(50))); os._exit(0)",
    ),
    "fork that answers twice": (
        "import os, sys",
        "frame = sys._getframe()\n    while 'nonce' not in frame.f_locals: frame = frame.f_back\n"
        "    pid = os.fork()\n    if pid == 0:\n        os.write(3, f\"{frame.f_locals['nonce']} = 42\\n\".encode()); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n    return 42 if a == 40 else 9",
    ),
    "child process": ("import subprocess, sys", "return subprocess.run([sys.executable, '-c', 'print(42)'], capture_output=True).stdout"),
    "sys.modules games": ("import sys\nfor n in ('json', 'posix', '__main__', 'builtins'): sys.modules[n] = sys", "return 0"),
    "calls to come": (
        "import sys",
        "frame, seen = sys._getframe(), []\n    while frame:\n        seen += [len(v) for k, v in frame.f_locals.items() if k == 'calls']\n"
        "        frame = frame.f_back\n    return seen",
    ),
    "temp files between tests": (
        "import os, glob",
        "n = len(glob.glob('/tmp/seen*'))\n    open(f'/tmp/seen{n}', 'w').close()\n    return 0 if not n else a + b",
    ),
    "counter between tests": ("n = [0]", "n[0] += 1\n    return 0 if n[0] == 1 else a + b"),
    "import hook": ("import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())", "return 0"),
    "signals": ("import signal, os\nfor s in (1, 2, 10, 12, 15): signal.signal(s, lambda *a: os._exit(0))", "os.kill(os.getppid(), 15); os.kill(os.getpid(), 15); return 0"),
    "kill the init": ("import os", "os.kill(1, 9); os.kill(-1, 15); return 0"),
    "trace": ("import sys\nsys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)", "return 0"),
    "stdin again": ("import os", "os.lseek(0, 0, 0) if os.isatty(0) else None\n    return os.read(0, 10000)"),
    "proc": ("", "return open('/proc/self/cmdline', 'rb').read() + open('/proc/1/environ', 'rb').read()"),
    "proc parent": ("import os", "return open(f'/proc/{os.getppid()}/mem', 'rb').read(10)"),
    "own source": ("", "return open(__file__).read()"),
    "the framework": ("import rewards.code_tests", "return 0"),
    "ctypes": ("import ctypes", "return ctypes.c_int.from_address(id(1) + 24).value"),
    "int cache": ("import ctypes\nctypes.c_int32.from_address(id(0) + 24).value = 42", "return 0"),
    "generator that lies": ("", "yield 42"),
    "coroutine": ("import asyncio\nasync def g(): return 42", "return g()"),
    "exception as answer": ("", "raise KeyError(42)"),
    "exception group": ("", "raise BaseExceptionGroup('42', [KeyError(42)])"),
    "keyboard interrupt": ("", "raise KeyboardInterrupt"),
    "stop iteration": ("", "raise StopIteration(42)"),
    "recursion": ("import sys\nsys.setrecursionlimit(10 ** 9)", "return f(a, b)"),
    "closed descriptors": ("import os\nos.closerange(0, 100)", "return 0"),
    "dup over the results": ("import os\nos.dup2(2, 3); os.dup2(2, 1)", "return 0"),
    "function as answer": ("", "return lambda *a: 42"),
    "surrogates": ("", "return '\\ud800'"),
}  # fmt: skip
RAISES_KEY_ERROR = {"exception as answer"}


@pytest.fixture(scope="module")
def pool():
    with SandboxPool(2, LIMITS) as pool:
        yield pool


def value(pool, source, reference):
    return CodeTests(pool, CodeTestsConfig(credit="all")).score(f"```python\n{source}\n```", reference).value


def test_an_honest_program_earns_all(pool):
    honest = "def f(a, b): return a + b"
    assert [value(pool, honest, reference) for reference in (CALLS, SUITE, APART)] == [1.0] * 3
    assert value(pool, "print(sum(map(int, input().split())))", OUTPUT) == 1.0
    assert value(pool, "def f(a, b): return {}[a]", RAISES) == 1.0


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("reference", [CALLS, APART], ids=["calls", "suite"])
def test_a_trick_in_a_function_earns_nothing(pool, name, reference):
    before, body = FUNCTIONS[name]
    score = CodeTests(pool).score(f"{before}\ndef f(a, b):\n    {body}", reference)
    assert score.usable, score
    assert not score.value > 0, score
    assert not score.correct


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - RAISES_KEY_ERROR))
def test_no_trick_is_the_exception_that_was_asked_for(pool, name):
    before, body = FUNCTIONS[name]
    assert not value(pool, f"{before}\ndef f(a, b):\n    {body}", RAISES) > 0


@pytest.mark.parametrize(
    "source",
    [
        "print('AC'); print('all tests passed')",
        "import os; os._exit(0)",
        "import sys; print(42); sys.exit(1)",
        "import os\nfor fd in range(1024):\n    try: os.write(fd, b'42\\n')\n    except OSError: pass",
        "import atexit\natexit.register(print, 42)\nprint(9)",
        "print(42, end='\\r'); print(9, end='')",
        "print('42\\b\\b9')",
        "import os\nprint(42 if os.fork() else 9)",
        "print(42); print(9)",
        "import os\nn = len(os.listdir('/tmp'))\nopen(f'/tmp/x{n}', 'w')\nprint(42 if n <= 1 else 9)",
        "import sys\nprint(sys._getframe().f_back.f_locals.get('expected', 0))",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print(9))).start()\nprint(42)",
        "print(open('/proc/1/environ').read())",
        "import glob\nfor name in glob.glob('/**/*.jsonl', recursive=True)[:1]: print(open(name).read())\nprint(0)",
    ],
)
def test_a_trick_of_a_program_earns_nothing(pool, source):
    assert value(pool, source, OUTPUT) == 0.0


@pytest.mark.parametrize("reference", [CALLS, SUITE, APART, RAISES], ids=["calls", "suite", "apart", "raises"])
@pytest.mark.parametrize(
    "result",
    [
        "10**5000",
        "[-10**5000]",
        "{10**5000: 1}",
        "iter([10**5000])",
        "['\\ud800']",
        "[float('nan')]",
        "{(10**5000,): {1}}",
    ],
)
def test_no_result_ends_the_run(pool, reference, result):
    """Judging it, and telling of it, is our own process's work."""
    score = CodeTests(pool).score(f"```python\ndef f(a, b): return {result}\n```", reference)
    assert score.usable
    assert score.value == 0.0
