"""Outputs and values are the same when the mode says so, and hostile text is never a value."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.code_compare import Tolerance, same_output, same_value
from rewards.code_encoding import Refused, decode, encode
from rewards.code_harness import literal


@pytest.mark.parametrize(
    ("printed", "expected", "modes"),
    [
        (b"1 \r\n2\t\n\n", "1\n2", {"lines", "tokens", "floats", "unordered"}),
        (b"1\n\n2", "1\n2", {"tokens", "floats"}),
        (b" 1", "1", {"tokens", "floats"}),
        (b"", "\n", {"lines", "tokens", "floats", "unordered"}),
        (b"1\n2", "1\n2", {"lines", "exact", "tokens", "floats", "unordered"}),
        (b"2\n1", "1\n2", {"unordered"}),
        (b"2\n2\n1", "1\n2\n1", set()),
        (b"0.50000001", "0.5", {"floats"}),
        (b"1e3", "1000.0", {"floats"}),
        (b"3", "3.0", {"floats"}),
        (b"3.0", "3", set()),
        (b"3.0000001", "3", set()),
        (b"NaN inf", "nan inf", {"floats"}),
        (b"-inf", "inf", set()),
        (b"1e400", "1.5", set()),
        (b"1_0.0", "10.0", set()),
        (b"yes 0.1", "no 0.1", set()),
        (b"\xff", "1.0", set()),
    ],
)
def test_outputs(printed, expected, modes):
    assert {
        mode for mode in ("lines", "exact", "tokens", "floats", "unordered") if same_output(printed, expected, mode)
    } == modes


@pytest.mark.parametrize(
    ("got", "expected", "modes"),
    [
        (1, 1.0, {"equal", "json"}),
        (True, 1, {"equal"}),
        ((1, 2), [1, 2], {"json"}),
        ({1: (2,)}, {"1": [2]}, {"json"}),
        ([1, [True]], [1, [1]], {"equal"}),
        (math.nan, math.nan, {"exact", "json"}),
        ({1, 2}, {2, 1}, {"exact", "equal", "json"}),
        ("1", 1, set()),
        (None, 0, set()),
        (10**400, 1.0, set()),
    ],
)
def test_values(got, expected, modes):
    assert {mode for mode in ("exact", "equal", "json") if same_value(got, expected, mode)} == modes


def test_tolerance_is_for_floats_only():
    near = Tolerance(absolute=1e-3)
    assert same_value([1.0, {"a": (2.0005,)}], [1.0004, {"a": (2.0,)}], "exact", near)
    assert not same_value([1.0], [1.01], "exact", near)
    assert not same_value(1, 1.0, "exact", near)
    assert not same_value(2, 1, "equal", Tolerance(10, 10))
    assert not same_value(10**400, 1.0, "equal", near)
    assert not same_value(math.inf, 1.0, "exact", Tolerance(math.inf, 0)) and same_value(
        math.inf, math.inf, "exact", near
    )


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


def typed(value):
    """An independent notion of "the same": the value with the types of everything in it."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(typed, value))
    if isinstance(value, dict):
        return dict, frozenset((typed(key), typed(item)) for key, item in value.items())
    return type(value), value


@given(plain, plain)
def test_the_encoding_is_equal_exactly_when_type_and_value_are(left, right):
    assert (encode(left) == encode(right)) == (typed(left) == typed(right))
    assert same_value(left, right) == (typed(left) == typed(right))
    assert typed(decode(encode(left))) == typed(left) == typed(literal(ascii(left)))


@pytest.mark.parametrize(
    "value", [2**70, -(2**5000), "\ud800", "\U0001f600", {frozenset({1})}, [[], ()], -0.5, math.inf]
)
def test_rare_values_come_back(value):
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    "text",
    ["", "nan", "NaN", "1.5", "[" * 100_000, '{"f": "x"}', '{"q": 1}', '{"f": "1", "i": "2"}', '{"s": [[1]]}', "exit()",
     '{"i": 5}', '{"u": [1e9]}', '{"u": [99999999999]}', '{"o": [1]}', '{"b": "z"}', "9" * 5000, "{}", '{"t": 1}'],
)  # fmt: skip
def test_hostile_text_is_no_value(text):
    with pytest.raises(ValueError, match="not an encoded value"):
        decode(text)


def test_what_is_no_plain_data_is_refused():
    knot = []
    knot.append(knot)
    for value in (knot, object(), type("I", (int,), {})(5), len, 1j):
        with pytest.raises(Refused):
            encode(value)
    assert encode(iter([1, 2])) == encode(map(int, "12")) == encode(range(1, 3)) != encode([1, 2])


def test_a_forged_value_deeper_than_any_is_no_value_like_others():
    """`encode` writes none of these, but whoever forges a line may: it must not end the run."""
    for depth in (60, 70, 120):
        key = '{"t":[' * depth + "1" + "]}" * depth
        for text in (f'{{"d":[[{key},1]]}}', f'{{"s":[{key}]}}', '{"d":[[{"y":[1]},{"f":"1"}]]}'):
            for expected in ({"a": 1.0}, {1}):
                try:
                    assert not same_value(decode(text), expected, "exact", Tolerance(1.0))
                except ValueError:
                    continue
