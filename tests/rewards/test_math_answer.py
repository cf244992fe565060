"""The math verifier against a table of hard cases, both ways round, and against hostile answers."""

import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispo.errors import ConfigError, DataError, RewardError
from cispo.types import Verdict
from rewards.answer_limits import AnswerLimits, too_big
from rewards.grader_pool import GraderPoolConfig
from rewards.math_answer import MathAnswer, MathAnswerConfig
from rollout.chain_task import ChainTask

# (reference, answer, are they the same)
HARD_CASES = [
    (r"1/2", r"0.5", True),
    (r"\frac{1}{2}", r"50\%", True),
    (r"0.333333", r"\frac13", False),
    (r"1{,}000", r"1000", True),
    (r"1,000", r"1000", True),
    (r"10^{3}", r"1000", True),
    (r"1e3", r"1000", True),
    (r"-1", r"- 1", True),
    (r"+3", r"3", True),
    (r"3.00", r"3", True),
    (r"03", r"3", True),
    (r"2\sqrt2", r"\sqrt 8", True),
    (r"\sqrt{2}/2", r"\frac{1}{\sqrt2}", True),
    (r"\pi", r"3.14", False),
    (r"\pi", r"3.14159265", False),
    (r"(x+1)^2", r"x^2+2x+1", True),
    (r"x^2-1", r"(x-1)(x+1)", True),
    (r"5", r"x=5", True),
    (r"x=5", r"y=5", False),
    (r"y=2x+1", r"y-2x-1=0", True),
    (r"2x+4=0", r"x+2=0", True),
    (r"(1,2)", r"1,2", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    (r"\{1,2,3\}", r"1,2,3", True),
    (r"(1,2)", r"\{1,2\}", False),
    (r"1", r"1,2", False),
    (r"[1,2]", r"(1,2)", False),
    (r"(-\infty,3)", r"x<3", True),
    (r"x<3", r"3>x", True),
    (r"1<x<2", r"(1,2)", True),
    (r"10\%", r"0.1", True),
    (r"10\%", r"10", True),
    (r"90^\circ", r"90", True),
    (r"\$5", r"5", True),
    (r"5\text{ cm}", r"5", True),
    (r"5\text{ cm}", r"5\text{ m}", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
    (r"\text{A}", r"A", True),
    (r"A", r"a", True),
    (r"A", r"B", False),
    (r"\text{Yes}", r"yes", True),
    (r"\text{Monday}", r"Tuesday", False),
    (r"10!", r"3628800", True),
    (r"2^{10}", r"1024", True),
    (r"\log_2 8", r"3", True),
    (r"\sin(\pi/6)", r"\frac12", True),
    (r"i^2", r"-1", True),
    (r"e^{i\pi}", r"-1", True),
    (r"1\frac12", r"1.5", True),
    (r"2\frac{1}{3}", r"\frac73", True),
    (r"0.\overline{3}", r"\frac13", True),
    (r"6_{7}", r"6", True),
    (r"1010_2", r"1010_{2}", True),
    (r"\pm 2", r"2,-2", True),
    (r"x=\pm2", r"\{-2,2\}", True),
    (r"\infty", r"\infty", True),
    (r"\infty", r"-\infty", False),
    (r"\text{no solution}", r"\emptyset", True),
    (r"\text{undefined}", r"undefined", True),
    (r"12", r"1 2", False),
    (r"3.14", r"3,14", False),
    (r"12:30", r"12:30", True),
    (r"1:2", r"\frac12", True),
    (r"ab", r"ba", True),
    (r"2^x", r"x^2", False),
    (r"\frac{1}{x-1}", r"\frac{-1}{1-x}", True),
    (r"\sqrt{x^2}", r"x", False),
    (r"\cos^2x+\sin^2x", r"1", True),
    (r"\tan x", r"\frac{\sin x}{\cos x}", True),
    (r"x^2+C", r"x^2+K", True),
    (r"9**9**9", r"1", False),
    (r"1", r"\frac{1}{0}", False),
    (r"0", r"0.0000001", False),
    (r"0.001", r"0.0011", False),
    (r"123456789012345678", r"123456789012345679", False),
]

# Rows that come out otherwise than expected, with the reason. A row that is mended must leave this list.
STILL_DIFFERENT: dict[tuple[str, str], str] = {}

FURTHER_CASES = [
    (r"(p,q)=(3,2)", r"(3,2)", True),
    (r"0.5", r"\frac{1}{2}", True),
    (r"1\,000", r"1000", True),
    (r"3", r"1 1/2", False),
    (r"\frac{3}{2}", r"1 1/2", True),
    (r"12", r"12.", True),
    (r"10\%", r"1000\%", False),
    (r"\text{east}", r"seat", False),
    (r"B", r"\textbf{(B)}", True),
    (r"4", r"\sqrt{16}", True),
    (r"4", r"\{4, 5\}", False),
    (r"3x=6", r"x=3", False),
    (r"x^2+C", r"x^3+C", False),
    (r"-2", r"−2", True),
    (r"\sqrt{2}", r"1.41421356237309504880168872420969807856967", False),
    (r"\frac{x}{3}", r"0.33333333333333333333x", False),
    (r"\frac{x}{10}", r"0.1x", True),
    (r"0.1x+0.2x", r"0.3x", True),  # a decimal is no binary float
    (r"\sqrt{0.3}", r"\sqrt{\frac{3}{10}}", True),
    (r"0.3\pi", r"\frac{3\pi}{10}", True),
    (r"300000", r"3\times10^{5}", True),  # scientific notation is a value
    (r"0.5", r"x=1/2", True),
    (r"5", r"x_1=5", True),
    (r"(0.1,0.2)", r"(\frac{1}{10},\frac15)", True),
]


@pytest.fixture(scope="module")
def grader():
    verifier = MathAnswer()
    yield verifier
    verifier.close()


@pytest.fixture
def unstarted():
    """A grader whose pool must stay without a process."""
    verifier = MathAnswer()
    yield verifier
    assert verifier._pool.pids == (), "a plain answer started a grader process"
    verifier.close()


def boxed(answer):
    return f"<think>some thinking</think>So it is \\boxed{{{answer}}}."


@pytest.mark.parametrize(("gold", "answer", "same"), HARD_CASES + FURTHER_CASES)
def test_hard_case(grader, gold, answer, same):
    score = grader.score(boxed(answer), gold)
    expected = same != ((gold, answer) in STILL_DIFFERENT)
    assert score.correct is expected, score
    assert score.value == float(expected)
    assert score.verdict is not Verdict.SYSTEM_ERROR


@pytest.mark.parametrize(("gold", "answer", "same"), [row for row in HARD_CASES if row[:2] not in STILL_DIFFERENT])
def test_hard_case_is_symmetric(grader, gold, answer, same):
    assert grader.score(boxed(gold), answer).correct is same


def test_list_of_different_rows_names_rows_of_the_table():
    assert set(STILL_DIFFERENT) <= {(gold, answer) for gold, answer, _ in HARD_CASES}


@pytest.mark.parametrize(
    "text",
    [
        r"42",
        r"\boxed{}",
        r"\boxed{ }",
        r"\boxed{42",
        r"\boxed 42",
        r"\boxed{42} no, \boxed{7",  # an earlier box is no answer
        r"\boxed{42} no, \boxed{}",
        r"<think>\boxed{42}</think>I am done",  # nor is one in the thinking
        r"<think>\boxed{42}",
        r"<think>a</think>\boxed{42}<think>and on",
    ],
)
def test_no_answer_in_the_required_form_is_unparseable(unstarted, text):
    score = unstarted.score(text, "42")
    assert (score.verdict, score.value, score.correct) == (Verdict.UNPARSEABLE, 0.0, False)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{42}",
        r"<think>\boxed{1}</think>\boxed{42}",
        r"\boxed{1}, or rather \boxed{42}",
        r"\boxed{\boxed{42}}",
        r"\boxed{ 42 }",
        r"$\boxed{42}$ and more text } with braces {",
    ],
)
def test_the_last_box_after_the_thinking_is_the_answer(unstarted, text):
    assert unstarted.score(text, "42").correct


