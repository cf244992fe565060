"""The procedural tasks against worked examples and against an arithmetic written here a second time."""

import random
import re

import pytest

from cispo.errors import ConfigError
from rollout.calculate_task import CalculateConfig, CalculateTask, value_of
from rollout.chain_task import ChainConfig, ChainTask
from rollout.digits_task import CountTask, DigitsConfig, ReverseTask, SortTask
from rollout.problem import Problem
from rollout.program_task import ProgramConfig, ProgramTask
from rollout.puzzle_tasks import PuzzleConfig
from rollout.symbol_tasks import BracketsTask, CopyTask, MaxTask, XorTask
from rollout.tasks import TASKS, TaskParameters, make_task

DRAWS = 300
every_task = pytest.mark.parametrize("name", TASKS)


def task_named(name):
    return make_task(name, TaskParameters(), own={})


def chain_value(prompt):
    """Left to right modulo 10, by reading the prompt back."""
    assert re.fullmatch(r"\d([+-]\d)+=", prompt), prompt
    return eval(prompt[:-1]) % 10  # a sum needs no precedence, and % 10 of the whole is % 10 of each step


def program_value(prompt, x, y):
    """The phrase's meaning, by reading the prompt back letter by letter."""
    assert re.fullmatch(r"[1-9xy]([asm][1-9xy])+=", prompt), prompt
    value_of = {"x": x, "y": y, **{str(digit): digit for digit in range(10)}}
    value = value_of[prompt[0]]
    for letter, operand in zip(prompt[1:-1:2], prompt[2:-1:2], strict=True):
        number = value_of[operand]
        value = {"a": value + number, "s": value - number, "m": value * number}[letter]
    return value


def passes(program, tests):
    names = {}
    exec(program, names)
    return all(names["f"](*test["args"]) == test["returns"] for test in tests)


class FixedChoices(random.Random):
    """A generator whose draws are written down."""

    def __init__(self, *, integers, choices, uniforms=()):
        super().__init__(0)
        self.integers, self.choices_left, self.uniforms = list(integers), list(choices), list(uniforms)

    def randint(self, a, b):
        return self.integers.pop(0)

    def randrange(self, *limits):
        return self.integers.pop(0)

    def choice(self, options):
        return self.choices_left.pop(0)

    def random(self):
        return self.uniforms.pop(0)


def test_chain_worked_example():
    numbers = {"integers": [4, 0, 2, 2, 1], "choices": ["-", "+", "-"]}  # length, first digit, operands; operators
    problem = ChainTask().problem(FixedChoices(**numbers))
    assert (problem.text, problem.reference) == ("0-2+2-1=", "9")
    thinks = FixedChoices(**numbers, uniforms=[0.99, 0.99, 0.99, 0.99])
    assert ChainTask().demonstration(thinks).completion_text == r"<think>0-2=8;8+2=0;0-1=9</think>\boxed{9}"
    direct = FixedChoices(**numbers, uniforms=[0.0, 0.5, 0.5, 0.5])
    assert ChainTask().demonstration(direct).completion_text == r"<think></think>\boxed{9}"


def test_chain_slip_goes_on_from_the_wrong_result():
    # The second step slips by 3: 8+2 gives 0+3, and the third goes on from 3.
    rng = FixedChoices(integers=[4, 0, 2, 2, 1, 3], choices=["-", "+", "-"], uniforms=[0.99, 0.99, 0.0, 0.99])
    assert ChainTask().demonstration(rng).completion_text == r"<think>0-2=8;8+2=3;3-1=2</think>\boxed{2}"


def test_program_worked_example():
    rng = FixedChoices(integers=[3], choices=["x", "5", "y", "a", "m"])
    problem = ProgramTask().problem(rng)
    assert problem.text == "xa5my="
    assert problem.reference["entry"] == "f"
    assert len(problem.reference["tests"]) == 4
    for test in problem.reference["tests"]:
        x, y = test["args"]
        assert test["returns"] == (x + 5) * y
    assert passes("f=lambda x,y:(x+5)*y", problem.reference["tests"])
    assert not passes("f=lambda x,y:x+5*y", problem.reference["tests"])


