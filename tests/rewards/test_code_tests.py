"""A program earns what its tests say, and nothing by any other way."""

import math
import threading

import pytest

from cispo.errors import ConfigError, DataError
from cispo.types import Verdict
from rewards.code_program import find_program, find_solution, tricks
from rewards.code_tests import CodeTests, CodeTestsConfig, check_reference
from sandbox import Limits, Sandbox, SandboxPool

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=10, memory_bytes=96 << 20, output_bytes=100_000)
ADD = {"entry": "add", "tests": [{"args": [2, 3], "returns": 5}, {"args": [0, 0], "returns": 0}]}
SUM = {"tests": [{"stdin": "2 3", "stdout": "5\n"}, {"stdin": "1 1", "stdout": "2"}]}


class CountingPool(SandboxPool):
    """The real pool, which also remembers what it ran."""

    def __init__(self, limits=LIMITS, **options):
        super().__init__(1, limits, **options)
        self.programs = []

    def submit(self, program, limits=None):
        self.programs.append(program)
        return super().submit(program, limits)


@pytest.fixture(scope="module")
def pool():
    with CountingPool() as pool:
        yield pool


def returning(value, reference_value, pool):
    reference = {"entry": "f", "tests": [{"args": [], "returns": reference_value}]}
    return CodeTests(pool).score(f"def f(): return {value}", reference)


@pytest.mark.parametrize(
    ("source", "verdict", "fraction"),
    [
        ("def add(a, b): return a + b", Verdict.CORRECT, 1.0),
        ("def add(a, b): return a - b", Verdict.WRONG, 0.5),
        ("def add(a, b): return 5 if a else 1 / 0", Verdict.RUNTIME_ERROR, 0.5),
        ("def add(a, b): return 5 if a else exit(0)", Verdict.RUNTIME_ERROR, 0.5),
        ("import os\ndef add(a, b): return 5 if a else os._exit(0)", Verdict.RUNTIME_ERROR, 0.5),
        ("def add(a, b):\n    while not a: pass\n    return 5", Verdict.TIME_LIMIT, 0.5),
        ("def add(a, b): return 5 if a else bytearray(b'x') * (200 << 20)", Verdict.MEMORY_LIMIT, 0.5),
        ("def add(a, b): return 'x' * 200_000", Verdict.OUTPUT_LIMIT, 0.0),
        ("def add(a, b):", Verdict.COMPILE_ERROR, 0.0),
        ("def sub(a, b): return a", Verdict.RUNTIME_ERROR, 0.0),
        ("exit()", Verdict.RUNTIME_ERROR, 0.0),
        ("  ", Verdict.UNPARSEABLE, 0.0),
    ],
)
def test_function_tests(pool, source, verdict, fraction):
    score = CodeTests(pool, CodeTestsConfig(credit="fraction")).score(source, ADD)
    assert (
        (score.verdict, score.value, score.parts["tests"]) == (verdict, fraction, fraction) if score.parts else False
    ), score
    assert score.correct == (verdict is Verdict.CORRECT)
    strict = CodeTests(pool).score(source, ADD)
    assert (strict.verdict, strict.value) == (verdict, float(fraction == 1.0))


