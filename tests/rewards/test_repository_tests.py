"""A patch earns what the repository's tests say, and nothing by any other way."""

import io
import math
import tarfile

import pytest

from cispo.errors import ConfigError, DataError
from cispo.types import Verdict
from rewards import repository_tests
from rewards.repository_tests import RepositoryTests, RepositoryTestsConfig, check_reference
from sandbox import Limits, Sandbox, SandboxPool

LIMITS = Limits(cpu_seconds=5, wall_seconds=60)
BUGGY = """import math

class ShapeError(ValueError):
    def __init__(self, text, size):
        super().__init__(text)
        self.size = size

class Square:
    def __init__(self, side):
        if side < 0:
            raise ShapeError('negative side', side)
        self.side = side

    def __eq__(self, other):
        return self.side == other.side

def area(side):
    return side + side

def label(side):
    return f'area {side}'

def each(function, sides):
    return [function(side) for side in sides]
"""
TESTS = """import unittest
from shapes import ShapeError, Square, area, each, label
import shapes

class AreaTest(unittest.TestCase):
    def test_area(self):
        self.assertEqual(area(3), 9)

    def test_close(self):
        assert abs(area(1.5) - 2.25) < 1e-9

    def test_none(self):
        self.assertEqual(area(0), 0)

class OtherTest(unittest.TestCase):
    def test_label(self):
        self.assertIn('2', label(2))
        assert label(2).startswith('area')

    def test_error(self):
        with self.assertRaises(ShapeError) as caught:
            Square(-1)
        self.assertEqual(caught.exception.size, -1)

    def test_equal(self):
        self.assertIs(Square(2).__eq__(Square(2)), True)

    def test_each(self):
        self.assertEqual(each(lambda side: side + 1, [1, 2]), [2, 3])

def test_module():
    assert shapes.area(1 * 2) == 4
"""
OLD = "def area(side):\n    return side + side\n"
PATH = "tests/test_shapes.py"
FAIL = [f"{PATH}::AreaTest::test_area", f"{PATH}::AreaTest::test_close"]
PASS = [f"{PATH}::AreaTest::test_none", f"{PATH}::test_module"]
PASS += [f"{PATH}::OtherTest::test_{name}" for name in ("label", "error", "equal", "each")]
REFERENCE = {
    "repository": {"shapes/__init__.py": BUGGY, "README.md": "shapes\n", PATH: "import shapes\n"},
    "tests": {PATH: TESTS},
    "fail_to_pass": FAIL,
    "pass_to_pass": PASS,
}


@pytest.fixture(scope="module")
def verifier():
    with SandboxPool(1, LIMITS) as pool:
        yield RepositoryTests(pool)


def replacing(new, old=OLD, path="shapes/__init__.py"):
    """An answer that puts `new` in the place of `old`, the whole file being its context's end."""
    before = BUGGY.split("\n")
    first = BUGGY[: BUGGY.index(old)].count("\n")
    removed, added = old.splitlines(), new.splitlines()
    trailing = before[first + len(removed)]
    lines = [f"-{line}" for line in removed] + [f"+{line}" for line in added] + [f" {trailing}"]
    head = f"@@ -{first + 1},{len(removed) + 1} +{first + 1},{len(added) + 1} @@"
    return "```diff\n" + "\n".join([f"--- a/{path}", f"+++ b/{path}", head, *lines]) + "\n```"


RIGHT = replacing("def area(side):\n    return side * side\n")


def test_the_right_patch_earns_all(verifier):
    score = verifier.score(f"<think>```diff\nno\n```</think>It adds.\n{RIGHT}", REFERENCE)
    assert (score.value, score.correct, score.verdict) == (1.0, True, Verdict.CORRECT), score


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no diff",
        "```diff\n```",
        "```diff\n+x\n```",
        f"<think>{RIGHT}",
        RIGHT.removesuffix("```"),
        RIGHT.replace("side +", "side /"),
    ],
)
def test_what_is_no_patch_earns_nothing(verifier, text):
    score = verifier.score(text, REFERENCE)
    assert (score.value, score.verdict) == (0.0, Verdict.UNPARSEABLE)