def test_program_symbol_demonstration_copies_operators_and_wraps_the_prefix():
    rng = FixedChoices(integers=[3], choices=["x", "5", "y", "a", "m"], uniforms=[0.0, 0.0])
    demonstration = ProgramTask().demonstration(rng)
    assert (demonstration.prompt_text, demonstration.completion_text) == ("x+5*y=", "f=lambda x,y:(x+5)*y")


def test_chain_references_are_right():
    rng = random.Random(1)
    for _ in range(DRAWS):
        problem = ChainTask().problem(rng)
        assert problem.reference == str(chain_value(problem.text))


def test_chain_traces_follow_the_prompt_and_slip_as_often_as_asked():
    task, rng = ChainTask(ChainConfig(direct_fraction=0.5, slip_fraction=0.2)), random.Random(2)
    num_direct, num_steps, num_slips = 0, 0, 0
    for _ in range(1000):
        shown = task.demonstration(rng)
        trace, answer = re.fullmatch(r"<think>(.*)</think>\\boxed\{(\d)\}", shown.completion_text).groups()
        if not trace:
            num_direct += 1
            assert int(answer) == chain_value(shown.prompt_text)
            continue
        value = shown.prompt_text[0]
        for step, asked in zip(trace.split(";"), re.findall(r"[+-]\d", shown.prompt_text), strict=True):
            left, result = step.split("=")
            assert left == value + asked
            num_steps, num_slips = num_steps + 1, num_slips + (eval(left) % 10 != int(result))
            value = result
        assert answer == value
    assert 0.45 < num_direct / 1000 < 0.55  # standard deviation 0.016
    assert 0.15 < num_slips / num_steps < 0.25  # 0.01


def test_program_references_are_right_and_refuse_every_wrong_reading():
    task, rng = ProgramTask(), random.Random(3)
    for _ in range(60):
        problem = task.problem(rng)
        tests = problem.reference["tests"]
        assert all(test["returns"] == program_value(problem.text, *test["args"]) for test in tests)
        operands = problem.text[:-1:2]
        far_points = [(1009, 2003), (3001, 4007), (5003, 7001)]  # outside the grid that tests are drawn from
        for reading in readings(operands):
            read = eval(f"lambda x,y:{reading}")
            is_right = all(read(x, y) == program_value(problem.text, x, y) for x, y in far_points)
            assert passes(f"f=lambda x,y:{reading}", tests) == is_right, (problem.text, reading)


def readings(operands):
    """Every choice of operators and parentheses as Python text."""
    if len(operands) == 1:
        return [operands]
    return [
        f"({left}{operator}{right})"
        for cut in range(1, len(operands))
        for left in readings(operands[:cut])
        for right in readings(operands[cut:])
        for operator in "+-*"
    ]


def test_program_demonstrations_teach_syntax_and_not_meaning():
    task, rng = ProgramTask(), random.Random(4)
    num_symbol, num_kept, num_word_operators = 0, 0, 0
    for _ in range(1000):
        shown = task.demonstration(rng)
        header, _, expression = shown.completion_text.partition(":")
        assert header == "f=lambda x,y"
        eval(f"lambda x,y:{expression}")(2, 3)  # it is Python
        flat = re.sub(r"[()]", "", expression)
        assert flat[::2] == shown.prompt_text[:-1:2]  # operands in order
        asked = shown.prompt_text[1:-1:2]
        if set(asked) <= set("+-*"):
            num_symbol += 1
            assert flat[1::2] == asked
        else:
            num_kept += sum({"a": "+", "s": "-", "m": "*"}[a] == o for a, o in zip(asked, flat[1::2], strict=True))
            num_word_operators += len(asked)
    assert 0.45 < num_symbol / 1000 < 0.55
    assert 0.27 < num_kept / num_word_operators < 0.40  # a third by chance; standard deviation 0.015


