"""The small tasks and puzzles against a second way to the same answer: brute force over every possible one."""

import ast
import itertools
import random
import re
from fractions import Fraction

import pytest

from cispo.errors import ConfigError
from cispo.types import Verdict
from rewards.logic import LogicAnswer
from rollout.puzzle_tasks import Game24Task, KnightsTask, PathTask, PuzzleConfig, Sudoku4Task, make_24
from rollout.symbol_tasks import BracketsTask, CopyTask, MaxTask, ModAddTask, XorTask

DRAWS = 200
PUZZLES = (Game24Task, Sudoku4Task, KnightsTask, PathTask)
SIZES = {Game24Task: (6, 9), Sudoku4Task: (4, 6), KnightsTask: (2, 4), PathTask: (4, 6)}
LOGIC = LogicAnswer()


def puzzles(task, num=60):
    rng = random.Random(3)
    return [task(PuzzleConfig(*SIZES[task])).problem(rng) for _ in range(num)]


def solves(problem, answer):
    return LOGIC.score(f"<think></think>\\boxed{{{answer}}}", problem.reference).correct


def closes(brackets):
    while "()" in brackets:
        brackets = brackets.replace("()", "")
    return str(int(brackets == ""))


@pytest.mark.parametrize(
    ("task", "pattern", "answer"),
    [
        (CopyTask, r"copy:([1-9]+)=", lambda asked: asked),
        (XorTask, r"xor:([01]+)=", lambda asked: str(sum(map(int, asked)) & 1)),
        (BracketsTask, r"brackets:([()]+)=", closes),
        (MaxTask, r"max:([\d,]+)=", lambda asked: sorted(asked.split(","))[-1]),  # all have two digits
        (ModAddTask, r"modadd:(\d+\+\d+%\d)=", lambda asked: str(eval(re.sub(r"(.+)%", r"(\1)%", asked)))),
    ],
)
def test_symbol_tasks_are_right_and_their_demonstrations_often_wrong(task, pattern, answer):
    rng, num_right, answers = random.Random(1), 0, set()
    for _ in range(DRAWS):
        problem = task().problem(rng)
        assert problem.reference == answer(re.fullmatch(pattern, problem.text)[1])
        answers.add(problem.reference)
        shown = task().demonstration(rng)
        asked = re.fullmatch(pattern, shown.prompt_text)[1]
        num_right += shown.completion_text == f"<think></think>\\boxed{{{answer(asked)}}}"
    assert len(answers) > 1
    assert 0.45 * DRAWS < num_right < 0.9 * DRAWS  # half on purpose, half of the rest by chance where there are two


def value_of(text):
    """What Python makes of an arithmetic, in fractions."""
    try:
        return eval(re.sub(r"\d+", r"Fraction(\g<0>)", text), {"Fraction": Fraction})
    except ZeroDivisionError:
        return None


def test_game24_takes_exactly_the_arithmetics_that_come_to_24():
    rng = random.Random(2)
    task, num_right = Game24Task(), 0
    for problem in puzzles(Game24Task):
        numbers = re.fullmatch(r"24:(\d),(\d),(\d),(\d)=", problem.text).groups()
        assert value_of(problem.reference["answer"]) == 24
        tried = [problem.reference["answer"], f"({problem.reference['answer']})"]
        tried += [task.demonstration(rng).completion_text[22:-1] for _ in range(3)]
        for order in itertools.islice(itertools.permutations(numbers), 0, 24, 5):
            for signs in itertools.islice(itertools.product("+-*/", repeat=3), 0, 64, 7):
                tried.append(f"({order[0]}{signs[0]}{order[1]}){signs[1]}({order[2]}{signs[2]}{order[3]})")
        for text in tried:
            used = sorted(re.findall(r"\d", text))
            right = used == sorted(numbers) and value_of(text) == 24
            assert solves(problem, text) == right, (problem.text, text)
            num_right += right
        for hack in ("24", f"{problem.reference['answer']}=24", "*".join([*numbers]) + "*0+24", "9**9**9"):
            assert not solves(problem, hack)
    assert num_right > 100


def test_game24_finds_an_arithmetic_wherever_there_is_one():
    assert make_24((3, 3, 8, 8)) and value_of(make_24((3, 3, 8, 8))) == 24  # 8/(3-8/3), the hard one
    assert make_24((1, 1, 1, 1)) == ""


