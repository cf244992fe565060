"""Every enabled dataset of reasoning-gym, at its easiest, middle and hardest level: gold pays, nothing else does.

What is garbage for one problem may be right for another (`0` is a count), so an answer counts as right only if a second
judge says so: it is the gold itself, or reasoning-gym's own scorer gives it full marks.
"""

import decimal
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cispo.types import Verdict
from rewards.logic import LogicAnswer, check_reference
from rewards.logic_scorers import GYM, OWN, SCORERS, ByRules
from rollout import gym_task
from rollout.gym_datasets import DENIED, GYM_DATASETS
from rollout.gym_task import GymConfig, GymTask, make_entry, marked

factory = pytest.importorskip("reasoning_gym.factory")

ROOT = Path(__file__).parents[2]
LOGIC = LogicAnswer()
every_dataset = pytest.mark.parametrize("dataset", GYM_DATASETS)

TOUCHED = "/tmp/cispo-was-evaluated"
GARBAGE = (
    "0", "None", "no", "a b c", "[]", "{}", "[[]]", "-", "()", ".", ",", "\u0661\u0662", "\u2603" * 40,
    "x" * 10_240, "9**9**9",
    "(" * 4000, "[" * 4000, "1e999999999", "1/0", "0x", "nan", "inf", "-inf", "True and False", "\x00", "\ud800",
    "%s%s",
    f"__import__('os').system('touch {TOUCHED}')", f"[open('{TOUCHED}', 'w') for _ in [0]]",
    f"().__class__.__base__.__subclasses__() or open('{TOUCHED}','w')", "lambda: 24", "\\boxed{}", "<answer>",
)  # fmt: skip


