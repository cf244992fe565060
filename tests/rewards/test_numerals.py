"""Which strings are numerals, and of what value."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.numerals import parse_numeral


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("0.0", 0),
        ("03", 3),
        ("- 1", -1),
        ("+3", 3),
        ("−2", -2),
        ("3.00", 3),
        ("12.", 12),
        (".5", Fraction(1, 2)),
        ("1,000", 1000),
        ("1{,}000", 1000),
        (r"1\,000", 1000),
        (r"1,\!000,\!000", 1000000),
        ("1,234.5", Fraction(2469, 2)),
        ("1e3", 1000),
        ("2.5E-1", Fraction(1, 4)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac34", Fraction(3, 4)),
        (r"-\tfrac{6}{8}", Fraction(-3, 4)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"1\frac12", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"2.\overline{142857}", Fraction(15, 7)),
    ],
)
def test_numeral(text, value):
    assert parse_numeral(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "-", ".", "--1", "1 2", "3,14", "1,00", "0,001", "1,0000", "1_000", "٣", "²", "1e999", "0x10", "nan", "1/0"]
    + ["inf", "x", "1+1", r"\frac{1}{0}", r"1\frac{-1}{2}", r"\frac{x}{2}", "1/2/3", "1" * 1001],
)
def test_no_numeral(text):
    assert parse_numeral(text) is None


@given(st.fractions())
def test_fraction_reads_back(value):
    assert parse_numeral(str(value)) == value
    assert parse_numeral(f"\\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=6))
def test_decimal_reads_back_exactly(value):
    assert parse_numeral(f"{value:f}") == Fraction(value)
