"""The math verifier on tests/rewards/math_pairs.tsv: the hard table, its neighbours, and several hundred more pairs."""

from pathlib import Path
from typing import NamedTuple

import pytest

from cispo.types import Verdict
from rewards.answer_limits import AnswerLimits, too_big
from rewards.math_answer import MathAnswer
from rewards.math_notation import tidy

PAIRS = Path(__file__).parent / "math_pairs.tsv"


class Pair(NamedTuple):
    gold: str
    answer: str
    same: bool
    both_ways: bool
    section: str


def read_pairs(path=PAIRS):
    section, pairs = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            section = line[2:]
        elif line:
            kind, gold, answer, *_ = line.split("\t")
            pairs.append(Pair(gold, answer, kind.startswith("same"), not kind.endswith(">"), section))
    return pairs


@pytest.fixture(scope="module")
def grader():
    verifier = MathAnswer()
    yield verifier
    verifier.close()


def faults(grader, pairs):
    found = []
    for gold, answer, same, *_ in pairs:
        score = grader.score(f"<think>or \\boxed{{0}}?</think>So it is \\boxed{{{answer}}}.", gold)
        if score.correct is not same or score.verdict in (Verdict.SYSTEM_ERROR, Verdict.GRADER_TIMEOUT):
            found.append(f"{gold}  answered by  {answer}  is {score.verdict}")
    return found


@pytest.mark.parametrize("section", list(dict.fromkeys(pair.section for pair in read_pairs())))
def test_pairs_of_a_section(grader, section):
    found = faults(grader, [pair for pair in read_pairs() if pair.section == section])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("section", list(dict.fromkeys(pair.section for pair in read_pairs())))
def test_pairs_of_a_section_the_other_way_round(grader, section):
    turned = [
        pair._replace(gold=pair.answer, answer=pair.gold)
        for pair in read_pairs()
        if pair.section == section and pair.both_ways
    ]
    found = faults(grader, turned)
    assert not found, "\n".join(found)


def test_every_reference_answers_itself_once_it_is_written_otherwise(grader):
    """White space and typesetting around an answer never change it."""
    golds = [gold for gold in dict.fromkeys(pair.gold for pair in read_pairs()) if not too_big(gold, AnswerLimits())]
    for gold in golds:
        for frame in ("$@$", r"\(@\)", r"\displaystyle @", "{@}", " @ "):
            text = frame.replace("@", gold)
            assert grader.score(f"\\boxed{{{text}}}", gold).correct or "$" in gold, (gold, text)


def test_tidying_twice_is_tidying_once():
    for pair in read_pairs():
        for text in (pair.gold, pair.answer):
            assert tidy(tidy(text)) == tidy(text), text