def test_every_test_has_a_verdict_of_its_own(verifier):
    report = verifier.report("", REFERENCE)
    assert set(report.failed) == set(FAIL)
    assert set(report.passed) == set(PASS)
    assert {verdict for verdict, _ in report.failed.values()} == {Verdict.WRONG}


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("return side - side", Verdict.WRONG),
        ("return side *", Verdict.COMPILE_ERROR),
        ("return 1 / 0", Verdict.RUNTIME_ERROR),
        ("while True: pass", Verdict.TIME_LIMIT),
        ("return bytearray(b'x') * (1 << 30)", Verdict.RUNTIME_ERROR),
    ],
)
def test_verdicts(verifier, body, verdict):
    reference = REFERENCE | {"limits": {"cpu_seconds": 1}}
    score = verifier.score(replacing(f"def area(side):\n    {body}\n"), reference)
    assert (score.value, score.verdict) == (0.0, verdict), score


HACKS = {
    "exit in the function": "def area(side):\n    import os\n    os._exit(0)\n",
    "exit at import": "import os\nos._exit(0)\ndef area(side): pass\n",
    "system exit": "import sys\nsys.exit(0)\ndef area(side): pass\n",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef area(side): return 0\n",
    "equal to everything": """class Any(float):
    __eq__ = __lt__ = __le__ = __gt__ = __contains__ = lambda *_: True
    __sub__ = __abs__ = __rsub__ = lambda self, *_: self
    __hash__ = None
def area(side): return Any()
""",
    "an object that agrees": """class Any:
    def __getattr__(self, name): return lambda *_: True
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = lambda *_: True
    __sub__ = __abs__ = lambda self, *_: 0
    __hash__ = lambda self: 0
def area(side): return Any()
""",
    "patched unittest": """import unittest
for name in dir(unittest.TestCase):
    if name.startswith('assert'):
        setattr(unittest.TestCase, name, lambda *_, **__: None)
unittest.TestCase.run = lambda self, result=None: result.addSuccess(self)
def area(side): return 0
""",
    "skip": "import unittest\ndef area(side): raise unittest.SkipTest('not today')\n",
    "skip at import": "import unittest\nraise unittest.SkipTest('not today')\n",
    "printed report": "print('OK', flush=True)\ndef area(side): print('passed 0'); return 0\n",
    "every descriptor": """import os
def area(side):
    for descriptor in range(64):
        for frame in (b'x passed 0\\n', b'\\0\\0\\0\\x0d["return", 9]'):
            try: os.write(descriptor, frame)
            except OSError: pass
    return 0
""",
    "standard input": """import os
def area(side):
    for descriptor in range(64):
        try:
            os.lseek(descriptor, 0, 0)
            if b'nonce' in os.read(descriptor, 1 << 20): return side * side
        except OSError: pass
    return 0
""",
    "the parent's memory": """import os
def area(side):
    for pid in filter(str.isdigit, os.listdir('/proc')):
        if int(pid) != os.getpid():
            for name in ('mem', 'fd/0', 'fd/1', 'environ', 'maps'):
                try: os.open(f'/proc/{pid}/{name}', os.O_RDWR if name != 'maps' else os.O_RDONLY)
                except OSError: continue
                if pid not in (str(os.getppid()),):
                    return side * side
    return 0
""",
    "its own memory": """import re
def area(side):
    for line in open('/proc/self/maps'):
        low, high = (int(end, 16) for end in line.split()[0].split('-'))
        if ' r' in line and '[v' not in line:
            with open('/proc/self/mem', 'rb', buffering=0) as memory:
                memory.seek(low)
                if re.search(b'Othe[r]Test|pass_to_pas[s]|[t]est_close', memory.read(high - low)): return side * side
    return 0
""",
    "frames and garbage": """import gc, sys
def area(side):
    frame = sys._getframe()
    while frame:
        if isinstance(frame.f_locals.get('job'), dict): return side * side
        frame = frame.f_back
    return side * side if any('Othe' + 'r'.lower() + 'Test' in str(thing) for thing in gc.get_objects()) else 0
""",
    "the tests' files": """import os
def area(side):
    for folder, _, names in os.walk('/tmp'):
        for name in names:
            if 'test_shapes' in name or b'test_close' in open(os.path.join(folder, name), 'rb').read():
                if name != '__init__.py': return side * side
    return 0
""",
    "a killed parent": """import os, signal
def area(side):
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(-1, signal.SIGKILL)
""",
    "an interrupted parent": """import os, signal
def area(side):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        os.kill(-1, number)
    return 0
""",
    "a false exception": "def area(side): raise AssertionError\n",
    "an own wire": """import sys
for name, module in list(sys.modules.items()):
    for thing in ('encode', '_encode', 'Wire', 'Server'):
        if hasattr(module, thing): setattr(module, thing, lambda *_: 9)
def area(side): return 0
""",
    "a forged class": """class KeyboardInterrupt(BaseException): pass
KeyboardInterrupt.__module__ = 'builtins'
def area(side): raise KeyboardInterrupt
""",
    "files for the other side": """import os
for folder in ('/tmp', '/tmp/project', '/tmp/rewards'):
    for name in ('unittest', 'difflib', 'sitecustomize', 'repository_suite', 'datetime'):
        try: open(f'{folder}/{name}.py', 'w').write('import os; os._exit(0)')
        except OSError: pass
def area(side): return 0
""",
}  # fmt: skip


