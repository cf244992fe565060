"""Programs in every language: what they print, how they fail, and that compilers are behind the same walls."""

import shutil
import time

import pytest

from sandbox import Limits, Program, Sandbox, SandboxError, Verdict
from sandbox.cell_walls import CellKind
from sandbox.languages import TABLE
from sandbox.program import LANGUAGES
from sandbox.task import Task

ADDS = {
    "python": "import bisect, heapq\nprint(int(input()) + 1)",
    "numpy": "import numpy as np\nprint(int(np.asarray([int(input()), 1]).sum()))",
    "cpp": "#include <bits/stdc++.h>\nint main() { int x; std::cin >> x; std::cout << x + 1 << std::endl; }",
    "c": '#include <stdio.h>\nint main(void) { int x; scanf("%d", &x); printf("%d\\n", x + 1); return 0; }',
    "bash": "read x; echo $((x + 1))",
    "javascript": "console.log(Number(require('fs').readFileSync(0, 'utf8')) + 1)",
}
INSTALLED = [name for name in LANGUAGES if not TABLE[name].tool or shutil.which(TABLE[name].tool)]
COMPILED = [name for name in ("c", "cpp") if name in INSTALLED]


@pytest.fixture(scope="module")
def shop(box):
    del box
    sandbox = Sandbox(Limits(cpu_seconds=2, wall_seconds=20, memory_bytes=192 << 20))
    yield sandbox
    sandbox.close()


def test_the_table_has_a_row_for_each_language():
    assert tuple(TABLE) == LANGUAGES == tuple(ADDS)


@pytest.mark.parametrize("language", INSTALLED)
def test_a_program_reads_and_prints(shop, language):
    execution = shop.run(Program(ADDS[language], language, stdin="41"))
    assert (execution.verdict, execution.stdout, execution.stderr) == (Verdict.OK, b"42\n", b"")


@pytest.mark.parametrize("language", INSTALLED)
def test_a_program_reads_its_files(shop, language):
    reads = {
        "cpp": '#include <fstream>\n#include <iostream>\nint main() { std::cout << std::ifstream("a/b").rdbuf(); }',
        "c": '#include <stdio.h>\nint main(void) { FILE *f = fopen("a/b", "r"); '
        "for (int c; (c = getc(f)) > 0;) putchar(c); }",
        "bash": "cat a/b",
        "javascript": "process.stdout.write(require('fs').readFileSync('a/b'))",
    }
    source = reads.get(language, "print(open('a/b').read(), end='')")
    assert shop.run(Program(source, language, files={"a/b": b"kept\n"})).stdout == b"kept\n"


@pytest.mark.parametrize("language", COMPILED)
@pytest.mark.parametrize(
    "source",
    [
        "int main() { return x; }",
        '#include "/etc/shadow"\nint main() {}',
        '#include "/dev/urandom"\nint main() {}',
        "#error no\n",
        "",
        "int main() {} \0 \ud800",
        '__asm__(".incbin \\"/etc/passwd\\"");\nint main() { return x; }',
    ],
)
def test_what_does_not_compile_is_a_compile_error(shop, language, source):
    execution = shop.run(Program(source, language))
    assert (execution.verdict, execution.stdout) == (Verdict.CE, b"")
    assert execution.stderr


@pytest.mark.skipif("cpp" not in COMPILED, reason="no compiler")
@pytest.mark.parametrize(
    "source",
    [
        "template <int N> struct A { static const int v = A<N + 1>::v + A<N + 2>::v; };\nint main() { A<0>::v; }",
        "char big[1ull << 31] = {1};\nint main() {}",
        '#include "main.cpp"\nint main() {}',
    ],
    ids=["templates without end", "two gigabytes of data", "includes itself"],
)
def test_a_bomb_for_the_compiler_is_a_compile_error(shop, source):
    assert shop.run(Program(source, "cpp")).verdict is Verdict.CE
    assert shop.run(Program(ADDS["cpp"], "cpp", stdin="1")).stdout == b"2\n"