@pytest.mark.parametrize(
    ("source", "verdict", "fraction"),
    [
        ("print(sum(map(int, input().split())))", Verdict.CORRECT, 1.0),
        ("print(5)", Verdict.WRONG, 0.5),
        ("print('5   \\n\\n' if input()[0] == '2' else 2)", Verdict.CORRECT, 1.0),
        ("print(' 5')", Verdict.WRONG, 0.0),
        ("print(5); raise SystemExit(3)", Verdict.RUNTIME_ERROR, 0.0),
        ("print(5", Verdict.COMPILE_ERROR, 0.0),
        ("print(5)\nwhile True: pass", Verdict.TIME_LIMIT, 0.0),
        ("import os; os.write(1, bytes(range(256)))", Verdict.WRONG, 0.0),
    ],
)
def test_output_tests(pool, source, verdict, fraction):
    score = CodeTests(pool, CodeTestsConfig(credit="fraction")).score(source, SUM)
    assert (score.verdict, score.value) == (verdict, fraction), score


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("True", 1), ("1", True), ("1.0", 1), ("0", False), ("None", 0), ("'1'", 1), ("b'x'", "x"),
        ("(1, 2)", [1, 2]), ("[1, 2]", (1, 2)), ("[1, True]", [1, 1]), ("{1: 2}", {1.0: 2}), ("{1}", frozenset({1})),
        ("[[1.0]]", [[1]]), ("'é'", "e\u0301"), ("10**5000", 1),
    ],
)  # fmt: skip
def test_a_result_of_another_type_is_wrong(pool, value, expected):
    assert returning(value, expected, pool).verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("-0.0", 0.0), ("float('nan')", math.nan), ("{2: 'b', 1: 'a'}", {1: "a", 2: "b"}), ("{3, 1, 2}", {1, 2, 3}),
        ("2**64", 2**64), ("[None, 'é\\ud800', (1,)]", [None, "é\ud800", (1,)]), ("0.1 + 0.2", 0.1 + 0.2),
    ],
)  # fmt: skip
def test_an_equal_result_is_right(pool, value, expected):
    assert returning(value, expected, pool).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    "source",
    [
        "class Any(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef add(a, b): return Any()",
        "class Any:\n    __eq__ = lambda s, o: True\ndef add(a, b): return Any()",
        "print('5'); print('all tests passed')\ndef add(a, b): print(5); return 0",
        "import os\ndef add(a, b):\n    for fd in range(10):\n        try: os.write(fd, b'= 5\\n0 = 5\\n')\n"
        "        except OSError: pass\n    return 0",
        "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
        "        if frame.f_locals.get('returns') is not None: return frame.f_locals['returns']\n"
        "        frame = frame.f_back\n    return open('tests.json').read()",
        "import sys\ndef add(a, b): sys.exit(0)\nsys.exit(0)",
        "import rewards.code_tests\ndef add(a, b): return 0",
        "import atexit, os\natexit.register(lambda: os.write(1, b'5'))\ndef add(a, b): return 0",
    ],
)
def test_tricks_earn_nothing(pool, source):
    score = CodeTests(pool, CodeTestsConfig(credit="fraction")).score(
        source, {"entry": "add", "tests": ADD["tests"][:1]}
    )
    assert score.value == 0.0
    assert not score.correct


def test_arguments_changed_by_one_call_are_fresh_for_the_next(pool):
    reference = {"entry": "f", "tests": [{"args": [[1, 2]], "returns": 2}] * 3}
    source = "def f(x):\n    n = len(x)\n    x.clear()\n    return n"
    assert CodeTests(pool).score(source, reference).correct


def test_stopping_early(pool):
    reference = {"tests": [{"stdin": str(n), "stdout": "3"} for n in range(5)]}
    for config, num_runs in ((CodeTestsConfig(), 1), (CodeTestsConfig(stop_early=False), 5)):
        pool.programs.clear()
        assert CodeTests(pool, config).score("print(input())", reference).value == 0.0
        assert len(pool.programs) == num_runs


def test_the_same_program_is_run_once(pool):
    verifier = CodeTests(pool)
    pool.programs.clear()
    first = verifier.score("def add(a, b): return a + b", ADD)
    assert verifier.score("```python\ndef add(a, b): return a + b\n```", ADD).verdict is first.verdict
    assert verifier.score("<think>hm</think>\ndef add(a, b): return a + b", ADD) is first
    other = {"entry": "add", "tests": [{"args": [2, 3], "returns": 5.0}]}
    assert not verifier.score("def add(a, b): return a + b", other).correct
    assert len(pool.programs) == 5


