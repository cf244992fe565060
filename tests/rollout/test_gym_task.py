"""Gym tasks as sources of prompts: names, difficulty over draws, cursors that go on, sides that never meet."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cispo.errors import ConfigError, DataError
from rewards.logic import LogicAnswer
from rollout.gym_datasets import DENIED, GYM_DATASETS
from rollout.gym_task import GymConfig, GymTask, marked
from rollout.prompts import TaskConfig, demonstration_source, eval_sets, prompt_source, task_words
from rollout.tasks import TaskParameters

pytest.importorskip("reasoning_gym")

ROOT = Path(__file__).parents[2]
RISING = GymConfig(difficulty=((0, 0.0), (20, 1.0)))
MIXTURE = {"gym/chain_sum": 1.0, "gym/mini_sudoku": 2.0, "chain": 1.0}


class Bytes:
    """One token a byte."""

    def encode(self, text):
        return list(text.encode())


def source(seed=1, gym=RISING, mixture=MIXTURE):
    return prompt_source(TaskConfig(mixture=mixture, parameters=TaskParameters(gym=gym)), Bytes(), seed)


def draw(stream, num):
    return [stream.next() for _ in range(num)]


def num_terms(prompt):
    return len(prompt.text.split(": ")[1].split()) // 2


def test_a_stream_goes_on_from_its_cursor_in_the_middle_of_the_rise():
    stream = source()
    draw(stream, 37)
    state = json.loads(json.dumps(stream.state()))
    expected = draw(stream, 40)
    resumed = source()
    resumed.restore(state)
    assert draw(resumed, 40) == expected
    assert draw(source(seed=2), 77)[37:] != expected


def test_a_stream_is_the_same_in_another_process():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_gym_task as t;"
        "print([(p.id, p.text, p.reference) for p in t.draw(t.source(), 30)])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert there == str([(p.id, p.text, p.reference) for p in draw(source(), 30)])


def test_difficulty_rises_with_the_prompts_drawn_and_evaluation_sees_the_hardest():
    stream = source(mixture={"gym/chain_sum": 1.0})
    terms = [num_terms(prompt) for prompt in draw(stream, 60)]
    assert max(terms[:3]) <= 3  # the first level adds two or three numbers
    assert sum(terms[:15]) / 15 + 1 < sum(terms[-30:]) / 30
    config = TaskConfig(mixture={"gym/chain_sum": 1.0}, parameters=TaskParameters(gym=RISING))
    held_out = eval_sets(config, Bytes(), num=30, seed=0)["gym/chain_sum"]
    assert sum(map(num_terms, held_out)) / 30 > 5
    easy = GymConfig(difficulty=1.0, eval_difficulty=0.0)
    assert max(num_terms(GymPrompt(GymTask("chain_sum", easy), at)) for at in range(30)) <= 3


class GymPrompt:
    def __init__(self, task, seed):
        self.text = task.problem(random.Random(seed)).text


def test_between_two_levels_problems_come_from_both():
    """spell_backward has five levels; difficulty 0.125 is half way between the first and the second."""
    task = GymTask("spell_backward", difficulty=0.125)
    lengths = {len(task.problem(random.Random(at)).reference["answer"]) for at in range(200)}
    assert {3, 5} <= lengths and max(lengths) <= 5


def test_training_and_evaluation_never_meet():
    for name in ("gym/coin_flip", "gym/count_bits", "gym/gcd", "sudoku4"):
        config = TaskConfig(mixture={name: 1.0})
        held_out = {prompt.text for prompt in eval_sets(config, Bytes(), num=40, seed=0)[name]}
        assert len(held_out) >= 5
        trained = {prompt.text for prompt in draw(prompt_source(config, Bytes(), 1), 300)}
        shown = demonstration_source(config, 1)
        assert held_out.isdisjoint(trained | {shown.next().prompt_text for _ in range(300)})


def test_demonstrations_have_the_form_and_about_half_are_right():
    config, num_right = TaskConfig(mixture={"gym/lcm": 1.0}), 0
    task, verifier = GymTask("lcm"), LogicAnswer()
    for at in range(100):
        rng = random.Random(at)
        state = rng.getstate()
        problem = task.problem(rng)
        rng.setstate(state)
        shown = task.demonstration(rng)
        assert shown.prompt_text == problem.text
        score = verifier.score(shown.completion_text, problem.reference)
        assert shown.completion_text.startswith("<think></think>\\boxed{")
        num_right += score.correct
    assert 35 < num_right < 65
    words = task_words(config)
    assert "Find the Least Common Multiple (LCM) of these numbers: " in words
    assert all(word in shown.prompt_text + shown.completion_text for word in words)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("4", r"\boxed{4}"),
        ('{"a": {}}', r'\boxed{{"a": {}}}'),
        ("}{", "<answer>}{</answer>"),
        ("{", "<answer>{</answer>"),
    ],
)
def test_an_answer_is_marked_so_that_it_can_be_found(answer, text):
    assert marked(answer) == text


def test_instructions_are_put_after_the_question():
    task = GymTask("gcd", GymConfig(instruction=" Put it in a box."))
    assert task.problem(random.Random(1)).text.endswith(" Put it in a box.")


@pytest.mark.parametrize("dataset", ["figlet_font", "word_sorting", "emoji_mystery"])
def test_prompts_are_no_longer_than_allowed_in_bytes(dataset):
    longest = 1200 if dataset == "emoji_mystery" else 400
    task = GymTask(dataset, GymConfig(max_prompt_bytes=longest))
    problems = [task.problem(random.Random(at)) for at in range(20)]
    assert all(len(problem.text.encode()) <= longest for problem in problems)


def test_a_dataset_that_never_fits_says_what_to_raise():
    with pytest.raises(DataError, match=r"'gym/spiral_matrix' made .* fits into .*max_prompt_bytes=100; raise it"):
        GymTask("spiral_matrix", GymConfig(max_prompt_bytes=100)).problem(random.Random(1))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gym/gdc", "there is no task 'gym/gdc'; did you mean 'gym/gcd'?"),
        ("gcd", "did you mean 'gym/gcd'?"),
        ("gym/sokoban", "because sokoban may take more than 10 s"),
        ("gym/qqqqqq", "docs/logic.md lists the datasets"),
        ("chian", "did you mean 'chain'?"),
    ],
)
def test_an_unknown_name_gets_the_nearest_right_one_or_the_reason(name, said):
    with pytest.raises(ConfigError) as caught:
        TaskConfig(mixture={name: 1.0})
    assert said in str(caught.value)


def test_every_reason_reads_as_a_sentence():
    for dataset, reason in DENIED.items():
        with pytest.raises(ConfigError, match=f"there is no task 'gym/{dataset}', because {dataset} "):
            GymTask(dataset)
        assert reason[0].islower() and not reason.endswith("."), dataset


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"difficulty": 1.5}, "at most 1"),
        ({"difficulty": ((0, 0.0), (9, 2.0))}, "at most 1"),
        ({"difficulty": -0.1}, "at least 0"),
        ({"difficulty": ((5, 0.1), (5, 0.2))}, "increasing steps"),
        ({"eval_difficulty": 2.0}, "eval_difficulty"),
        ({"max_prompt_bytes": 0}, "max_prompt_bytes"),
        ({"random_fraction": -1.0}, "random_fraction"),
    ],
)
def test_impossible_settings_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        GymConfig(**arguments)


def test_without_the_library_one_sentence_names_the_extra():
    program = """
import sys
sys.modules["reasoning_gym"] = None
from cispo.errors import ConfigError
from rollout.prompts import TaskConfig, prompt_source
config = TaskConfig(mixture={"gym/gcd": 1.0})
try:
    prompt_source(config, None, 1)
except ConfigError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True).stdout
    assert "pip install 'cispo[logic]'" in said
    assert said.count("\n") == 1


def test_all_levels_of_all_datasets_can_be_drawn_at_the_default_length_or_say_that_they_cannot():
    """At most a few need longer prompts, and none hangs."""
    too_long = []
    for dataset, difficulty in itertools.product(GYM_DATASETS, (0.0, 1.0)):
        try:
            GymTask(dataset, difficulty=difficulty).problem(random.Random(3))
        except DataError:
            too_long.append(dataset)
    assert set(too_long) <= {"emoji_mystery", "modulo_grid", "string_splitting", "string_synthesis", "spiral_matrix",
                             "string_manipulation", "mahjong_puzzle", "needle_haystack", "rearc"}, too_long  # fmt: skip
