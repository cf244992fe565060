"""How a program ended is told rightly, whatever it says about itself."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import Execution, Limits, Program, Sandbox, Verdict


@pytest.mark.parametrize(
    ("source", "verdict", "exit_code", "signal"),
    [
        ("print('hello')", Verdict.OK, 0, None),
        ("", Verdict.OK, 0, None),
        ("exit()", Verdict.OK, 0, None),
        ("import sys; sys.exit(7)", Verdict.RE, 7, None),
        ("import sys; sys.exit('sorry')", Verdict.RE, 1, None),
        ("import os; os._exit(137)", Verdict.RE, 137, None),
        ("import sys; sys.exit(256)", Verdict.OK, 0, None),
        ("1 / 0", Verdict.RE, 1, None),
        ("import os; os.kill(os.getpid(), 9)", Verdict.RE, None, 9),
        ("import os; os.abort()", Verdict.RE, None, 6),
        ("import ctypes; ctypes.string_at(0)", Verdict.RE, None, 11),
        ("print('AC'); print('all tests passed'); 1 / 0", Verdict.RE, 1, None),
        ("print(", Verdict.CE, 1, None),
        ("return 1", Verdict.CE, 1, None),
        ("x = 1\0", Verdict.CE, 1, None),
        ("# coding: no-such\n", Verdict.CE, 1, None),
        ("x = '\ud800'", Verdict.CE, 1, None),
        ("(" * 5000, Verdict.CE, 1, None),
        ("\ufeffprint(1)", Verdict.OK, 0, None),
        ("print(1)\r\nprint(2)\r\n", Verdict.OK, 0, None),
        ("raise SyntaxError('mine')", Verdict.RE, 1, None),
        ("import os; os.close(1); os.close(2); print(1)", Verdict.RE, 120, None),
        ("while True: pass", Verdict.TLE, None, None),
        ("import signal; signal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass", Verdict.TLE, None, None),
        ("x = bytearray(b'x') * (200 << 20)\nwhile True: pass", Verdict.MLE, None, None),
        ("x = bytearray(10 << 30)", Verdict.MLE, None, 64),
        ("while True: print('x' * 1000)", Verdict.OLE, None, None),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", Verdict.OLE, None, None),
    ],
)
def test_verdict(box, source, verdict, exit_code, signal):
    execution = box.run(Program(source))
    assert (execution.verdict, execution.exit_code, execution.signal) == (verdict, exit_code, signal), execution


def test_wall_time_is_limited_for_a_program_that_only_sleeps(box):
    limits = Limits(wall_seconds=0.3)
    execution = box.run(Program("import time; print('begun', flush=True); time.sleep(60)"), limits)
    assert execution.verdict is Verdict.TLE
    assert execution.stdout == b"begun\n"


def test_a_stopped_program_runs_out_of_time(box):
    source = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    assert box.run(Program(source), Limits(wall_seconds=0.3)).verdict is Verdict.TLE


def test_output_is_cut_at_the_limit(box):
    execution = box.run(Program("print('x' * 5000)"), Limits(output_bytes=1000))
    assert execution.verdict is Verdict.OLE
    assert execution.stdout == b"x" * 1000


def test_output_of_exactly_the_limit_is_allowed(box):
    execution = box.run(Program("print('x' * 999)"), Limits(output_bytes=1000))
    assert execution.verdict is Verdict.OK
    assert len(execution.stdout) == 1000


def test_large_input_and_output_do_not_block_each_other(box):
    data = bytes(range(256)) * 1200
    echo = "import sys\nwhile part := sys.stdin.buffer.read(1000):\n sys.stdout.buffer.write(part)"
    execution = box.run(Program(echo, stdin=data))
    assert execution.verdict is Verdict.OK
    assert execution.stdout == data


def test_large_input_that_nobody_reads(box):
    assert box.run(Program("print(1)", stdin="x" * 300_000)).stdout == b"1\n"


def test_output_need_not_be_text(box):
    assert box.run(Program(r"import os; os.write(1, b'\xff\0\xfe')")).stdout == b"\xff\0\xfe"


def test_both_streams_and_the_environment_of_a_script(box):
    source = (
        "import sys, helper\n"
        "print(__name__, __file__, sys.argv, input(), open('data/x').read(), helper.two)\n"
        "print('é', file=sys.stderr)"
    )
    files = {"data/x": b"file", "helper.py": b"two = 2"}
    execution = box.run(Program(source, stdin="ä", files=files))
    assert execution.stdout.decode() == "__main__ main.py ['main.py'] ä file 2\n"
    assert execution.stderr.decode() == "é\n"


def test_what_the_end_of_a_program_owes_it(box):
    source = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'exit function')\n"
        "out = open(1, 'w', closefd=False)\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread', flush=True))).start()\n"
        "out.write('unflushed file\\n')"
    )
    execution = box.run(Program(source))
    assert execution.verdict is Verdict.OK
    assert execution.stdout.decode().splitlines() == ["thread", "exit function", "unflushed file"]


def test_a_traceback_shows_the_program_and_not_the_bootstrap(box):
    lines = box.run(Program("def f():\n    1 / 0\nf()")).stderr.decode().splitlines()
    assert lines[0].startswith("Traceback")
    assert [line.strip() for line in lines if "File" in line] == [
        'File "main.py", line 3, in <module>',
        'File "main.py", line 2, in f',
    ]


def test_two_runs_of_one_program_see_the_same_order_of_a_set(box):
    program = Program("print({'a', 'b', 'c', 'd', 'e', 'f', 'g'})")
    assert box.run(program).stdout == box.run(program).stdout


def test_use_is_measured(box):
    limits = Limits(cpu_seconds=20, wall_seconds=60, memory_bytes=256 << 20)
    source = "import time\nx = b'x' * (64 << 20)\nwhile time.process_time() < 0.2: pass"
    execution = box.run(Program(source), limits)
    assert execution.verdict is Verdict.OK
    assert 64 << 20 < execution.memory_bytes < 128 << 20
    assert 0.2 <= execution.cpu_s < 20
    assert execution.cpu_s <= execution.wall_s + 0.05


def test_a_short_peak_counts_even_if_nobody_looked(box):
    limits = Limits(memory_bytes=64 << 20)
    assert box.run(Program("x = b'x' * (80 << 20); del x"), limits).verdict is Verdict.MLE


def test_a_broken_bubblewrap_is_a_system_error():
    for bwrap in ("/nonexistent/bwrap", "/bin/false", "/bin/true"):
        execution = Sandbox(bwrap=bwrap).run(Program("print(1)"))
        assert execution.verdict is Verdict.SE
        assert execution.stdout == b""
        assert execution.stderr != b""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(code=st.integers(0, 255), how=st.sampled_from(["sys.exit", "os._exit"]))
def test_any_exit_code_is_told_as_it_was(box, code, how):
    execution = box.run(Program(f"import sys, os; {how}({code})"))
    assert isinstance(execution, Execution)
    assert execution.exit_code == code
    assert execution.verdict is (Verdict.OK if code == 0 else Verdict.RE)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "main.py", "", "."])
def test_a_file_cannot_be_laid_outside(name):
    with pytest.raises(ValueError, match="file"):
        Program("", files={name: b""})


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="language"):
        Program("", language="cobol")
    with pytest.raises(ValueError, match="cpu_seconds"):
        Limits(cpu_seconds=float("nan"))
    with pytest.raises(ValueError, match="isolation"):
        Sandbox(isolation="none")