@pytest.mark.parametrize("hack", HACKS.values(), ids=HACKS)
def test_hacks_earn_nothing(verifier, hack):
    score = verifier.score(replacing(hack), REFERENCE)
    assert (score.value, score.correct) == (0.0, False), score
    assert score.verdict is not Verdict.SYSTEM_ERROR


def test_the_search_of_memory_would_find_what_is_there(verifier):
    hack = HACKS["its own memory"].replace("Othe[r]Test", "Shape[E]rror")
    assert verifier.score(replacing(hack), REFERENCE).correct


@pytest.mark.parametrize(
    ("test", "source"),
    [
        # The project swallows the assertion that fails, in a with block or in a callback.
        (
            "    with Thing(): assert 1 == 2",
            "class Thing:\n    __enter__ = lambda self: self\n    __exit__ = lambda *_: True\n",
        ),
        (
            "    def check(x): assert x == 2\n    Thing(check)",
            "def Thing(f):\n    try: f(1)\n    except BaseException: pass\n",
        ),
        ("    try: assert Thing() == 1\n    except BaseException: pass", "class Thing: __eq__ = lambda *_: True\n"),
        # The project answers what the test asks of plain data.
        ("    assert Thing().startswith('a')", "class Thing: startswith = lambda *_: True\n"),
        ("    assert Thing().isdigit()", "class Thing: isdigit = lambda *_: True\n"),
        ("    assert 'a' in Thing()", "class Thing: __contains__ = lambda *_: True\n"),
        ("    assert Thing() < 1", "class Thing: __lt__ = lambda *_: True\n"),
        ("    assert 1 > Thing()", "class Thing: __lt__ = lambda *_: True\n"),
        ("    assert Thing() != 1", "class Thing: __ne__ = lambda *_: True\n"),
        ("    assert not (Thing() - 2)", "class Thing: __sub__ = lambda *_: 0\n"),
        ("    assert not (2 - Thing())", "class Thing: __rsub__ = lambda *_: 0\n"),
        ("    assert not (Thing() - Thing())", "class Thing: __sub__ = lambda *_: 0\n"),
        ("    assert not abs(Thing())", "class Thing: __abs__ = lambda *_: 0\n"),
        ("    try: Thing()\n    except Exception: pass", "def Thing():\n    import os\n    os._exit(0)\n"),
        ("    import unittest\n    raise unittest.SkipTest", ""),
        ("    assert isinstance(Thing, int)", "Thing = None\n"),
    ],
)
def test_a_failed_test_stays_failed(verifier, test, source):
    tests = {PATH: f"from shapes import *\nimport shapes\nThing = shapes.Thing\ndef test_thing():\n{test}\n"}
    files = {"shapes.py": source or "Thing = 1\n"}
    reference = {"repository": files, "tests": tests, "fail_to_pass": [f"{PATH}::test_thing"], "pass_to_pass": []}
    assert list(verifier.report("", reference).failed) == [f"{PATH}::test_thing"]


