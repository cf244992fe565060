"""Which strings are numerals, and of what value."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.numerals import is_arithmetic, parse_numeral


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
        ("0.(3)", Fraction(1, 3)),
        (r"0.\dot{3}", Fraction(1, 3)),
        (r"3\times10^5", 300000),
        (r"1.5 \cdot 10^{-3}", Fraction(3, 2000)),
        ("2^{10}", 1024),
        ("-2^{-2}", Fraction(-1, 4)),
        ("(5)", 5),
    ],
)
def test_numeral(text, value):
    assert parse_numeral(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "-", ".", "--1", "1 2", "3,14", "1,00", "0,001", "1,0000", "1_000", "٣", "²", "1e999", "0x10", "nan", "1/0"]
    + [
        "inf",
        "x",
        "1+1",
        r"\frac{1}{0}",
        r"1\frac{-1}{2}",
        r"\frac{x}{2}",
        "1/2/3",
        "1" * 1001,
        "0^0",
        "0^{-1}",
        "9^{9999}",
        "(1)(2)",
    ],
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


@pytest.mark.parametrize(
    "text",
    ["3+2-1", "0-1", "3 - (-1)", "3--1", "4-0.0", "3+.5", "12.5/2.5", "1/2/3", "3!-2", "|3|+|1|", "3+0x+1", "5−2"]
    + ["(3+2-1)", "{3}+{1}", "3{{}}+1", r"\left(3+1\right)", r"\frac{3+1}{1}", r"\sqrt{(3+1)^2}", r"3+\sqrt{1}"]
    + [r"3\text{ }+1", r"\text{3}+1", r"3+\mbox{1}", r"\$3+\$1", r"10\%+5", r"3\,+\,1", r"2\times10^5+1"]
    + [
        r"3\cdot 2",
        r"6\div1",
        r"7\mod 5",
        "5=5",
        "5+2=7",
        "7=5+2",
        "x=3+1",
        r"\int_0^3 1\,dx",
        r"\gcd(6,9)",
        "x=5=3+2",
        r"5\equiv5",
        r"\sqrt{49}=7",
    ],
)
def test_arithmetic_that_is_not_worked_out(text):
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    ["5", "-(-5)", "1e3", "1/2", "-1/2", "(1/2)", "x=1/2", "x=5", "x_1=5", "f(2)=5", "1:2", "1,2", "6_{7}", "10!"]
    + [r"\frac{1}{2}", r"\frac{3}{-1.5}", r"-\frac{7}{3}", r"2\frac{1}{3}", r"10\%", r"\pm2", r"1/2\text{ cm}"]
    + ["10^{3}", "2^{-1}", r"3\times10^{5}", r"1.5 \cdot 10^{-3}", r"\sqrt{16}", r"2\sqrt{4}", r"\sqrt[3]{8}"]
    + [
        r"\log_{2}(8)",
        r"\sin(\pi/6)",
        r"\cos^2x+\sin^2x",
        r"e^{i\pi}",
        "i^2",
        "",
        "+",
        "=",
        "=5",
        r"\theta=5",
        r"\alpha_1=5",
    ],
)
def test_value_in_closed_form_is_no_arithmetic(text):
    assert not is_arithmetic(text)


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.sampled_from(["+", "-", "*", r"\cdot ", "="]))
def test_numerals_joined_by_an_operator_are_arithmetic_and_each_alone_is_not(numerals, operator):
    assert is_arithmetic(operator.join(map(str, numerals)))
    assert not any(is_arithmetic(str(numeral)) for numeral in numerals)
