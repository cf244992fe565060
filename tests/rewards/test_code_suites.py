"""Suites of asserts pay for what Python itself would let pass, whether translated or run apart from the solution."""

import math
import threading

import pytest

from cispo.errors import DataError
from cispo.types import Verdict
from rewards.code_reference import read_reference
from rewards.code_tests import CodeTests, CodeTestsConfig
from sandbox import Limits, SandboxPool

LIMITS = Limits(cpu_seconds=1.0, wall_seconds=10, memory_bytes=96 << 20, output_bytes=200_000)


@pytest.fixture(scope="module")
def pool():
    with SandboxPool(2, LIMITS) as pool:
        yield pool


def score(pool, source, credit="fraction", **reference):
    return CodeTests(pool, CodeTestsConfig(credit=credit)).score(source, reference)


TRANSLATED = """
import math
def check(candidate):
    assert candidate([1, 2]) == 3
    assert candidate([]) is not None and not candidate([0])
    assert abs(candidate([0.1, 0.2]) - 0.3) < 1e-6, "a message"
    assert math.isclose(candidate([0.1, 0.2]), 0.3)
    assert candidate([5]) in (4, 5) and 4 < candidate([5]) <= 5 != candidate([1])
    for x, y in [([1], 1), ([2, 3], 5)]:
        assert candidate(x) == y
    for n in range(3):
        result = candidate([n] * 2)
        assert result == 2 * n
    assert True
"""
APART = """
import random
def check(candidate):
    numbers = [3, 1]
    assert candidate(numbers) == 4
    assert numbers == [3, 1]
    try:
        candidate(None)
        assert False
    except TypeError:
        pass
    for _ in range(10):
        x = [random.randrange(100) for _ in range(3)]
        total = candidate(x)
        assert total == sum(x)
"""


def is_translated(suite, entry="f"):
    return read_reference({"entry": entry, "suite": suite}).replay is None


def test_which_way_a_suite_goes():
    assert is_translated(TRANSLATED)
    assert not is_translated(APART)
    assert is_translated("assert f(1) == 2\nassert sorted(f(2)) == [1]")
    assert is_translated("assert Solution().f(1) == 2", "Solution.f")
    assert not is_translated("x = [1]\nf(x)\nassert x == [1]")
    assert not is_translated("x = [1]\nassert f(x) == x")
    assert not is_translated("assert f(f(1)) == 2")
    assert not is_translated("assert {k: f(k) for k in (1, 2)} == {1: 1, 2: 2}")


@pytest.mark.parametrize("suite", [TRANSLATED, APART])
@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("def f(x): return sum(x)", Verdict.CORRECT),
        ("def f(x): return sum(x) + (len(x) > 1)", Verdict.WRONG),
        ("def f(x): return 1 // 0", Verdict.RUNTIME_ERROR),
        ("def f(x):\n    while True: pass", Verdict.TIME_LIMIT),
        ("class A:\n    __eq__ = lambda s, o: True\n    __lt__ = __le__ = __eq__\ndef f(x): return A()", Verdict.WRONG),
        ("class A(int):\n    __eq__ = lambda s, o: True\ndef f(x): return A()", Verdict.WRONG),
        ("import os\ndef f(x): os._exit(0)", Verdict.RUNTIME_ERROR),
        ("import sys\ndef f(x): sys.exit(0)", Verdict.RUNTIME_ERROR),
        (
            "def check(c): pass\ndef f(x): return None\nimport builtins\nbuiltins.AssertionError = KeyError",
            Verdict.WRONG,
        ),
        ("def f(x):", Verdict.COMPILE_ERROR),
    ],
)
def test_a_suite_finds_out(pool, suite, source, verdict):
    found = score(pool, source, credit="all", entry="f", suite=suite)
    assert (found.verdict, found.value) == (verdict, float(verdict is Verdict.CORRECT)), found


def test_an_argument_that_was_changed_is_seen_to_be(pool):
    found = score(pool, "def f(x):\n    n = sum(x)\n    x.sort()\n    return n", entry="f", suite=APART)
    assert not found.correct
    assert 0 < found.value < 1


def test_fractions_count_asserts(pool):
    suite = "assert f(1) == 1\nassert f(2) == 2\nassert f(3) == 3\nassert f(4) == 4"
    assert score(pool, "def f(x): return min(x, 3)", entry="f", suite=suite).value == 0.75