@pytest.mark.skipif("c" not in COMPILED, reason="no compiler")
@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("int main(void) { for (;;); }", Verdict.TLE),
        ("int main(void) { return 3; }", Verdict.RE),
        ("int main(void) { *(volatile int *)0 = 1; }", Verdict.RE),
        (
            "#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n"
            "int main(void) { for (int i = 0; i < 8; i++) memset(malloc(40 << 20), 1, 40 << 20); pause(); }",
            Verdict.MLE,
        ),
        ('#include <stdio.h>\nint main(void) { for (;;) puts("x"); }', Verdict.OLE),
        ("#include <sys/socket.h>\nint main(void) { return socket(AF_INET, SOCK_STREAM, 0) >= 0; }", Verdict.OK),
        ('#include <fcntl.h>\nint main(void) { return open("/etc/passwd", 0) >= 0; }', Verdict.OK),
        ('#include <unistd.h>\nint main(void) { return unlink("/tmp/program") != 0; }', Verdict.OK),
    ],
)
def test_an_executed_program_is_behind_the_same_walls(shop, source, verdict):
    assert shop.run(Program(source, "c")).verdict is verdict


@pytest.mark.skipif("c" not in COMPILED, reason="no compiler")
def test_a_program_is_compiled_once(shop):
    source = "int main(void) { return 0; } // " + str(time.monotonic())
    compiled = shop._languages._compiler._results
    num_before = len(compiled)
    assert [shop.run(Program(source, "c", stdin=str(n))).verdict for n in range(2)] == [Verdict.OK] * 2
    assert len(compiled) == num_before + 1
    shop.run(Program(source + "!", "c"))
    assert len(compiled) == num_before + 2


def test_a_file_that_the_kernel_does_not_run_is_the_programs_own_fault(shop):
    """As a system error the sample would be masked, so whoever can make a compiler write such a file hides with it."""
    for content in (b"", b"no program", b"\x7fELF" + b"\0" * 200):
        task = Task(CellKind(), shop.limits, b"", {"program": (content, 0o755)}, ("/tmp/program",))
        execution = shop._cells.run(task)
        assert (execution.verdict, execution.exit_code) == (Verdict.RE, 126), execution
        assert execution.stderr.startswith(b"/tmp/program: ")
    missing_tool = Task(CellKind(), shop.limits, b"", {"main.x": (b"", 0o644)}, ("/usr/bin/no-such-tool",))
    assert shop._cells.run(missing_tool).verdict is Verdict.SE


@pytest.mark.skipif("c" not in COMPILED, reason="no compiler")
def test_a_program_too_large_for_its_folder_is_its_own_fault(shop):
    limits = Limits(cpu_seconds=2, wall_seconds=20, file_bytes=1 << 20)
    sparse = "volatile char x[{}] = {{1}};\nint main(void) {{ return x[5]; }}"
    assert shop.run(Program(sparse.format(1 << 19), "c"), limits).verdict is Verdict.OK
    for language, source in {
        "c": sparse.format(2 << 20),
        "python": "#" * (2 << 20),
        "bash": "#" * (1 << 20) + "\n",
    }.items():
        execution = shop.run(Program(source, language), limits)
        assert execution.verdict is Verdict.CE, (language, execution)
        assert b"limits.file_bytes=1048576" in execution.stderr
    others = {"data": b"x" * (2 << 20)}
    assert shop.run(Program("print(1)", files=others), limits).verdict is Verdict.SE  # the fault of who laid it there


def test_numpy_is_not_in_the_way_of_a_program_without(shop):
    assert shop.run(Program("import numpy")).verdict is Verdict.RE
    source = "import sys; print('numpy' in sys.modules)"
    assert shop.run(Program(source)).stdout == b"False\n"
    assert shop.run(Program(source, "numpy")).stdout == b"True\n"


def test_random_numbers_are_not_the_same_in_two_programs(shop):
    source = "import random, os, uuid; print(random.random(), os.urandom(8), uuid.uuid4(), id(object()))"
    assert shop.run(Program(source)).stdout != shop.run(Program(source)).stdout


def test_a_missing_tool_names_its_package(shop, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(SandboxError, match=r"programs in cpp need g\+\+.*apt-get install g\+\+"):
        shop.run(Program(ADDS["cpp"], "cpp"))


def test_a_tier_without_cells_says_which_languages_it_has():
    unsafe = Sandbox(isolation="unsafe")
    with pytest.raises(SandboxError, match="bash.*Python only"):
        unsafe.run(Program("echo", "bash"))
    with pytest.raises(ValueError, match="language must be one of python, numpy"):
        Program("", "cobol")
