r"""Whether two LaTeX answers mean the same: math-verify and sympy, with the rules that they lack.

Runs only inside a killable worker process (rewards.grader_pool): importing it costs most of a second, and a hostile
answer can make it hang or fill its memory. Built on math-verify 0.9 and latex2sympy2_extended 1.11; nothing that the
model wrote is ever evaluated as Python.

What is added, each because math-verify decides otherwise:
- A decimal is the number that it spells: 0.333333 is not 1/3 and 3.14159265 is not pi (it rounds to 6 digits).
- One answer unless the reference is several: `1,2` does not answer `1`.
- Brackets that both sides wrote count: the pair (1,2) is not the set {1,2}, and {1},{2} are two sets. So do units:
  5 cm is not 5 m. So does how often a list names a member: 1,1,2 is not 1,2,2.
- An equation may be multiplied by a number: 2x+4=0 is x+2=0. The constant of integration may be C or K.
- An equation that is false, 7=5, is wrong, though its last side be right. So is one that names nothing: 2x+3y=6 does
  not answer 6.
- Inequalities and intervals are compared as sets of real numbers: |x|<2, -2<x<2 and (-2,2).
- `i` is the imaginary unit where it is the only symbol. Degrees count inside trigonometric functions.
"""

from __future__ import annotations

import re
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet
from math_verify.grader import is_assignment_relation, is_relation, unwrap_fcs, verify
from math_verify.parser import parse_latex_cached
from sympy import (
    Basic,
    Complement,
    Derivative,
    Eq,
    Expr,
    Float,
    I,
    Intersection,
    Interval,
    MatrixBase,
    Mul,
    Pow,
    Rational,
    Set,
    Tuple,
    Union,
    oo,
    simplify,
)
from sympy import FiniteSet as SympyFiniteSet
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from rewards.math_listings import Listing, closing_index, listed_otherwise, listing, same_members
from rewards.units import split_unit, units_differ

_NORMALISATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_EXACT_DIGITS = 50  # where math-verify still compares numerically; its own are 6 and 15
_ANY_CONSTANT = r"(?:\\text\s*\{\s*(?:[CcKk]|[Cc]onst(?:ant)?)\.?\s*\}|[CcKk](?:_\{?\d\}?)?)"
_CONSTANT = re.compile(rf"\+\s*({_ANY_CONSTANT})\s*$|^\s*({_ANY_CONSTANT})\s*\+")  # of integration
_LETTER_AS_TEXT = re.compile(r"\\text\s*\{\s*([A-Za-z])\s*\}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\\circ")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_UPPER, _LOWER = re.compile(r"\\pm(?![A-Za-z])"), re.compile(r"\\mp(?![A-Za-z])")
_INNER_SIGN = re.compile(r"(?<!\\)\{[^{}]*\\(?:pm|mp)(?![A-Za-z])")
_OR = re.compile(r"\\text\s*\{\s*,?\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])")
_ANGLE = re.compile(r"\\angle\s*([A-Z]{3})")  # named by three points; to a parser a product
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)(?![A-Za-z])")
_WITHOUT = re.compile(r"\\(?:setminus|smallsetminus|backslash)(?![A-Za-z])")
_MEMBER_OF = re.compile(r"^\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*\\in(?![A-Za-z])")
_SET_OF = re.compile(
    r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{R\}|\\in\s*\\mathbb\s*R)?\s*(?:\\mid(?![A-Za-z])|\||:)(.+)\\\}",
    re.DOTALL,
)
_POINTS = (
    Rational(17, 7),
    Rational(-23, 11),
    Rational(5, 13),
    Rational(-3, 19),
    Rational(31, 9),
    Rational(-41, 6),
    Rational(67, 71),
)
_MIN_POINTS = 4
_BOUNDS = {
    "<": lambda end: Interval.open(-oo, end),
    "<=": lambda end: Interval(-oo, end),
    ">": lambda end: Interval.open(end, oo),
    ">=": lambda end: Interval(end, oo),
}