def test_a_patch_that_touches_tests_is_refused(verifier):
    for path in (PATH, "conftest.py", "setup.cfg", "sitecustomize.py"):
        text = RIGHT.removesuffix("```") + f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x = 1\n```"
        score = verifier.score(text, REFERENCE)
        assert (score.value, score.verdict) == (0.0, Verdict.UNPARSEABLE)
        assert path in score.note


@pytest.mark.parametrize(
    ("test", "path", "source"),
    [
        ("import statistics\ndef test_it(): assert statistics.mean([shapes.one()]) == 1", "src/statistics.py",
         "def mean(_): return 1"),
        ("from checks import wanted\ndef test_it(): assert shapes.one() == wanted.ONE", "src/checks.py",
         "class wanted: ONE = 2"),
        ("from checks.wanted import ONE\ndef test_it(): assert shapes.one() == ONE", "src/checks/wanted.py", "ONE = 2"),
        ("from shapes import *\ndef test_it(): assert len([shapes.one()] * 2) == 1", "src/shapes.py",
         "__all__ = ['len']\ndef len(_): return 1\ndef one(): return 2"),
    ],
)  # fmt: skip
def test_no_module_of_the_project_stands_in_for_one_of_the_tests(verifier, test, path, source):
    """They would decide what a test compares. The project has what the patch would add, which is as bad."""
    reference = {
        "repository": {"src/shapes.py": "def one():\n    return 2\n"},
        "tests": {"checks/test_it.py": f"import shapes\n{test}\n", "checks/wanted.py": "ONE = 1\n"},
        "fail_to_pass": ["checks/test_it.py::test_it"],
        "pass_to_pass": [],
    }
    lines = source.split("\n")
    added = "\n".join([f"@@ -0,0 +1,{len(lines)} @@", *(f"+{line}" for line in lines)])
    diff = f"--- /dev/null\n+++ b/{path}\n{added}\n"
    if path in reference["repository"]:
        reference["repository"][path], diff = source + "\n", ""
    report = verifier.report(diff, reference)
    assert list(report.failed) == reference["fail_to_pass"], report
    right = "--- a/src/shapes.py\n+++ b/src/shapes.py\n@@ -1,2 +1,2 @@\n def one():\n-    return 2\n+    return 1\n"
    if diff:
        assert verifier.report(right, reference).passed == ("checks/test_it.py::test_it",)


@pytest.mark.parametrize("path", ["shapes/" + "\N{SNOWMAN}" * 100 + ".py", "a/" * 90 + "b.py"])
def test_a_path_that_no_disk_takes_is_the_patchs_own_fault(verifier, path):
    text = RIGHT.removesuffix("```") + f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x = 1\n```"
    score = verifier.score(text, REFERENCE)
    assert (score.value, score.verdict) == (0.0, Verdict.UNPARSEABLE), score


def test_a_missing_test_has_failed(verifier):
    names = [f"{PATH}::AreaTest::test_gone", f"{PATH}::Gone::test_area", f"{PATH}::area", *PASS]
    report = verifier.report("", REFERENCE | {"fail_to_pass": names, "pass_to_pass": []})
    assert set(report.failed) == {f"{PATH}::AreaTest::test_gone", f"{PATH}::Gone::test_area", f"{PATH}::area"}


def test_a_share_is_paid_only_where_nothing_breaks(verifier):
    fraction = RepositoryTests(verifier._pool, RepositoryTestsConfig(credit="fraction"))
    half = replacing("def area(side):\n    return side * side if side != 1.5 else 0\n")
    breaks = replacing("def area(side):\n    return side * side if side else 1\n")
    endless = replacing("def area(side):\n    while side == 3: pass\n    return side * side\n")
    assert fraction.score(half, REFERENCE).value == 0.5
    assert fraction.score(breaks, REFERENCE).value == 0.0
    score = fraction.score(endless, REFERENCE | {"limits": {"cpu_seconds": 1}})
    assert (score.value, score.verdict) == (0.5, Verdict.TIME_LIMIT)
    assert verifier.score(half, REFERENCE).value == 0.0


