r"""Whether two LaTeX answers mean the same: math-verify and sympy, with the rules that they lack.

Runs only inside a killable worker process (rewards.grader_pool): importing it costs most of a second, and a hostile
answer can make it hang or fill its memory. Built on math-verify 0.9 and latex2sympy2_extended 1.11; nothing that the
model wrote is ever evaluated as Python.

What is added, each because math-verify decides otherwise:
- A decimal is the number that it spells: 0.333333 is not 1/3 and 3.14159265 is not pi (it rounds to 6 digits).
- One answer unless the reference is several: `1,2` does not answer `1`.
- Brackets that both sides wrote count: the pair (1,2) is not the set {1,2}. So do units: 5 cm is not 5 m.
- An equation may be multiplied by a number: 2x+4=0 is x+2=0. The constant of integration may be C or K.
- An equation that is false, 7=5, is wrong, though its last side be right.
- `i` is the imaginary unit where it is the only symbol.
"""

from __future__ import annotations

import re
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
from latex2sympy2_extended.sets import FiniteSet
from math_verify.grader import is_assignment_relation, verify
from math_verify.parser import parse_latex_cached
from sympy import Basic, Eq, Float, I, MatrixBase, Rational, Tuple, simplify
from sympy import FiniteSet as SympyFiniteSet

_NORMALISATION = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)
_EXACT_DIGITS = 50  # where math-verify still compares numerically; its own are 6 and 15
# Symbols only: `5\text{ centimetres}` for `5\text{ cm}` is left to math-verify, which ignores units.
_UNIT_SYMBOL = "mm|cm|dm|m|km|in|ft|yd|mi|mg|g|kg|t|oz|lb|ms|s|min|h|hr|mL|L"
_UNIT = re.compile(rf"\d(?:\\[,;: ]|~|\s)*\\(?:text|mathrm|textrm)\s*\{{\s*({_UNIT_SYMBOL})\s*\}}(?:\^\{{?\d\}}?)?$")
_BRACKETS = re.compile(r"^(?:\\left\s*)?(\(|\[|\\\{).*?(?:\\right\s*)?(\)|\]|\\\})$", re.DOTALL)
_CONSTANT = re.compile(r"\+\s*[CK]\s*$")  # of integration


def compare(request: dict[str, str]) -> str:
    """Compare `request["answer"]` with `request["gold"]`.

    Returns:
        "correct", "wrong", or "unparseable" when the answer is no mathematics.
    """
    gold_text, answer_text = request["gold"], request["answer"]
    if _differ(_UNIT, gold_text, answer_text) or _differ(_BRACKETS, gold_text, answer_text):
        return "wrong"
    if _CONSTANT.search(gold_text):
        answer_text = _CONSTANT.sub("+C", answer_text)
        gold_text = _CONSTANT.sub("+C", gold_text)
    gold, answer = _parse(gold_text), _parse(answer_text)
    if answer is None:
        return "unparseable"
    return "correct" if gold is not None and _equal(gold, answer) else "wrong"


def _differ(pattern: re.Pattern[str], gold: str, answer: str) -> bool:
    """Both texts match the pattern, with different groups."""
    ours, theirs = pattern.search(gold.strip()), pattern.search(answer.strip())
    return ours is not None and theirs is not None and ours.groups() != theirs.groups()


def _parse(latex: str) -> Any:
    """A sympy object with exact numbers, or None."""
    try:
        return _exact(parse_latex_cached(normalize_latex(latex, config=_NORMALISATION)))
    except Exception:  # the parser raises whatever its grammar and sympy raise
        return None


def _exact(expression: Any) -> Any:
    """Every decimal replaced by the fraction that it spells, so that 0.1x+0.2x is 0.3x and 0.333333 is not 1/3."""
    if isinstance(expression, MatrixBase):
        return expression.applyfunc(_exact)
    if not isinstance(expression, Basic):
        return expression
    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _equal(gold: Any, answer: Any) -> bool:
    if _is_several(answer) and not (_is_several(gold) or _has_two_ends(gold)):
        return False
    if _is_false(answer):
        return False
    gold, answer = _with_imaginary_unit(gold, answer)
    if verify(
        gold,
        answer,
        float_rounding=_EXACT_DIGITS,
        numeric_precision=_EXACT_DIGITS,
        allow_set_relation_comp=True,
        timeout_seconds=None,  # the pool's deadline is the only one
    ):
        return True
    return _same_equation(gold, answer)


def _is_several(value: Any) -> bool:
    if isinstance(value, Eq):  # x=\pm2
        value = value.rhs
    return isinstance(value, (FiniteSet, SympyFiniteSet, Tuple)) and len(value.args) > 1


def _has_two_ends(value: Any) -> bool:
    """`(1,2)` is read as an interval, and may have meant the pair."""
    return hasattr(value, "start") and hasattr(value, "end")


def _is_false(value: Any) -> bool:
    """An equation between two different numbers: `7=5` answers nothing."""
    return isinstance(value, Eq) and not _symbols(value) and simplify(value.lhs - value.rhs) != 0


def _symbols(*values: Any) -> set[Any]:
    return set().union(*(getattr(value, "free_symbols", set()) for value in values))


def _with_imaginary_unit(gold: Any, answer: Any) -> tuple[Any, Any]:
    symbols = _symbols(gold, answer)
    if {str(symbol) for symbol in symbols} != {"i"}:
        return gold, answer
    unit = dict.fromkeys(symbols, I)
    return tuple(value.subs(unit) if isinstance(value, Basic) else value for value in (gold, answer))


def _same_equation(gold: Any, answer: Any) -> bool:
    """One equation is the other times a number that is not 0; `x=5` and `y=5` name different things and stay apart."""
    if not (isinstance(gold, Eq) and isinstance(answer, Eq)):
        return False
    if is_assignment_relation(gold) and is_assignment_relation(answer):
        return False
    ratio = simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)