def compare(request: dict[str, str]) -> str:
    """Compare `request["answer"]` with `request["gold"]`, both tidied (rewards.math_notation).

    Returns:
        "correct", "wrong", or "unparseable" when the answer is no mathematics.
    """
    (gold, our_unit), (answer, their_unit) = split_unit(request["gold"]), split_unit(request["answer"])
    gold, answer = _with_equal_constants(_prepared(gold), _prepared(answer))
    if units_differ(our_unit, their_unit) or _brackets_differ(gold, answer):
        return "wrong"
    if (name := _ANGLE.fullmatch(gold)) and (other := _ANGLE.fullmatch(answer)):
        return "correct" if other[1] in (name[1], name[1][::-1]) else "wrong"
    ours, theirs = listing(gold), listing(answer)
    if ours is not None and theirs is not None and listed_otherwise(ours, theirs):
        return "wrong"
    if ours is not None and ours.names and theirs is not None:
        return "correct" if _same_lists(ours, theirs) else "wrong"
    gold_value, answer_value = _parse(gold), _parse(answer)
    if gold_value is not None and answer_value is not None and _equal(gold_value, answer_value):
        return "correct"
    if ours is not None and theirs is not None and _same_lists(ours, theirs):
        return "correct"
    return "wrong" if answer_value is not None else "unparseable"


def _brackets_differ(gold: str, answer: str) -> bool:
    """Both are in brackets, and not in the same."""
    ours, theirs = _brackets(gold), _brackets(answer)
    return bool(ours and theirs and ours != theirs)


def _brackets(latex: str) -> str:
    """The pair of brackets around all of it: "()", "[)", "{}"; "" if there is none."""
    text = latex.replace("\\", "")
    return text[0] + text[-1] if text[:1] in ("(", "[", "{") and closing_index(text) == len(text) - 1 else ""


def _with_equal_constants(gold: str, answer: str) -> tuple[str, str]:
    """Whatever the constant of integration is called, it becomes C; one of the two must write it as a capital."""
    ours, theirs = _CONSTANT.search(gold), _CONSTANT.search(answer)
    if ours is None or theirs is None or not re.search("[CK]", ours[0] + theirs[0]):
        return gold, answer
    return tuple(f"{_CONSTANT.sub('', text)}+C" for text in (gold, answer))  # type: ignore[return-value]


def _prepared(latex: str) -> str:
    latex = _LETTER_AS_TEXT.sub(r"\1", latex)
    if builder := _SET_OF.fullmatch(latex):  # {x | x>2} is x>2
        latex = builder[1]
    if _TRIGONOMETRY.search(latex):
        latex = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", latex)
    if _INNER_SIGN.search(latex) and "," not in latex:  # the parser knows \pm outside of braces only
        latex = f"{_with_signs(latex, '+', '-')},{_with_signs(latex, '-', '+')}"
    return latex


def _with_signs(latex: str, upper: str, lower: str) -> str:
    """Every `\\pm` is `upper` and every `\\mp` is `lower`."""
    return _UPPER.sub(upper, _LOWER.sub(lower, latex))


def _same_lists(gold: Listing, answer: Listing) -> bool:
    return same_members(gold, answer, lambda ours, theirs: compare({"gold": ours, "answer": theirs}) == "correct")


def _parse(latex: str) -> Any:
    """A sympy object with exact numbers, or None."""
    try:
        return _real_set(latex) or _exact(parse_latex_cached(normalize_latex(latex, config=_NORMALISATION)))
    except Exception:  # the parser raises whatever its grammar and sympy raise
        return None


def _real_set(latex: str) -> Any:
    r"""`x<1 \text{ or } x>2` and `A \setminus B` as a set of sympy's; None for anything else."""
    parts = _OR.split(latex)
    if len(parts) > 1 and all(map(_INEQUALITY.search, parts)):
        values = [_parse(part) for part in parts]
        return Union(*(_as_set(value) for value in values)) if len(_symbols(*values)) == 1 else None
    parts = _WITHOUT.split(_MEMBER_OF.sub("", latex))
    if len(parts) == 2:
        whole, hole = _parse(parts[0]), _parse(parts[1])
        return Complement(whole, hole) if isinstance(whole, Set) and isinstance(hole, Set) else None
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
    if _is_false(answer) or _names_nothing(gold, answer):
        return False
    if isinstance(gold, Eq) and isinstance(gold.lhs, Derivative) and not is_relation(answer):
        gold = gold.rhs
    gold, answer = _with_imaginary_unit(gold, answer)
    same = _same_interval(gold, answer)
    if same is not None:
        return same
    if _differ_where_positive(gold, answer):
        return False
    if verify(
        gold,
        answer,
        float_rounding=_EXACT_DIGITS,
        numeric_precision=_EXACT_DIGITS,
        allow_set_relation_comp=True,
        timeout_seconds=None,  # the pool's deadline is the only one
    ):
        return True
    return _same_equation(gold, answer) or _same_solutions(gold, answer) or _same_at_points(gold, answer)


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