def test_objects_are_used_over_statements(pool):
    suite = "s = Stack()\ns.push(1)\ns.push([2])\nassert s.pop() == [2]\nassert s.pop() == 1"
    source = "class Stack:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x)\n"
    assert score(pool, source + "    def pop(self): return self.a.pop()", **{"class": "Stack", "suite": suite}).correct
    assert not score(pool, source + "    def pop(self): return 1", **{"class": "Stack", "suite": suite}).correct


@pytest.mark.parametrize(
    ("suite", "why"),
    [
        ("f(1)", "no assert"),
        ("assert f(1) ==", "does not compile"),
        ("import numpy\nassert numpy.all(f(1))", "numpy"),
        ("assert f(Pair(1, 2)) == 3", "Pair"),
        ("assert f(lambda x: x, [1]) == [1]", "a function is an argument"),
        ("import pytest\n@pytest.fixture\ndef test_a(x):\n    assert f(x)", "decorated"),
        ("def test_a(x):\n    assert f(x) == 1", "parameters"),
        ("from unittest import TestCase\nclass T(TestCase):\n    def test(self): assert f(1)", "TestCase"),
        ("def check(g):\n    while True:\n        assert g(1)\n        return", "returns"),
    ],
)
def test_suites_that_cannot_be_run_apart_are_refused_when_they_are_read(suite, why):
    with pytest.raises(DataError, match=why):
        read_reference({"entry": "f", "suite": suite})


def test_two_threads_may_use_one_suite(pool):
    verifier, found = CodeTests(pool), []

    def judge(number):
        found.append(verifier.score(f"def f(x): return sum(x) + {number}", {"entry": "f", "suite": APART}).correct)

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(found) == [False, False, True]


CHECK = "def check(stdin, output, expected):\n    return sorted(output.split()) == sorted(stdin.split())"


def test_a_checker_accepts_any_right_output(pool):
    tests = [{"stdin": "3 1 2"}]
    assert score(pool, "print(*sorted(input().split()))", tests=tests, checker=CHECK).correct
    assert score(pool, "print(input())", tests=tests, checker=CHECK).correct
    assert score(pool, "print(1, 2)", tests=tests, checker=CHECK).verdict is Verdict.WRONG
    call = {"entry": "f", "tests": [{"args": [4]}]}
    root = "def check(args, result, expected): return abs(result * result - args[0]) < 1e-9"
    assert score(pool, "def f(x): return -x ** 0.5", checker=root, **call).correct
    assert not score(pool, "def f(x): return x", checker=root, **call).correct


@pytest.mark.parametrize(
    "body", ["return 1 / 0", "while True: pass", "return 1", "import os; os._exit(0)", "return None"]
)
def test_a_checker_that_fails_is_nobodys_failure(pool, body):
    checker = f"def check(stdin, output, expected):\n    {body}"
    found = score(pool, "print(1)", tests=[{"stdin": ""}], checker=checker)
    assert found.verdict is Verdict.SYSTEM_ERROR
    assert math.isnan(found.value)


@pytest.mark.parametrize(
    "output", ["", "nonsense", "1e999999999", "9" * 5000, "[" * 90_000, "1\\x00", "\\ud800", "7 " * 90_000]
)
def test_an_output_that_no_checker_can_read_is_wrong_and_not_masked(pool, output):
    close = "def check(stdin, output, expected):\n    return abs(int(output) - int(expected)) <= 1"
    deep = "import ast\ndef check(stdin, output, expected):\n    return ast.literal_eval(output) == int(expected)"
    for checker in (close, deep):
        test = {"tests": [{"stdin": "", "stdout": "7"}], "checker": checker}
        assert score(pool, f"print({output!r})", **test).verdict is Verdict.WRONG
    loops = "def check(args, result, expected):\n    while result != expected: pass\n    return True"
    assert (
        score(pool, f"def f(): return {output!r}", entry="f", tests=[{"args": [], "returns": 7}], checker=loops).verdict
        is Verdict.WRONG
    )


def test_a_checker_is_looked_at_when_it_is_read():
    for checker in ("def check(", "def judge(a, b, c): return True"):
        with pytest.raises(DataError, match="a checker"):
            read_reference({"tests": [{"stdin": ""}], "checker": checker})