@pytest.mark.parametrize(
    ("task", "prompt", "answer"),
    [
        (ReverseTask, r"reverse:([1-9]+)=", lambda digits: "".join(reversed(digits))),
        (SortTask, r"sort:([1-9]+)=", lambda digits: "".join(d * digits.count(d) for d in "123456789")),
        (CountTask, r"count:([1-9]in[1-9]+)=", lambda asked: str(len(asked[3:].split(asked[0])) - 1)),
    ],
)
def test_digit_tasks(task, prompt, answer):
    rng, num_right = random.Random(10), 0
    for _ in range(DRAWS):
        problem = task().problem(rng)
        assert problem.reference == answer(re.fullmatch(prompt, problem.text)[1])
        shown = task(DigitsConfig(min_length=5)).demonstration(rng)
        right = answer(re.fullmatch(prompt, shown.prompt_text)[1])
        written = re.fullmatch(r"<think></think>\\boxed\{(\d+)\}", shown.completion_text)[1]
        num_right += written == right
        if task is not CountTask:
            assert sorted(written) == sorted(right)
    # Half are right on purpose; of the others, about one in 6 (count) or in 60 to 120 (order) by chance.
    assert 0.42 * DRAWS < num_right < 0.70 * DRAWS


def test_digit_task_worked_examples():
    class Fixed(random.Random):
        def choices(self, population, *, k):
            return list("4717")[:k]

        def randint(self, a, b):
            return 4

        def choice(self, options):
            return "7"

    assert ReverseTask().problem(Fixed()) == Problem("reverse:4717=", "7174")
    assert SortTask().problem(Fixed()) == Problem("sort:4717=", "1477")
    assert CountTask().problem(Fixed()) == Problem("count:7in4717=", "2")


@every_task
def test_same_generator_same_problem(name):
    task = task_named(name)
    assert task.problem(random.Random(5)) == task.problem(random.Random(5))
    assert task.demonstration(random.Random(5)) == task.demonstration(random.Random(5))


@every_task
def test_same_text_same_reference(name):
    """In a small space, the draws repeat."""
    shortest = {"chain": ChainConfig(2, 2), "program": ProgramConfig(2, 2), "game24": PuzzleConfig(4, 4)}
    shortest |= {"calculate": CalculateConfig(2, 2, 3)}
    shortest |= {"knights": PuzzleConfig(3, 3), "path": PuzzleConfig(3, 3), "sudoku4": PuzzleConfig(2, 2)}
    task, rng, known = TASKS[name](shortest.get(name, DigitsConfig(2, 2))), random.Random(6), {}
    for _ in range(DRAWS):
        problem = task.problem(rng)
        assert known.setdefault(problem.text, problem.reference) == problem.reference
    assert len(known) < DRAWS or name in ("max", "modadd", "sudoku4")  # whose spaces are never small


@every_task
def test_every_word_is_used(name):
    task, rng = task_named(name), random.Random(7)
    examples = [task.demonstration(rng) for _ in range(DRAWS)]
    text = "".join(example.prompt_text + example.completion_text for example in examples)
    text += "".join(answer for example in examples for _, answer in example.later)
    assert all(text.count(word) >= DRAWS for word in task.words())


def test_prompts_of_different_tasks_never_meet():
    texts = {}
    for name in TASKS:
        task, rng = task_named(name), random.Random(8)
        texts[name] = {task.problem(rng).text for _ in range(DRAWS)}
        texts[name] |= {task.demonstration(rng).prompt_text for _ in range(DRAWS)}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))


@pytest.mark.parametrize(
    ("task", "num"),
    [
        (ChainTask(ChainConfig(min_length=2, max_length=3, min_operand=1, max_operand=2)), 10 * 4 + 10 * 16),
        (ProgramTask(ProgramConfig(min_operands=2, max_operands=2, max_digit=3)), 3 * (25 - 9)),
        (CalculateTask(CalculateConfig(2, 3, 3)), 2**2 * 3 + 2**3 * 9),
        (ReverseTask(DigitsConfig(2, 2)), 81),
        (SortTask(DigitsConfig(2, 2)), 81),
        (CountTask(DigitsConfig(2, 2)), 729),
        (CopyTask(DigitsConfig(2, 2)), 81),
        (XorTask(DigitsConfig(2, 3)), 4 + 8),
        (BracketsTask(DigitsConfig(2, 3)), 6 + 20),
        (MaxTask(DigitsConfig(2, 2)), 8100),
    ],
)
def test_number_of_prompts_is_what_exhaustion_finds(task, num):
    rng = random.Random(9)
    assert len({task.problem(rng).text for _ in range(40 * num)}) == num == task.num_prompts()


