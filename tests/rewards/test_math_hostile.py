"""Answers written to hang, crash, overfill or take over the grader: a verdict, no reward, and nothing left behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispo.types import Verdict
from rewards.grader_pool import GraderPoolConfig
from rewards.math_answer import MathAnswer, MathAnswerConfig

FINE = {Verdict.WRONG, Verdict.UNPARSEABLE, Verdict.GRADER_TIMEOUT}
GOLD = r"\sqrt{2}+x"  # of no kind that is compared at sight, so that every answer reaches the worker

BOMBS = [
    "9^{9^{9^9}}",
    "10^{10^{10}}",
    "((9!)!)!",
    "9**9**9",
    "x^{9^{9^9}}",
    "(10^{300})!",
    r"\binom{100000000}{50000000}",
    r"\sum_{k=1}^{1000000000} \frac{1}{k}",
    r"\prod_{k=1}^{100000000} (1+\frac{1}{k})",
    r"\int_0^1 x^x \cdot \sin(x^{x^x}) dx",
    r"\lim_{x \to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^7}",
    "(x+1)^{100000}",
    r"(1+\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11})^{60}",
    r"\frac{1}{" * 30 + "1" + "}" * 30,
    r"\sqrt{" * 31 + "2" + "}" * 31,
    "(" * 200 + "x" + ")" * 200,
    "{" * 500,
    "1" * 100_000,
    "1," * 200 + "1",
    r"\begin{pmatrix}" + "1&" * 60 + r"1\end{pmatrix}",
    "x" * 500,
    "{0.__class__.__mro__}",
    "%s%n%x" * 20,
    r"\text{" + "a " * 200 + "}",
    "\x00\x01\ud800",
    "\u202e5" * 50,
]


@pytest.fixture(scope="module")
def impatient():
    verifier = MathAnswer(MathAnswerConfig(pool=GraderPoolConfig(size=2, deadline_seconds=1.5, tries=1)))
    verifier.start()
    yield verifier
    verifier.close()


def test_bombs_are_verdicts_without_a_reward_and_the_next_answer_is_graded(impatient):
    with ThreadPoolExecutor(2) as threads:
        scores = list(threads.map(lambda bomb: impatient.score(f"\\boxed{{{bomb}}}", GOLD), BOMBS))
    assert {score.verdict for score in scores} <= FINE
    assert not any(score.correct or score.value for score in scores)
    assert impatient.score(r"\boxed{x+\sqrt2}", GOLD).correct


@pytest.mark.parametrize(
    "code",
    [
        '__import__("os").system("touch {}")',
        r"\text{{__import__('os').system('touch {}')}}",
        "open('{}','w')",
        'eval(\'open("{}","w")\')',
        "exec('import os;os.mkdir(\"{}\")')",
        r"\operatorname{{open}}({},w)",
        "lambdify(x, open('{}', 'w'))",
        "[x for x in [open('{}','w')]][0]",
        "\\write18{{touch {}}}",
        "\\input{{|touch {}}}",
    ],
)
def test_code_in_an_answer_never_runs(impatient, tmp_path, code):
    target = tmp_path / "owned"
    score = impatient.score(f"\\boxed{{{code.format(target)}}}", GOLD)
    assert score.verdict in FINE
    assert not target.exists()


@given(st.text(st.sampled_from(list("0123456789abxyAB(){}[]\\^_+-*/=<>,.:;!|$%~ &")), max_size=60))
def test_any_string_is_a_verdict_before_it_reaches_a_process(text):
    """What is decided in this process never raises; the rest would be asked of a pool, which is closed here."""
    verifier = MathAnswer()
    verifier.close()
    for gold in ("5", "A", "12:30", r"5\text{ cm}", r"\{1,2\}"):
        assert verifier.score(f"\\boxed{{{text}}}", gold).verdict in FINE | {Verdict.CORRECT, Verdict.SYSTEM_ERROR}


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\{1,2\}", r"1,2,\ldots"),
        (r"\{1,2\}", "1, 2, ..."),
        (r"\{1,2\}", r"\{1,2,\dots\}"),
        ("1,2", "1,2,…"),
        ("(1,2)", r"(1,2,\ldots)"),
    ],
)
def test_who_goes_on_with_dots_has_not_named_the_members(impatient, gold, answer):
    assert impatient.score(f"\\boxed{{{answer}}}", gold).verdict is Verdict.WRONG
    assert impatient.score(f"\\boxed{{{answer}}}", answer).correct  # where the reference goes on, so may the answer