@pytest.mark.parametrize(
    ("test", "source", "correct"),
    [
        ({"args": [1], "kwargs": {"b": 2}, "returns": 3}, "def f(a, *, b): return a + b", True),
        ({"args": ["x"], "raises": "ValueError"}, "def f(x): return int(x)", True),
        ({"args": ["x"], "raises": "ValueError"}, "class E(ValueError): pass\ndef f(x): raise E", True),
        ({"args": ["x"], "raises": "ValueError"}, "def f(x): raise KeyError", False),
        ({"args": ["x"], "raises": "ValueError"}, "def f(x): return 'ValueError'", False),
        ({"args": [[2, 1]], "args_after": [[1, 2]]}, "def f(x): x.sort()", True),
        ({"args": [[2, 1]], "args_after": [[1, 2]]}, "def f(x): return sorted(x)", False),
        ({"args": [[2, 1]], "args_after": [[1, 2]], "returns": 2}, "def f(x): x.sort(); return 2", True),
        ({"args": [[2, 1]], "args_after": [[1, 2]], "returns": 2}, "def f(x): x.sort(); return 3", False),
        ({"args": [3], "returns": [0, 1, 2]}, "def f(n): yield from range(n)", False),
        ({"args": [3], "returns": [0, 1, 2]}, "def f(n): return range(n)", False),
        ({"args": [3], "returns": [0, 1, 2]}, "def f(n): return list(range(n))", True),
        ({"args": [3], "returns": [0, 1, 2], "compare": "json"}, "def f(n): yield from range(n)", False),
        ({"args": [3], "returns": [0, 1, 2], "compare": "equal"}, "def f(n): return map(int, range(n))", False),
        ({"args": [3], "returns": [0.0, 1.0], "tolerance": 1e-6}, "def f(n): yield 0.0; yield 1.0", False),
        ({"args": [3], "returns": [[0], [1]]}, "def f(n): return [(k for k in [m]) for m in range(2)]", False),
        ({"args": [3], "returns": {"a": 1}, "tolerance": 1.0}, "def f(n): return {iter([1]): 1}", False),
        ({"args": [[3]], "args_after": [[1, 2]]}, "def f(x): x[:] = [1, iter([2])]", False),
        ({"args": [3], "returns": 0.3, "tolerance": 1e-6}, "def f(n): return 0.1 + 0.2", True),
        ({"args": [3], "returns": 3, "tolerance": 10}, "def f(n): return 4", False),
        ({"args": [3], "returns": [1, 2], "compare": "json"}, "def f(n): return 1, 2", True),
        ({"args": [3], "returns": [1]}, "def f(n):\n    x = []\n    x.append(x)\n    return x", False),
        ({"args": [3], "returns": 3}, "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n"
         "class Solution:\n    def f(self, n): return A(n).x", True),
    ],
)  # fmt: skip
def test_kinds_of_calls(pool, test, source, correct):
    assert score(pool, source, entry="f", tests=[test]).correct is correct


def test_methods_literals_preambles_and_operations(pool):
    call = {"entry": "Solution.f", "tests": [{"args": "[(1, 2)]", "returns": "{(1, 2): {3}}"}], "values": "python"}
    assert score(pool, "class Solution:\n    def f(self, x): return {x: {THREE}}", preamble="THREE = 3", **call).correct
    stack = {"class": "S", "tests": [{"operations": [["S", [1]], ["get", []], ["get", []]], "returns": [None, 1, 2]}]}
    source = "class S:\n    def __init__(self, n): self.n = n - 1\n    def get(self): self.n += {}; return self.n"
    assert score(pool, source.format(1), **stack).correct
    assert not score(pool, source.format(0), **stack).correct