def test_sudoku_takes_every_filling_that_keeps_the_rules_and_no_other():
    num_ambiguous = 0
    for problem in puzzles(Sudoku4Task, 40):
        question = re.fullmatch(r"sudoku:([1-4.|]+)=", problem.text)[1]
        right = set()
        for digits in itertools.product("1234", repeat=question.count(".")):
            left = iter(digits)
            answer = "".join(next(left) if cell == "." else cell for cell in question)
            lines = answer.split("|")
            boxes = ["".join(lines[r + i][c + j] for i in (0, 1) for j in (0, 1)) for r in (0, 2) for c in (0, 2)]
            units = [*lines, *map("".join, zip(*lines, strict=True)), *boxes]
            if all(sorted(unit) == list("1234") for unit in units):
                right.add(answer)
        assert problem.reference["answer"] == min(right)
        assert all(solves(problem, answer) for answer in right)
        assert not any(solves(problem, answer[::-1]) for answer in right if answer[::-1] not in right)
        assert not solves(problem, question)
        num_ambiguous += len(right) > 1
    assert num_ambiguous


def test_sudoku_draws_every_solved_grid():
    rng, task = random.Random(5), Sudoku4Task(PuzzleConfig(2, 2))
    grids = {task.problem(rng).reference["answer"] for _ in range(6000)}
    assert len(grids) == 288  # the number of four by four sudokus


def test_knights_take_every_assignment_that_fits_the_claims_and_no_other():
    num_right = num_wrong = 0
    for problem in puzzles(KnightsTask):
        claims = re.fullmatch(r"knights:(.+)=", problem.text)[1].split(",")
        fits = []
        for roles in map("".join, itertools.product("KL", repeat=len(claims))):
            truths = []
            for claim in claims:
                speaker, about = ord(claim[0]) - 65, ord(claim[2]) - 65
                said = {"K": roles[about] == "K", "L": roles[about] == "L"}
                said |= {"=": roles[about] == roles[speaker], "#": roles[about] != roles[speaker]}
                truths.append(said[claim[3]] == (roles[speaker] == "K"))
            assert solves(problem, roles) == all(truths), (problem.text, roles)
            fits += [roles] * all(truths)
            num_right, num_wrong = num_right + all(truths), num_wrong + (not all(truths))
        assert problem.reference["answer"] == fits[0]
    assert num_right and num_wrong


def test_path_takes_every_shortest_way_and_no_other():
    for problem in puzzles(PathTask):
        spelt, start, end = re.fullmatch(r"path:(.+);(\d)>(\d)=", problem.text).groups()
        edges = {frozenset(edge.split("-")) for edge in spelt.split(",")}
        nodes = sorted(set().union(*edges))
        ways = [
            (start, *between, end)
            for num in range(len(nodes) - 1)
            for between in itertools.permutations(set(nodes) - {start, end}, num)
        ]
        leads = [way for way in ways if all(frozenset(step) in edges for step in itertools.pairwise(way))]
        fewest = min(map(len, leads))
        for way in ways:
            assert solves(problem, "-".join(way)) == (way in leads and len(way) == fewest), (problem.text, way)


@pytest.mark.parametrize("task", PUZZLES)
def test_a_puzzles_guesses_have_its_form_and_are_not_always_right(task):
    rng, config = random.Random(4), PuzzleConfig(*SIZES[task], random_fraction=1.0)
    verdicts = []
    for _ in range(60):
        state = rng.getstate()
        shown = task(config).demonstration(rng)
        rng.setstate(state)
        problem = task(config).problem(rng)
        assert problem.text == shown.prompt_text
        verdicts.append(LOGIC.score(shown.completion_text, problem.reference).verdict)
    assert Verdict.UNPARSEABLE not in verdicts
    assert Verdict.WRONG in verdicts


def test_references_are_plain_json():
    for task in PUZZLES:
        for problem in puzzles(task, 5):
            assert ast.literal_eval(repr(problem.reference)) == problem.reference


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: PuzzleConfig(min_size=1), "min_size"),
        (lambda: PuzzleConfig(max_size=17), "max_size"),
        (lambda: PuzzleConfig(random_fraction=2), "random_fraction"),
        (lambda: KnightsTask(PuzzleConfig(3, 10)), "task.parameters.knights.max_size is at most 9, got 10"),
    ],
)
def test_impossible_sizes_are_refused(build, said):
    with pytest.raises(ConfigError, match=said):
        build()