def test_without_boxes_the_text_after_the_thinking_is_the_answer():
    verifier = MathAnswer(MathAnswerConfig(answer_is_boxed=False))
    assert verifier.score("<think>0-2=8;8+2=0</think>9", "9").correct
    assert verifier.score("<think>9</think>", "9").verdict is Verdict.UNPARSEABLE
    assert not verifier.score("<think>a</think>9 or 8", "9").correct
    verifier.close()


@pytest.mark.parametrize("reference", ["9", 9, r"\boxed{9}", "$9$", " 9 ", r"\(9\)"])
def test_reference_may_be_wrapped(unstarted, reference):
    assert unstarted.score(r"\boxed{9}", reference).correct


@pytest.mark.parametrize("reference", ["", "  ", None, True, ["9"], {"answer": "9"}])
def test_bad_reference_is_the_data_s_fault(unstarted, reference):
    with pytest.raises(DataError, match="non-empty string or a number"):
        unstarted.score(r"\boxed{9}", reference)


@given(st.integers(-(10**40), 10**40), st.integers(-(10**40), 10**40))
def test_integers_are_compared_exactly_without_a_process(ours, theirs):
    verifier = MathAnswer()
    assert verifier.score(boxed(theirs), str(ours)).correct is (ours == theirs)
    assert verifier.score(boxed(ours), str(ours)).verdict is Verdict.CORRECT
    assert verifier.score(boxed(ours + 1), str(ours)).verdict is Verdict.WRONG
    assert verifier._pool.pids == ()


