"""The logic verifier by itself, without reasoning-gym: where answers are, forms, rules, bad references."""

import pytest

from cispo.errors import ConfigError, DataError
from cispo.types import Verdict
from rewards import logic_forms as forms
from rewards import logic_rules as rules
from rewards.answer_format import marked_answer, well_formed
from rewards.logic import LogicAnswer, LogicAnswerConfig, check_reference
from rewards.logic_rules import Puzzle
from rewards.reward import RewardsConfig

LOGIC = LogicAnswer()
GCD = {"task": "gym/gcd", "answer": "12"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{4}", "4"),
        (r"so \boxed{ 4 } it is", "4"),
        ("<answer>4</answer>", "4"),
        ("<answer>\n1 2\n3 4\n</answer>", "1 2\n3 4"),
        (r"\boxed{3}, no: <answer>4</answer>", "4"),
        (r"<answer>3</answer>, no: \boxed{4}", "4"),
        (r"<answer>\boxed{4}</answer>", "4"),
        (r"<answer>3</answer> <answer>4", None),
        (r"\boxed{3} <answer>4", None),
        (r"<answer>3</answer> \boxed{4", None),
        (r"<answer> </answer>", None),
        (r"\boxed{3} <answer></answer>", None),
        ("4", None),
    ],
)
def test_the_last_mark_counts_and_no_other(text, found):
    assert marked_answer(text) == found
    assert well_formed(f"<think>x</think>{text}", boxed=False, marked=True) == float(found is not None)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (r"\boxed{12}", Verdict.CORRECT),
        (r"<think>maybe 5</think>\boxed{12}", Verdict.CORRECT),
        (r"\boxed{12.0}", Verdict.CORRECT),
        (r"\boxed{+12}", Verdict.CORRECT),
        (r"\boxed{$12$}", Verdict.CORRECT),
        (r"\boxed{13}", Verdict.WRONG),
        (r"\boxed{24/2}", Verdict.WRONG),
        (r"\boxed{12 13}", Verdict.UNPARSEABLE),
        (r"\boxed{6+6}", Verdict.UNPARSEABLE),
        (r"\boxed{twelve}", Verdict.UNPARSEABLE),
        (r"<think>\boxed{12}", Verdict.UNPARSEABLE),
        (r"<think>\boxed{12}</think>", Verdict.UNPARSEABLE),
        ("12", Verdict.UNPARSEABLE),
        ("", Verdict.UNPARSEABLE),
        (r"\boxed{" + "1" * 4097 + "}", Verdict.UNPARSEABLE),
    ],
)
def test_a_number(text, verdict):
    score = LOGIC.score(text, GCD)
    right = verdict is Verdict.CORRECT
    assert (score.verdict, score.correct, score.value, score.parts) == (verdict, right, right, {"answer": right})


