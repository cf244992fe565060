"""The math verifier: where an answer is, what needs no process, and hostile answers. Pairs: test_math_pairs.py."""

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


def test_a_bad_reference_of_any_size_is_told_in_one_sentence(unstarted):
    with pytest.raises(DataError) as told:
        unstarted.score(r"\boxed{9}", {"repository": {"main.py": "x = 1\n" * 10_000}})
    assert "repository" in str(told.value)
    assert len(str(told.value)) < 500


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
    for answer in (r"\binom{100000000}{50000000}", r"\binom{1000000}{500000}+\sqrt{2}"):
        score = verifier.score(boxed(answer), r"\sqrt{2}")
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


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        (r"\{1,2\}", r"\{1\},\{2\}", False),
        (r"1,2", r"\{1\},\{2\}", False),
        (r"\{\{1\},\{2\}\}", r"\{1,2\}", False),
        (r"\{1\},\{2\}", r"\{2\},\{1\}", True),
        (r"(1,2),(3,4)", r"\{1,2\},\{3,4\}", False),
        (r"(1,2),(3,4)", r"(3,4),(1,2)", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"1,-2", r"1,(-2)", True),
        ("1,1,2", "1,2", False),
        ("1,1,2", "1,2,2", False),
        ("1,2,3", "1,2,3,3", False),
        ("1,1,2", "2,1,1", True),
        (r"\{1,1,2\}", r"\{1,2\}", True),  # a set is one whatever is written twice
        (r"\angle ABC", r"\angle BCA", False),
        (r"\angle ABC", r"\angle CBA", True),
    ],
)
def test_form_counts_where_a_parser_would_flatten_it(grader, gold, answer, is_right):
    assert grader.score(rf"\boxed{{{answer}}}", gold).correct is is_right