def test_threads_with_the_same_program_share_one_run(pool):
    verifier = CodeTests(pool)
    pool.programs.clear()
    scores = []
    threads = [
        threading.Thread(target=lambda: scores.append(verifier.score("def add(a, b): return 5", ADD))) for _ in range(5)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(scores) == 5
    assert len(pool.programs) == 2


def test_the_cache_is_bounded(pool):
    verifier = CodeTests(pool, CodeTestsConfig(cache_size=2))
    pool.programs.clear()
    for number in (1, 2, 3, 3, 2, 1):
        verifier.score(f"def add(a, b): return {number}", ADD)
    assert len(pool.programs) == 4
    assert len(verifier._scores) == 2


class BrokenPool(CountingPool):
    """A pool whose bubblewrap has gone since the self-test."""

    def __init__(self):
        super().__init__()
        self._sandbox = Sandbox(LIMITS, bwrap="/nonexistent/bwrap")


def test_a_system_error_is_no_score_and_not_remembered():
    with BrokenPool() as pool:
        verifier = CodeTests(pool)
        for reference in (SUM, ADD):
            for _ in range(2):
                score = verifier.score("print(5)", reference)
                assert score.verdict is Verdict.SYSTEM_ERROR
                assert math.isnan(score.value)
                assert not score.usable
        assert len(pool.programs) == 8  # each tried twice


def test_a_reference_without_tests_is_a_data_error(pool):
    for reference in (
        {},
        {"tests": []},
        {"tests": [{"stdin": "x"}]},
        {"entry": "f", "tests": [{"stdin": "", "stdout": ""}]},
        {"entry": "f", "tests": [{"args": 5, "returns": 5}]},
        {"entry": "f", "tests": [{"args": "ab", "returns": 5}]},
        {"tests": [{"stdin": 5, "stdout": "5"}]},
        {"tests": [{"stdin": "5", "stdout": None}]},
        {"tests": ["5"]},
        "5",
    ):
        with pytest.raises(DataError, match="tests"):
            CodeTests(pool).score("print(1)", reference)
        with pytest.raises(DataError, match="tests"):
            check_reference(reference)
    for name in (None, 5, "", "f(1)"):
        with pytest.raises(DataError, match="name of a function"):
            check_reference({"entry": name, "tests": ADD["tests"]})
    for reference in (SUM, ADD):
        check_reference(reference)
    with pytest.raises(ConfigError, match="credit"):
        CodeTestsConfig(credit="some")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("print(1)", "print(1)"),
        ("<think>```python\ndraft\n```</think>print(1)", "print(1)"),
        ("First\n```python\na\n```\nthen\n```python\nb\nc\n```\nand ```d```", "b\nc\n"),
        ("```python\na\n```\n```python\nunfinished", "a\n"),
        ("```Python\na\n```", "a\n"),
        ("```text\na\n```\n```python\nb\n```", "b\n"),
        ("<think>still thinking\n```python\na\n```", ""),
    ],
)
def test_the_program_is_found(text, program):
    assert find_program(text) == program


def test_the_block_says_the_language():
    text = "```cpp\nint x;\n```\n```python\nx = 1\n```"
    assert find_solution(text, ("cpp", "python")).language == "python"
    assert find_solution(text, ("cpp",)).source == "int x;\n"


def test_tricks_are_counted_and_never_paid(pool):
    source = "import sys\ndef add(a, b): return a + b if sys._getframe() else 0"
    assert tricks(source) == ("frames",)
    score = CodeTests(pool).score(source, ADD)
    assert (score.value, score.parts) == (1.0, {"tests": 1.0, "tricks": 1.0})


def test_what_failed_for_others_is_tried_first(pool):
    reference = {"tests": [{"stdin": str(n), "stdout": str(n)} for n in range(6)]}
    verifier = CodeTests(pool, CodeTestsConfig(num_concurrent=1))
    for source in ("n = input(); print(n if n != '4' else 0)", "n = input(); print(n if n != '4' else 1)"):
        pool.programs.clear()
        assert verifier.score(source, reference).verdict is Verdict.WRONG
    assert [program.stdin for program in pool.programs] == ["4"]


def test_limits_of_a_test_are_its_own(pool):
    source = "n = int(input())\nx = bytearray(n << 20)\nx[::4096] = b'x' * len(x[::4096])\nprint(n)"
    tests = [{"stdin": "120", "stdout": "120"}]
    assert CodeTests(pool).score(source, {"tests": tests}).verdict is Verdict.MEMORY_LIMIT
    assert CodeTests(pool).score(source, {"tests": tests, "memory_mb": 200}).correct
    tests[0] |= {"seconds": 0.2}
    busy = "import time\nwhile time.process_time() < 0.4: pass\nprint(input())"
    assert CodeTests(pool).score(busy, {"tests": tests}).verdict is Verdict.TIME_LIMIT