@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_are_compared_exactly_without_a_process(ours, theirs):
    verifier = MathAnswer()
    latex = f"\\frac{{{theirs.numerator}}}{{{theirs.denominator}}}"
    assert verifier.score(boxed(latex), str(ours)).correct is (Fraction(ours) == Fraction(theirs))
    assert verifier._pool.pids == ()


@pytest.mark.parametrize(
    "answer",
    ["9^{9^{9^9}}", "10^{10^{10}}", "((9!)!)!", "9**9**9", "(9^9)^{9^9}", "7^(8^(9))", "500!"]
    + ["(" * 33 + "1" + ")" * 33, "1+" * 256 + "1", "9" * 513],
)
def test_hostile_size_is_refused_without_a_process(unstarted, answer):
    assert unstarted.score(boxed(answer), "1").verdict is Verdict.UNPARSEABLE


@pytest.mark.parametrize(
    "answer", ["2^{10}", "2^{2^3}", "e^{x^{2}}", "400!", "2^{3}4", "((2^3)^4)^5", "1^{99999999}", "0^{0}", "x^{100000}"]
)
def test_ordinary_size_is_not_refused(answer):
    assert too_big(answer, AnswerLimits()) is None


def test_hostile_value_ends_at_the_deadline():
    verifier = MathAnswer(MathAnswerConfig(pool=GraderPoolConfig(size=1, deadline_seconds=2.0, tries=1)))
    for answer in (r"\binom{100000000}{50000000}", r"\prod_{k=1}^{10000000} k"):
        score = verifier.score(boxed(answer), "1")
        assert (score.verdict, score.value) == (Verdict.GRADER_TIMEOUT, 0.0)
    assert verifier.score(boxed(r"\sqrt{4}"), "2").correct, "the next answer is graded by a fresh worker"
    verifier.close()


@pytest.mark.parametrize("gold", ["5", r"\sqrt{5}"])
@pytest.mark.parametrize(
    "hedge",
    ["@,7", "7,@", "@;7", r"@ \text{ or } 7", "@ or 7", "7 or @", r"@ \quad 7", r"@\pm 2", r"@\\7", r"\{@,7\}", "7=@"]
    + [r"\text{7 or }@", r"@\text{ or }7\text{ or }8", "(@,@)", "@<7", r"\begin{cases}@\\7\end{cases}", "a=@,b=7"]
    + [r"\frac{0}{0}", r"\infty-\infty", "x", r"\mathbb{R}", r"\emptyset", r"\text{}", "@...7", "7@"],
)
def test_naming_several_values_or_none_does_not_pay(grader, gold, hedge):
    assert not grader.score(boxed(hedge.replace("@", gold)), gold).correct


