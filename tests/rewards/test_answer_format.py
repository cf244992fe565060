"""The required form, text by text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answer_format import answer_text, last_box, well_formed


@pytest.mark.parametrize(
    ("text", "boxed", "plain"),
    [
        (r"<think>a</think>\boxed{1}", 1.0, 1.0),
        (r"\boxed{1}", 1.0, 1.0),  # no think block is allowed
        (r"<think></think>\boxed{1}", 1.0, 1.0),
        ("<think>a</think>print(1)", 0.0, 1.0),
        ("<think>a</think>", 0.0, 0.0),
        ("<think>a</think> \n", 0.0, 0.0),
        ("", 0.0, 0.0),
        (r"<think>\boxed{1}", 0.0, 0.0),
        (r"a</think>\boxed{1}", 0.0, 0.0),
        (r"</think>a<think>\boxed{1}", 0.0, 0.0),
        (r"<think>a</think><think>b</think>\boxed{1}", 0.0, 0.0),
        (r"<think>a<think>b</think></think>\boxed{1}", 0.0, 0.0),
        (r"<think>\boxed{1}</think>it is 1", 0.0, 1.0),
        (r"<think>a</think>\boxed{1", 0.0, 1.0),
        (r"<think>a</think>\boxed{}", 0.0, 1.0),
    ],
)
def test_form(text, boxed, plain):
    assert well_formed(text, boxed=True) == boxed
    assert well_formed(text, boxed=False) == plain


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),  # an escaped brace opens nothing
        (r"\boxed{a\\}", r"a\\"),  # a line break, then the end
        (r"\boxed {5}", "5"),
        (r"\boxed{1}\boxed{2}", "2"),
        (r"\boxed", None),
        (r"\boxed{a\}", None),
    ],
)
def test_box(answer, box):
    assert last_box(answer) == box


def test_answer_stands_after_the_last_think_block():
    assert answer_text("<think>a</think>b</think> c ") == "c"
    assert answer_text("a</think>b<think>c") is None
    assert answer_text(" plain ") == "plain"


@given(st.text(alphabet="ab {}\\<", max_size=30), st.text(alphabet="ab +1", min_size=1).filter(str.strip))
def test_box_is_found_whatever_stands_before_it(before, content):
    assert last_box(f"{before} \\boxed{{{content}}}") == content.strip()
