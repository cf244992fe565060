"""python and shell in the real sandbox: results, the folder, and hostile calls that end as observations."""

import base64

import pytest

from cispo.types import Prompt
from rollout.environment import Turn
from rollout.tool_environment import ToolEnvironment
from rollout.tool_folder import FolderLimits, call_program, outcome
from sandbox import Execution, Limits, SandboxPool, Verdict

PROMPT = Prompt("p", "calculate", "x", (1,), "1")
LIMITS = Limits(cpu_seconds=0.5, wall_seconds=3.0, output_bytes=20_000, num_processes=16, file_bytes=4 << 20)
FOLDER = FolderLimits(num_bytes=2000, num_files=4)


@pytest.fixture(scope="module")
def pool():
    with SandboxPool(1, LIMITS) as pool:
        yield pool


@pytest.fixture(scope="module")
def environment(pool):
    return ToolEnvironment(pool, folder=FOLDER)


def ask(environment, text, memory=None):
    return environment.observe(Turn(PROMPT, 0, text, (), memory)).result(timeout=60)


def python(environment, source, memory=None):
    return ask(environment, f"<tool:python>{source}</tool>", memory)


def shell(environment, source, memory=None):
    return ask(environment, f"<tool:shell>{source}</tool>", memory)


def test_python_answers(environment):
    answer = python(environment, "print(6 * 7)")
    assert (answer.text, answer.verdict, answer.tool, answer.is_error) == ("42\n", "OK", "python", False)
    assert (answer.before, answer.after, answer.system_error) == ("<result>", "</result>", "")


def test_a_turn_without_a_call_is_an_answer(environment):
    assert ask(environment, "\\boxed{42}") is None


def test_an_error_is_shown_with_its_last_line(environment):
    answer = python(environment, "print('so far')\n1 / 0")
    assert answer.text.startswith("so far\nTraceback") and "ZeroDivisionError: division by zero\n" in answer.text
    assert (answer.verdict, answer.is_error, answer.note) == ("RE", True, "exit 1")
    assert "SyntaxError" in python(environment, "if").text


def test_an_unknown_tool_is_told_which_there_are(environment):
    answer = ask(environment, "<tool:browser>x</tool>")
    assert answer.text == "there is no tool 'browser'; the tools are python, shell\n"
    assert (answer.verdict, answer.is_error, answer.tool) == ("no such tool", True, "browser")
    assert ask(environment, "x</tool>").text.startswith("</tool> ends no call")


def test_a_tool_that_is_not_offered_is_none(pool):
    assert "no tool 'shell'" in shell(ToolEnvironment(pool, ["python"]), "ls").text


def test_the_folder_lives_as_long_as_the_episode_and_is_shared_by_both_tools(environment):
    one = shell(environment, "mkdir d; echo hi > d/a.txt; printf '\\0\\377' > b; ls")
    assert one.text == "b\nd\n", "the machinery is not in the way"
    two = python(
        environment, "print(open('d/a.txt').read(), open('b', 'rb').read())\nopen('c', 'w').write('new')", one.memory
    )
    assert two.text == "hi\n b'\\x00\\xff'\n"
    three = shell(environment, "rm b; cat c; exit 3", two.memory)
    assert (three.text, three.verdict, sorted(three.memory["files"])) == ("new\n[exit 3]\n", "RE", ["c", "d/a.txt"])
    assert shell(environment, "ls").text == "", "another episode has another folder"


def test_nothing_but_the_folder_lives_on(environment):
    first = python(environment, "x = 1")
    assert "NameError" in python(environment, "print(x)", first.memory).text


@pytest.mark.parametrize("tool", [python, shell])
def test_a_folder_that_grows_too_large_is_put_back(environment, tool):
    before = shell(environment, "echo 1 > a")
    large = (
        "open('big', 'w').write('x' * 3000); open('a', 'w').write('2')"
        if tool is python
        else "head -c 3000 /usr/bin/env > big"
    )
    answer = tool(environment, large, before.memory)
    assert answer.memory == before.memory
    assert "[the folder would pass 2000 bytes or 4 files: its changes are undone]" in answer.text
    many = shell(environment, "for i in 1 2 3 4 5; do echo > f$i; done", before.memory)
    assert many.memory == before.memory


@pytest.mark.parametrize(
    ("source", "verdict", "says"),
    [
        ("while True: pass", "TLE", "[time limit]\n"),
        ("import time; print('before', flush=True); time.sleep(60)", "TLE", "before\n[time limit]\n"),
        ("while True: print('x' * 1000)", "OLE", "[too much output]\n"),
        ("x = [0] * 10**10", "MLE", "[memory limit]\n"),
        ("import os\nwhile True:\n    os.fork()", "RE", ""),
        ("import os; os.kill(os.getpid(), 9)", "RE", "[signal 9]\n"),
        ("import sys; sys.exit(5)", "RE", "[exit 5]\n"),
    ],
)
def test_hostile_calls_end_as_observations(environment, source, verdict, says):
    before = shell(environment, "echo 1 > a")
    answer = python(environment, source, before.memory)
    assert (answer.verdict, answer.is_error, answer.system_error) == (verdict, True, "")
    assert answer.text.endswith(says)
    assert answer.memory == before.memory, "the folder is as it was"
    assert python(environment, "print(open('a').read())", answer.memory).text == "1\n\n", (
        "the next call is none the wiser"
    )


def test_a_fork_bomb_of_the_shell_ends(environment):
    answer = shell(environment, ":(){ :|:& };:; wait")
    assert answer.system_error == ""
    assert python(environment, "print(1)").text == "1\n"


def test_a_folder_that_the_call_makes_up_is_checked():
    call = call_program("python", "", {}, LIMITS, FOLDER)

    def came(behind):
        execution = Execution(Verdict.OK, b"out" + call.mark + behind, b"", 0, None, 0.0, 0.0, 0)
        return outcome(call, execution, {"a": "MQ=="}, FOLDER)

    assert came(b'{"b": "MQ=="}').files == {"b": "MQ=="}
    content = base64.b64encode(b"x" * 3000)
    for forged in (
        b"", b"7", b"[]", b'{"a": 7}', b'{"a": "?"}', b'{"/etc/passwd": "MQ=="}', b'{"../a": "MQ=="}',
        b'{"main.py": "MQ=="}', b'{".call": "MQ=="}', b'{"big": "' + content + b'"}', b"[" * 100_000, b"\xff",
        b'{"a\\u0000": "MQ=="}',
    ):  # fmt: skip
        found = came(forged)
        assert (found.files, found.output) == ({"a": "MQ=="}, b"out") and "its changes are undone" in found.note, forged


def test_a_call_that_is_given_up_is_ended(environment):
    answer = environment.observe(Turn(PROMPT, 0, "<tool:python>import time; time.sleep(3)</tool>", ()))
    answer.cancel()
    assert python(environment, "print(1)").text == "1\n", "the only place is free again"


class Failing:
    """A pool whose machine is at fault."""

    limits = LIMITS

    def submit(self, program, limits=None):
        from concurrent.futures import Future

        future = Future()
        future.set_result(Execution(Verdict.SE, b"", b"no cell", None, None, 0.0, 0.0, 0))
        return future


def test_the_sandbox_s_own_fault_says_nothing_about_the_policy():
    assert python(ToolEnvironment(Failing()), "1").system_error == "the tool python could not be run: no cell"