def test_copying_the_question_is_wrong(unstarted):
    """Nor does it cost a process: else most answers of an unskilled policy would."""
    task, rng = ChainTask(), random.Random(0)
    problems = [task.problem(rng) for _ in range(60)]
    for problem in problems:
        score = unstarted.score(boxed(problem.text[:-1]), problem.reference)
        assert (score.verdict, score.value) == (Verdict.WRONG, 0.0), (problem, score)
        assert "not worked out" in score.note


@pytest.mark.parametrize("answer", ["2+5", "5+2=7", "7=7", "x=5+2", r"\left(9-2\right)", r"7\cdot 1", r"\frac{3+4}{1}"])
@pytest.mark.parametrize("gold", ["7", 7, "7.0", r"\frac{14}{2}", r"7\%"])
def test_a_number_is_not_answered_by_an_arithmetic(unstarted, gold, answer):
    assert unstarted.score(boxed(answer), gold).verdict is Verdict.WRONG


def test_an_expression_may_be_answered_by_an_arithmetic(grader):
    assert grader.score(boxed(r"1+2+\sqrt2"), r"3+\sqrt2").correct


def test_start_brings_up_one_process_that_the_first_answer_uses():
    verifier = MathAnswer()
    verifier.start()
    pids = verifier._pool.pids
    assert len(pids) == 1
    assert verifier.score(boxed(r"\sqrt{4}"), "2").correct
    assert verifier._pool.pids == pids
    verifier.close()
    verifier.start()  # as at a close while the run is still starting
    assert verifier._pool.pids == ()


def test_start_that_takes_too_long_is_an_error_and_so_are_the_scores():
    verifier = MathAnswer(MathAnswerConfig(pool=GraderPoolConfig(start_seconds=0.01)))
    with pytest.raises(RewardError, match=r"math_equivalence.*not ready within 0.01 seconds"):
        verifier.start()
    scores = [verifier.score(boxed(answer), "2") for answer in (r"\sqrt{4}", r"\sqrt{9}")]
    verifier.close()
    assert {score.verdict for score in scores} == {Verdict.SYSTEM_ERROR}
    assert len({score.note for score in scores}) == 1, "one reason is one note, whatever the answer"


def test_answer_is_never_run_as_python(grader, tmp_path):
    target = tmp_path / "owned"
    for code in (
        f'__import__("os").system("touch {target}")',
        f"\\text{{__import__('os').system('touch {target}')}}+1",
        f"eval(compile('open(\"{target}\",\"w\")','','exec'))",
        "().__class__.__base__.__subclasses__()",
    ):
        assert not grader.score(boxed(code), "1").correct
        assert not target.exists()


def test_threads_share_one_grader(grader):
    pairs = [(f"\\sqrt{{{n * n}}}", str(n)) for n in range(2, 10)] * 4
    with ThreadPoolExecutor(8) as threads:
        scores = list(threads.map(lambda pair: grader.score(boxed(pair[0]), pair[1]), pairs))
        wrong = list(threads.map(lambda pair: grader.score(boxed(pair[0] + "+1"), pair[1]), pairs))
    assert all(score.correct for score in scores)
    assert {score.verdict for score in wrong} == {Verdict.WRONG}
    assert len(grader._pool.pids) <= 2


def test_closed_grader_says_system_error_and_never_zero():
    verifier = MathAnswer()
    verifier.close()
    score = verifier.score(boxed(r"\sqrt{4}"), "2")
    assert score.verdict is Verdict.SYSTEM_ERROR
    assert score.value != score.value
    assert verifier.score(boxed("2"), "2").correct, "a plain number needs no process"


def test_limits_say_what_is_wrong():
    with pytest.raises(ConfigError, match="max_nesting"):
        AnswerLimits(max_nesting=0)