def levels(dataset):
    settings = GYM_DATASETS[dataset]
    return sorted({settings.first, (settings.first + settings.last) // 2, settings.last})


def entries(dataset, num=2):
    """(the library's entry, our reference) of problems at each level, but for empty answers, which no stream has."""
    for level in levels(dataset):
        wanted = [7919 * at + 13 for at in range(num + 2)]
        with decimal.localcontext(decimal.Context()):
            found = [(make_entry(dataset, level, at), gym_task._dataset(dataset, level)[at]) for at in wanted]
        for ours, theirs in [pair for pair in found if pair[0]["answer"].strip()][:num]:
            assert (ours["question"], ours["answer"]) == (theirs["question"], theirs["answer"])
            yield theirs, {"task": GYM + dataset, "answer": ours["answer"], "metadata": ours["metadata"]}


def verdict(answer, reference):
    """The verdict of the answer in tags, which may hold braces that do not match."""
    return LOGIC.score(f"<think>hm</think><answer>{answer}</answer>", reference).verdict


def test_the_lists_are_those_of_the_library_and_agree_with_each_other():
    assert set(GYM_DATASETS) | set(DENIED) == set(factory.DATASETS)
    assert not set(GYM_DATASETS) & set(DENIED)
    assert len(GYM_DATASETS) >= 40
    assert {GYM + name for name in GYM_DATASETS} == set(SCORERS) - set(OWN)
    for name, settings in GYM_DATASETS.items():
        scorer = SCORERS[GYM + name]
        assert settings.facts == (scorer.facts if isinstance(scorer, ByRules) else ()), name
        if name in factory.CURRICULA:
            attributes = factory.create_curriculum(name).attributes.values()
            assert settings.last < max(len(attribute.levels) for attribute in attributes), name


@every_dataset
def test_gold_pays_in_every_form_and_comes_through_json(dataset):
    for entry, reference in entries(dataset, num=4):
        check_reference(reference)
        through = json.loads(json.dumps(reference))
        for text in (marked(entry["answer"]), f"<think>1</think>So <answer> {entry['answer']}\n</answer>."):
            score = LOGIC.score(text, through)
            assert (score.value, score.correct, score.verdict) == (1.0, True, Verdict.CORRECT), (text, score.note)


def test_an_entry_of_the_library_is_a_reference_as_it_is():
    for dataset in ("gcd", "mini_sudoku", "tower_of_hanoi"):
        entry = factory.create_dataset(dataset, size=1, seed=5)[0]
        assert LOGIC.score(marked(entry["answer"]), entry).correct


def second_judge(dataset, answer, entry):
    """Whether the library gives full marks, and the answer is no dressed-up gold: their scorers strip and search."""
    try:
        return gym_task._dataset(dataset, GYM_DATASETS[dataset].last).score_answer(answer, entry) >= 1.0
    except Exception:
        return False


def near_misses(gold, question):
    """A part of the gold, the gold with something around it, and what is not the gold at all."""
    yield from GARBAGE
    yield from (question, gold + " " + gold, gold + " or not", "the answer is " + gold, gold + "\n" + gold, gold + "7")
    yield from ("7" + gold, gold + ", " + gold, gold + ";", "not " + gold, gold[1:], gold[:-1], gold[::-1])
    yield from (f"{gold}'+''+'", f"[{gold}]*1", f"({gold}) + 0*1")


@every_dataset
def test_garbage_and_near_misses_pay_nothing(dataset):
    for entry, reference in entries(dataset):
        gold = entry["answer"].strip()
        for answer in near_misses(gold, entry["question"]):
            if verdict(answer, reference) is not Verdict.CORRECT:
                continue
            # Right after all? Then it is the gold, another spelling of it, or another solution by the library's word.
            spellings = ("".join(answer.split()), "".join(gold.split()))
            if spellings[0] == spellings[1] or second_judge(dataset, answer, entry):
                assert answer != entry["question"]
                continue
            pytest.fail(f"{answer[:200]!r} is paid where {gold[:200]!r} is right")
        for text in ("", " \n\t", "<think>", f"<think>{marked(gold)}", f"{marked(gold)} no, \\boxed{{", gold, None):
            assert LOGIC.score(text, reference).value == 0.0, text


@every_dataset
def test_the_answer_to_another_problem_pays_only_if_it_solves_this_one(dataset):
    pairs = list(entries(dataset, num=4))
    num_wrong = 0
    for (entry, reference), (other, _) in zip(pairs, pairs[1:], strict=False):
        paid = verdict(other["answer"], reference) is Verdict.CORRECT
        num_wrong += not paid
        if paid:
            assert second_judge(dataset, other["answer"], entry), (other["answer"], entry["answer"])
    assert num_wrong, "all problems have the same answer"


def test_nothing_of_an_answer_was_evaluated():
    """After all hostile answers above, and some more, to every dataset in this very process."""
    before = set(sys.modules)
    for dataset in GYM_DATASETS:
        entry, reference = next(entries(dataset, num=1))
        for answer in GARBAGE:
            verdict(answer, reference)
            verdict(f"{answer}\n{entry['answer']}", reference)
    assert not Path(TOUCHED).exists()
    assert {name for name in set(sys.modules) - before if name.split(".")[0] in ("sympy", "antigravity")} == set()
    sources = [ROOT / "rewards" / f"{name}.py" for name in ("logic", "logic_forms", "logic_rules", "logic_scorers")]
    for word in ("eval(", "exec(", "sympify", "parse_expr", "literal_eval", "reasoning_gym."):
        assert not any(word in source.read_text() for source in sources), word


PROGRAM = """
import hashlib, json, random, sys
random.seed(int(sys.argv[1]))
from rollout.gym_datasets import GYM_DATASETS
from rollout.gym_task import make_entry
for name, settings in sorted(GYM_DATASETS.items()):
    wanted = [(level, 104729 * at + 5) for level in {settings.first, settings.last} for at in range(2)]
    order = sorted(wanted, reverse=sys.argv[1] == "2")
    made = {str(key): make_entry(name, *key) for key in order}
    print(name, hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest())
"""


def test_problems_are_the_same_in_every_process_whatever_was_drawn_before():
    def run(number):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": number, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROGRAM, number]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("\n")

    first, second = run("1"), run("2")
    assert len(first) == len(GYM_DATASETS) + 1
    assert first == second


def test_difficulty_moves_from_the_first_level_to_the_last():
    """lcm draws numbers up to 1,000 at its first level and up to 100,000 at its last."""

    def sizes(difficulty):
        task, rng = GymTask("lcm", GymConfig(difficulty=difficulty)), random.Random(1)
        return [max(int(n) for n in task.problem(rng).text.split(": ")[1].split(".")[0].split(",")) for _ in range(40)]

    easy, middle, hard = sizes(0.0), sizes(0.5), sizes(1.0)
    assert max(easy) <= 1000 < max(middle) <= max(hard) <= 100_000
    assert max(hard) > 10_000


def test_problems_of_one_seed_are_known_by_their_digest():
    """If the library or the levels change, runs that go on would draw other prompts; then this says so."""
    made = json.dumps([make_entry("gcd", 0, at)["question"] for at in range(5)])
    assert hashlib.sha256(made.encode()).hexdigest()[:8] == "e22355d6"