ROWS = [
    ({"inputs": ["2 3"], "outputs": ["5"]}, "print(sum(map(int, input().split())))"),
    ({"inputs": [["2", "3"]], "outputs": [["5"]]}, "print(int(input()) + int(input()))"),
    ({"inputs": [[2, 3]], "outputs": [[5]], "fn_name": "add"},
     "class Solution:\n    def add(self, a, b): return a + b"),
    ({"public_tests": {"input": ["1"], "output": ["1"]}, "private_tests": {"input": ["2"], "output": ["2"]}},
     "print(input())"),
    ({"public_test_cases": '[{"input": "7", "output": "7", "testtype": "stdin"}]'}, "print(input())"),
    ({"public_test_cases": [{"input": "[1]\n2", "output": "[1, 2]", "testtype": "functional"}],
      "metadata": '{"func_name": "f"}'}, "class Solution:\n    def f(self, a, b): return a + [b]"),
    ({"prompt": "def one(): return 1\n\ndef f(x):\n    \"\"\"Add one.\"\"\"\n", "entry_point": "f",
      "test": "def check(candidate):\n    assert candidate(1) == 1 + one()"}, "def f(x): return x + one()"),
    ({"test_list": ["assert set(f((1, 2))) == set((2, 1))", "assert f(()) == ()"], "test_setup_code": ""},
     "def f(x): return x"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "source"), ROWS)
def test_rows_of_collections(pool, row, source):
    assert score(pool, source, **row).correct
    assert not score(pool, "def f(*x): return 0\ndef add(*x): return 0\nprint(0)", **row).correct


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"inputs": ["1"], "outputs": []}, "as many outputs"),
        ({"public_test_cases": "eJxr"}, "pickled"),
        ({"test_list": ["assert True"]}, "call a function"),
        ({"tests": [{"stdin": "", "stdout": ""}], "tolerence": 1}, "tolerance"),
        ({"tests": [{"stdin": "", "stdout": ""}], "language": "cobol"}, "language"),
        ({"tests": [{"stdin": "", "stdout": ""}], "seconds": 1000}, "seconds"),
        ({"tests": [{"stdin": "", "stdout": ""}], "compare": "roughly"}, "compare"),
        ({"entry": "f", "tests": [{"args": [1]}]}, "returns"),
        ({"class": "S", "tests": [{"operations": [["T", []]], "returns": [None]}]}, "operation"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(row, why):
    with pytest.raises(DataError, match=why):
        read_reference(row)


@pytest.mark.parametrize(
    ("suite", "honest", "trick"),
    [
        ("def test_it():\n    for x in f(3): assert f(x)", "return [1, 2] if x == 3 else True",
         "return list(range(3000))"),
        ("def test_it():\n    x = 3\n    while x: x = f(x)\n    assert f(9) == 8", "return x - 1", "return x + 1"),
        ("def test_it():\n    assert len(str(2 ** f(3))) == 1", "return x", "return 10 ** 11"),
        ("def test_it():\n    x = f(3)\n    while x != 3: pass\n    assert f(4) == 4", "return x", "return 5"),
    ],
)  # fmt: skip
def test_results_that_lead_a_suite_astray_are_a_failure_and_not_masked(pool, suite, honest, trick):
    assert score(pool, f"def f(x): {honest}", entry="f", suite=suite).correct
    found = score(pool, f"def f(x): {trick}", entry="f", suite=suite)
    assert found.value == 0.0
    assert found.verdict is not Verdict.SYSTEM_ERROR


@pytest.mark.parametrize("apart", ["", "    import math\n    wanted = math.floor(3.5)\n    assert wanted == 3\n"])
@pytest.mark.parametrize(
    ("condition", "is_right"),
    [
        ("list(f(3)) == [0, 1, 2]", True),
        ("sorted(f(3)) == [0, 1, 2] and sum(f(3)) == 3", True),
        ("f(3) == [0, 1, 2]", False),
        ("[0, 1, 2] == f(3)", False),
        ("f(3) == f(3)", False),
        ("isinstance(f(3), list)", False),
        ("len(f(3)) == 3", False),
    ],
)
def test_a_generator_is_in_a_suite_what_it_is_in_python(pool, apart, condition, is_right):
    suite = f"def test_it():\n{apart}    assert {condition}\n"
    assert score(pool, "def f(n): yield from range(n)", entry="f", suite=suite).correct is is_right
    listed = score(pool, "def f(n): return list(range(n))", entry="f", suite=suite)
    assert listed.correct


def test_a_checker_gets_what_a_generator_yields(pool):
    checker = "def check(args, result, expected): return sorted(result) == sorted(expected)"
    call = {"entry": "f", "tests": [{"args": [3], "returns": [0, 1, 2]}], "checker": checker}
    assert score(pool, "def f(n): yield from (2, 1, 0)", **call).correct
    assert not score(pool, "def f(n): yield from (2, 1)", **call).correct