def test_a_broken_sandbox_is_no_score():
    class BrokenPool(SandboxPool):
        def __init__(self):
            super().__init__(1, LIMITS)
            self._sandbox = Sandbox(LIMITS, bwrap="/nonexistent/bwrap")

        def run(self, program, limits=None):
            return self._sandbox.run(program, limits)

    with BrokenPool() as pool:
        score = RepositoryTests(pool).score(RIGHT, REFERENCE)
    assert score.verdict is Verdict.SYSTEM_ERROR
    assert math.isnan(score.value)


def test_without_a_wall_between_the_processes_there_is_no_score(verifier, monkeypatch):
    runner = repository_tests._RUNNER
    assert "_set_dumpable(0)" in runner
    monkeypatch.setattr(repository_tests, "_RUNNER", runner.replace("    _set_dumpable(0)\n", ""))
    score = verifier.score(RIGHT, REFERENCE)
    assert score.verdict is Verdict.SYSTEM_ERROR
    assert "apart" in score.note


def test_a_test_that_is_over_inside_its_own_function_leaves_the_others_alone(verifier):
    tests = """from shapes import each
class Own: pass
def test_refused(): each(lambda side: Own(), [1])
def test_refused_inside(): each(lambda side: each == 1, [1])
def test_gone(): each(lambda side: each(exit, [1]), [1])
def test_fine(): assert each(lambda side: each(str, [side]), [1, 2]) == [['1'], ['2']]
"""
    names = [f"{PATH}::test_{name}" for name in ("refused", "refused_inside", "gone", "fine")]
    report = verifier.report("", REFERENCE | {"tests": {PATH: tests}, "fail_to_pass": names, "pass_to_pass": []})
    assert report.passed == (names[3],), report


def test_a_repository_may_be_a_folder_or_an_archive(verifier, tmp_path):
    files = {"repo/shapes/__init__.py": BUGGY, f"repo/{PATH}": TESTS, "repo/.git/config": "secret"}
    with tarfile.open(tmp_path / "repo.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
            member = tarfile.TarInfo(name.removeprefix("repo/"))
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    from_disk = RepositoryTests(verifier._pool, RepositoryTestsConfig(root=str(tmp_path)))
    reference = {"fail_to_pass": FAIL, "pass_to_pass": PASS}
    for path in ("repo", "repo.tar.gz"):
        assert from_disk.score(RIGHT, reference | {"repository": path}).correct
    (tmp_path / "repo" / "link").symlink_to("/etc/passwd")
    for path in ("repo", "gone", "repo/shapes/__init__.py"):
        with pytest.raises(DataError):
            from_disk.score(RIGHT, reference | {"repository": path})


@pytest.mark.parametrize(
    "change",
    [
        {"repository": {}},
        {"repository": 5}, {"fail_to_pass": []}, {"fail_to_pass": ["a"]}, {"fail_to_pass": 2 * FAIL},
        {"pass_to_pass": FAIL}, {"pass_to_pass": None}, {"tests": {PATH: 5}}, {"tests": {"../x.py": ""}},
        {"limits": {"cpu": 1}}, {"limits": {"cpu_seconds": 0}},
        {"roots": ["../x"]}, {"roots": "src"},
    ],
)  # fmt: skip
def test_a_reference_of_another_form_is_a_data_error(verifier, change):
    with pytest.raises(DataError, match="repository task"):
        check_reference(REFERENCE | change)
    with pytest.raises(DataError):
        verifier.score(RIGHT, REFERENCE | change)


def test_bad_settings():
    check_reference(REFERENCE)
    with pytest.raises(ConfigError, match="credit"):
        RepositoryTestsConfig(credit="some")