def _names_nothing(gold: Any, answer: Any) -> bool:
    """The answer is an equation, the reference none, and no side is a name for the other: `2x+3y=6` for 6."""
    if not isinstance(answer, Eq) or is_relation(gold):
        return False
    return not _is_name(answer.lhs) and not (_is_name(answer.rhs) and not _symbols(answer.lhs))


def _is_name(value: Any) -> bool:
    """`x`, `AB`, `\\frac{NO}{BO}`, `f(x)`, `\\frac{dy}{dx}`: whatever is no sum."""
    if isinstance(value, Mul | Pow):
        return bool(_symbols(value)) and all(_is_name(part) or not _symbols(part) for part in value.args)
    return isinstance(value, AppliedUndef | Derivative) or bool(getattr(value, "is_Symbol", False))


def _same_interval(gold: Any, answer: Any) -> bool | None:
    """Bounds of one unknown, and intervals, with rational ends: 160 ms become 20. None for anything else."""
    ours, theirs = _interval(gold), _interval(answer)
    if ours is None or theirs is None or not (is_relation(gold) or is_relation(answer)):
        return None
    if is_relation(gold) and is_relation(answer) and _symbols(gold) != _symbols(answer):
        return False
    return bool(ours == theirs)


def _interval(value: Any) -> Any:
    """The interval with rational or infinite ends that is `value`, or that it bounds; None for anything else."""
    if isinstance(value, And):
        parts = [_interval(part) for part in value._unsorted_args]
        bounded = len(_symbols(value)) == 1 and all(part is not None for part in parts)
        return Intersection(*parts) if bounded else None
    if isinstance(value, Relational) and value.rel_op in _BOUNDS:
        if getattr(value.rhs, "is_Symbol", False):
            value = value.reversed
        make = _BOUNDS[value.rel_op]
        return make(value.rhs) if getattr(value.lhs, "is_Symbol", False) and value.rhs.is_Rational else None
    ends = (value.start, value.end) if isinstance(value, Interval) else ()
    return value if ends and all(end.is_Rational or end.is_infinite for end in ends) else None


def _same_solutions(gold: Any, answer: Any) -> bool:
    """Inequalities in the same unknown, intervals and their unions, as sets of real numbers."""
    if not (is_relation(gold) or is_relation(answer)) or isinstance(gold, Eq) or isinstance(answer, Eq):
        return False
    if is_relation(gold) and is_relation(answer) and _symbols(gold) != _symbols(answer):
        return False
    try:
        ours, theirs = _as_set(gold), _as_set(answer)
        return bool(ours == theirs or ours.symmetric_difference(theirs).is_empty)
    except Exception:  # sympy cannot solve it: then it is not shown to be the same
        return False


def _as_set(value: Any) -> Any:
    return value if isinstance(value, Set) else unwrap_fcs(value).as_set()


def _same_at_points(gold: Any, answer: Any) -> bool:
    """Expressions in the same unknowns that agree to 40 digits wherever both are defined: 2ln|x| is ln(x^2).

    For what `simplify` cannot show. The points are fixed, some negative, so sqrt(x^2) is not x; an expression that fits
    seven of them by design would have to be written for this list.
    """
    if not _symbols(gold):
        return False
    shifts = [_POINTS[start:] + _POINTS[:start] for start in range(len(_POINTS))]
    found = [agrees for points in shifts if (agrees := _agree_at(points, gold, answer)) is not None]
    return len(found) >= _MIN_POINTS and all(found)


def _differ_where_positive(gold: Any, answer: Any) -> bool:
    """Expressions whose values at one point differ are not the same; most wrong answers cost no `simplify` then."""
    return _agree_at(tuple(map(abs, _POINTS)), gold, answer) is False


def _agree_at(points: tuple[Any, ...], gold: Any, answer: Any) -> bool | None:
    """Whether two expressions in the same unknowns agree to 40 digits; None if one is undefined or no expression."""
    if not (isinstance(gold, Expr) and isinstance(answer, Expr)) or _symbols(gold) != _symbols(answer):
        return None
    unknowns = sorted(_symbols(gold), key=str)
    point = dict(zip(unknowns, points, strict=False))
    try:
        ours, theirs = (value.subs(point).evalf(_EXACT_DIGITS) for value in (gold, answer))
    except Exception:  # sympy cannot say: then nothing is shown
        return None
    if not (ours.is_number and theirs.is_number and ours.is_finite and theirs.is_finite):
        return None
    return bool(abs(ours - theirs) < Float("1e-40") * (1 + abs(ours)))


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