@pytest.mark.parametrize(
    ("same", "gold", "right", "wrong"),
    [
        (forms.same_text, "1 2\n3 4", ["1  2\n 3 4 ", "1 2\n\n3 4"], ["1 2 3 4", "1 2\n3 4\n5", "1 2\n3", "1,2\n3,4"]),
        (forms.same_text, "aB", ["aB"], ["ab", "aBc"]),
        (forms.same_words, "Yes", ["yes", "YES.", r"\text{Yes}"], ["yes yes", "y", "no", "yes, no"]),
        (forms.same_letters, "(1.5, -2)", ["(1.5,-2)", "( 1.5 , -2 )"], ["(1.5, 2)", "1.5, -2", "(1.5, -2)."]),
        (forms.same_letters, "64.03°", ["64.03", "64.03 °"], ["64.04", "6403"]),
        (forms.same_number, "0.25", ["1/4", ".25", "0.250", "2.5e-1"], ["0.2500001", "1/3"]),
        (forms.same_number, "1000", ["1,000", "1e3"], ["1000.5", "2000/2", "-1000"]),
        (forms.same_to_three_digits, "1.7574e-22", ["1.76e-22", "1.7574418e-22"], ["1.75e-22", "1.76e-21"]),
        (forms.same_hexadecimal, "-0x3f", ["-0x3F", "-0x03f"], ["0x3f", "-0x3"]),
        (forms.same_complex, "-9.0 - 8.0i", ["-9-8i", "-9.00 - 8 i", "-9 - 8*i"], ["-9 + 8i", "9 - 8i"]),
        (forms.same_reduced_fraction, "$244/607$", [r"\frac{244}{607}", "244/607"], ["488/1214", "244/608", "0"]),
        (forms.same_items, "a, b, C", ["a,b,C", "[a, b, C]", "['a', 'b', 'C']"], ["a, C, b", "a, b", "a b C"]),
        (forms.same_numbers, "['3.0', '-1']", ["[3, -1.0]", "3,-1"], ["[-1, 3]", "[3]", "[3, -1, 0]"]),
        (forms.same_factors, "2 × 2 × 5", ["5*2*2", r"2 \times 2 \times 5", "2x2x5"], ["4 × 5", "2 × 5", "20"]),
        (forms.same_json, "[1, true]", ["[1,true]"], ["[1, 1]", "[1.0, true]", "[true, 1]"]),
        (forms.same_groups, '[["ab", "ba"], ["c"]]', ['[["c"],["ba","ab"]]'], ['[["ab","ba","c"]]', '[["ab","ba"]]']),
        (forms.same_set_of_lists, '[["a"], ["b", "c"]]', ['[["b","c"],["a"]]'], ['[["c","b"],["a"]]']),
        (
            forms.same_antiderivative,
            "-9*x**8/10 + 3*x**4/2 + C",
            ["3*x**4/2 - 9*x**8/10 + C", "C + 3/2*x^4 - 9*x^8/10", "-9*x**8/10 + 3*x**4/2"],
            ["-9*x**8/10 + C", "9*x**8/10 + 3*x**4/2 + C", "-9*x**8/10 + 3*x**4/2 + x + C"],
        ),
    ],
)
def test_a_form_takes_other_spellings_and_nothing_else(same, gold, right, wrong):
    for answer in (gold, *right):
        assert same(answer, gold), answer
    for answer in wrong:
        assert not same(answer, gold), answer


@pytest.mark.parametrize(
    ("same", "gold", "answer"),
    [
        (forms.same_number, "4", "four"),
        (forms.same_to_three_digits, "4", "1e9999999"),
        (forms.same_hexadecimal, "0x3", "3"),
        (forms.same_complex, "1.0 + 2.0i", "i"),
        (forms.same_reduced_fraction, "1/2", "0.5"),
        (forms.same_numbers, "[1]", "[__import__('os')]"),
        (forms.same_factors, "2 × 3", "2 × (3)"),
        (forms.same_json, "[1]", "[NaN]"),
        (forms.same_json, "[1]", "[" * 100_000),
        (forms.same_groups, "[[]]", "[1]"),
        (forms.same_antiderivative, "x + C", "(x) + C"),
        (forms.same_antiderivative, "x + C", "x + x + C"),
        (forms.same_antiderivative, "x + C", "x**9**9**9"),
        (forms.same_antiderivative, "x + C", "x/0"),
    ],
)
def test_another_form_is_unreadable(same, gold, answer):
    with pytest.raises(forms.Unreadable):
        same(answer, gold)