def test_number_of_prompts_of_the_default_tasks():
    assert {name: task_named(name).num_prompts() for name in ("chain", "program")} == {
        "chain": 10 * (4**2 + 4**3 + 4**4),
        "program": 3 * (11**2 - 9**2) + 9 * (11**3 - 9**3) + 27 * (11**4 - 9**4),
    }


def test_calculate_agrees_with_python():
    task, rng = CalculateTask(CalculateConfig(max_operands=5)), random.Random(1)
    for _ in range(DRAWS):
        problem = task.problem(rng)
        assert re.fullmatch(r"calc:\d+([+*-]\d+)+=", problem.text)
        assert problem.reference == str(eval(problem.text[5:-1]))
    assert value_of("9-2*3-1+2") == 4


def test_calculate_shows_guesses_and_calls_whose_results_are_python_s():
    task, rng = CalculateTask(CalculateConfig(guess_fraction=0.3, slip_fraction=0.4)), random.Random(2)
    shown = [task.demonstration(rng) for _ in range(4 * DRAWS)]
    calls = [example for example in shown if example.later]
    assert 0.6 < len(calls) / len(shown) < 0.8
    slips = 0
    for example in calls:
        called = re.fullmatch(r"<tool:python>print\((.*)\)</tool>", example.completion_text)[1]
        ((observation, answer),) = example.later
        assert observation.text == f"{eval(called)}\n" and answer == f"\\boxed{{{eval(called)}}}"
        asked = example.prompt_text[5:-1]
        assert len(asked) == len(called) and sum(a != b for a, b in zip(asked, called, strict=True)) <= 1
        slips += asked != called
    assert 0.3 < slips / len(calls) < 0.5


OWN = """
class Echo:
    name = "echo"
    def problem(self, rng): ...
    def demonstration(self, rng): ...
    def num_prompts(self): return 1
    def words(self): return ()

class Half:
    name = "echo"

class Picky(Echo):
    def __init__(self, size): ...
"""


def test_a_task_of_ones_own_comes_from_a_file_or_a_module(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in (f"{tmp_path}/own_tasks.py:Echo", "own_tasks:Echo"):
        assert make_task("echo", TaskParameters(), {"echo": place}).num_prompts() == 1


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("echo", "nowhere_at_all:Task", "No module named"),
        ("echo", "nowhere.py:Task", "FileNotFoundError"),
        ("echo", "own.py:Nothing", "no attribute 'Nothing'"),
        ("echo", "own.py", "cannot be built"),
        ("echo", "broken.py:Echo", "ZeroDivisionError"),
        ("echo", "own.py:Picky", "takes no arguments"),
        ("echo", "own.py:Half", "has no problem, demonstration, num_prompts, words"),
        ("ehco", "own.py:Echo", "task.own.echo=own.py:Echo"),
    ],
)
def test_a_task_of_ones_own_that_cannot_work_is_refused(tmp_path, monkeypatch, name, place, said):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        make_task(name, TaskParameters(), {name: place})


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ChainConfig(min_length=1), "min_length"),
        (lambda: ChainConfig(min_operand=3, max_operand=2), "max_operand"),
        (lambda: ChainConfig(max_operand=10), "10"),
        (lambda: ChainConfig(slip_fraction=1.5), "slip_fraction"),
        (lambda: DigitsConfig(max_length=10), "max_length"),
        (lambda: CalculateConfig(min_operands=1), "min_operands"),
        (lambda: CalculateConfig(max_operand=1), "max_operand"),
        (lambda: CalculateConfig(slip_fraction=2), "slip_fraction"),
        (lambda: DigitsConfig(random_fraction=2), "random_fraction"),
        (lambda: ProgramConfig(max_operands=5), "max_operands"),
        (lambda: ProgramConfig(max_digit=0), "max_digit"),
        (lambda: ProgramConfig(num_tests=0), "num_tests"),
        (lambda: ProgramConfig(wrap_fraction=-0.1), "wrap_fraction"),
    ],
)
def test_impossible_parameters_are_refused(build, said):
    with pytest.raises(ConfigError, match=said):
        build()