PUZZLES = {
    "countdown": (
        rules.makes_target,
        Puzzle("42*(30 - 4 - 23)", {"numbers": [30, 23, 42, 4], "target": 126}),
        ["(30-23-4)*42", "42 × (30 − 4 − 23)", "-(4+23-30)*42"],
        ["126", "42*3", "42*(30-4-23)+0", "42*(30-4-23)*1", "30+23+42+4", "(30-30)/(23-23)*42*4", "42/(4-4)*30*23"],
        ["42*(30-4-23)=126", "max(42,3)", "42**1", "", "(42", "42)", "--", "4 2", "9" * 20, "(" * 40 + "1" + ")" * 40],
    ),
    "cryptarithm": (
        rules.solves_cryptarithm,
        Puzzle("", {"words_letters": ["KJD", "DZZ"], "result_letters": "CKYK", "allow_leading_zero": False}),
        ["C=1,D=9,J=6,K=4,Y=2,Z=5", "Z = 5, K=4 ,C=1,D=9,J=6,Y=2"],
        ["C=1,D=9,J=6,K=4,Y=2,Z=6", "C=1,D=9,J=6,K=4,Y=2", "C=0,D=0,J=0,K=0,Y=0,Z=0", "C=1,D=9,J=6,K=4,Y=2,Z=5,X=3"],
        ["C=1", "C:1,D:9", "C=1,C=2", "C=10,D=9"][1:],
    ),
    "kakurasu": (
        rules.solves_kakurasu,
        Puzzle("", {"row_sums": [5, 3], "col_sums": [1, 0, 2, 1]}),
        ["1 0 0 1\n0 0 1 0"],
        ["1 0 0 1\n0 0 0 0", "5 0 0 0\n0 0 1 0"],
        ["1 0 0 1", "1001\n0010", "a b c d\n0 0 1 0"],
    ),
    "survo": (
        rules.solves_survo,
        Puzzle("", {"puzzle": [[2, 0, 5], [0, 4, 9], [7, 7, 14]], "candidate_numbers": [3, 5]}),
        ["2 3 5\n5 4 9\n7 7 14"],
        ["2 3 5\n3 4 9\n7 7 14", "2 5 5\n3 4 9\n7 7 14", "1 4 5\n6 3 9\n7 7 14"],
        ["2 3 5"],
    ),
    "queens": (
        rules.solves_queens,
        Puzzle("_ Q _ _\n_ _ _ Q\nQ _ _ _\n_ _ Q _", {"puzzle": [list("_Q__"), *[list("____")] * 3]}),
        ["_ Q _ _\n_ _ _ Q\nQ _ _ _\n_ _ Q _"],
        ["_ _ Q _\nQ _ _ _\n_ _ _ Q\n_ Q _ _", "_ Q _ _\n_ _ _ Q\nQ _ _ _\n_ _ _ _", "Q Q Q Q" + "\n_ _ _ _" * 3],
        ["Q", "[['_']]"],
    ),
    "way": (
        rules.finds_way,
        Puzzle("right right down", {"matrix": [["*", "O", "O"], ["X", "O", "#"]]}),
        ["right right down", "right down right", "Right, down, right"],
        ["down right right", "right", "right right down up down", "left right right down", "infeasible"],
        ["east", "rd"],
    ),
    "no way": (
        rules.finds_way,
        Puzzle("infeasible", {"matrix": [["*", "X", "#"]]}),
        ["infeasible", "Infeasible."],
        ["right right", "infeasible or not", ""],
        [],
    ),
    "tower": (
        rules.moves_tower,
        Puzzle("", {"num_disks": 2, "num_pegs": 3, "start_peg": 1, "target_peg": 3, "solution_length": 3}),
        ["Move disk 1 from Peg 1 to Peg 2\nMove disk 2 from Peg 1 to Peg 3\nMove disk 1 from Peg 2 to Peg 3"],
        [
            "Move disk 2 from Peg 1 to Peg 3",
            "Move disk 1 from Peg 1 to Peg 3\nMove disk 2 from Peg 1 to Peg 3",
            "Move disk 1 from Peg 1 to Peg 9",
            "Move disk 1 from Peg 1 to Peg 2",
            "Move disk 1 from Peg 1 to Peg 3\nMove disk 1 from Peg 3 to Peg 2\nMove disk 2 from Peg 1 to Peg 3\n"
            "Move disk 1 from Peg 2 to Peg 3",
        ],
        ["Move disk 1 from Peg 1 to Peg 2 and win", "done"],
    ),
    "jugs": (
        rules.fills_jug,
        Puzzle("", {"puzzle": {"jug_capacities": [3, 5], "target": 2, "min_moves": 2}}),
        ['["fill B", "pour B->A"]', '["fill B", "empty A", "pour B -> A"]'],
        ['["fill B"]', '["fill C"]', "[]", '["pour A->A"]', '["fill B", "pour B->A"' + ', "empty A"' * 7 + "]"],
        ['["drink B"]', "fill B", "[1]", '"fill B"'],
    ),
    "lock": (
        rules.opens_lock,
        Puzzle(
            "",
            {
                "buttons": [
                    {"name": "A", "type": "add", "value": 1, "active_state": "any"},
                    {"name": "B", "type": "multiply", "value": 3, "active_state": "green"},
                ],
                "initial_state": "red",
                "initial_value": 1,
                "target_value": 6,
                "solution_path": ["A", "B"],
            },
        ),
        ["A → B", "A->B", r"A \to B"],
        ["B → A", "A", "A → B → B", "A → A → A → A → A"],
        ["AB", "ABRACADABRA", "C"],
    ),
    "palindrome": (
        rules.is_palindrome,
        Puzzle("", {"letters": list("abab")}),
        ["abba", "BAAB"],
        ["abab", "aba", "", "abba abba"],
        [],
    ),
    "knights": (
        rules.tells_who_is_who,
        Puzzle("Riley is an altruist, and Mia is an egoist."),
        ["Mia is an egoist, and Riley is an altruist", "riley is a altruist and mia is a egoist."],
        ["Riley is an altruist", "Riley is an egoist and Mia is an egoist", "Mia is an egoist and Mia is an egoist"],
        ["Riley altruist, Mia egoist", "both", "Riley is an altruist/egoist, and Mia is an altruist/egoist"],
    ),
    "coins": (
        rules.is_probability,
        Puzzle("3.051757812e-05", {"rational": {"numerator": 1, "denominator": 32768}}),
        ["1/32768", "0.000030517578125", "3.051757812e-05"],
        ["0", "0.00003", "1/32767"],
        ["small"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUZZLES)
def test_rules(name):
    solves, puzzle, right, wrong, unreadable = PUZZLES[name]
    for answer in right:
        assert solves(answer, puzzle), answer
    for answer in wrong:
        assert not solves(answer, puzzle), answer
    for answer in unreadable:
        with pytest.raises(forms.Unreadable):
            solves(answer, puzzle)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("12", "must be"),
        (None, "must be"),
        ({"task": "gym/nothing", "answer": "1"}, "'gym/nothing' is none"),
        ({"answer": "1"}, "'gym/None' is none"),
        ({"task": ["gym/gcd"], "answer": "1"}, "is none"),
        ({"task": "gym/gcd", "answer": ""}, "non-empty string"),
        ({"task": "gym/gcd", "answer": 12}, "non-empty string"),
        ({"task": "gym/gcd", "answer": "many"}, "its own answer raised ValueError"),
        ({"task": "gym/gcd", "answer": "1", "metadata": [1]}, "must be an object"),
        ({"task": "gym/countdown", "answer": "1+2"}, "KeyError"),
        ({"task": "gym/countdown", "answer": "1+2", "metadata": {"numbers": [1, 2], "target": 4}}, "does not solve it"),
    ],
)
def test_a_reference_that_cannot_be_used_is_a_fault_of_the_data(reference, said):
    with pytest.raises(DataError, match=said):
        check_reference(reference)
    if "does not solve" not in said:  # what another answer would tell, a run must not find out by crashing later
        with pytest.raises(DataError, match=said):
            LOGIC.score(r"\boxed{1+1}", reference)


def test_a_small_limit_refuses_long_answers_but_never_the_gold():
    small = LogicAnswer(LogicAnswerConfig(max_characters=2))
    assert small.score(r"\boxed{0000000012}", GCD).verdict is Verdict.UNPARSEABLE
    assert small.score(r"\boxed{123456}", {"task": "gym/gcd", "answer": "123456"}).correct
    with pytest.raises(ConfigError, match="max_characters"):
        LogicAnswerConfig(max_characters=0)


def test_tasks_that_only_this_verifier_knows_need_not_be_told_so():
    config = RewardsConfig(default_verifier="math", verifiers={"gym/lcm": "math"})
    names = ["gym/gcd", "game24", "gym/lcm", "chain"]
    assert [config.verifier_of(name) for name in names] == ["logic", "logic", "math", "math"]
