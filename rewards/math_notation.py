r"""Many ways of writing one answer, brought to one: what a keyboard, a typesetter and Markdown add to mathematics.

    tidy("**½ x²**") == r"\frac{1}{2} x^{2}"        tidy(r"\left(12\,345\right)") == "(12345)"

Only spelling changes here, never a value, and nothing is parsed: every pattern is linear in practice, and the text has
passed rewards.answer_limits before. What an answer is (a number, a choice, a set) is decided elsewhere.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.answer_format import closing_brace

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SIGNS = {
    **dict.fromkeys("−–‐‑﹣", "-"), "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ",
    "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℂ": r"\mathbb{C}", "°": r"^\circ ", "∶": ":",
    "⁄": "/", "∕": "/", "′": "'", "’": "'", "“": '"', "”": '"', "⟨": "(", "⟩": ")",
    "\u2009": r"\,", "\u202f": r"\,", "\u00a0": r"\,", "\u2006": r"\,", "\u2061": "", "\u200b": "", "\ufeff": "",
}  # fmt: skip
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon "
    "phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", _GREEK_NAMES.split(), strict=True))
_UNICODE = str.maketrans(
    {chr(code): chr(plain) for code, plain in _FULL_WIDTH.items()}
    | _SIGNS
    | {sign: "\\frac{{{}}}{{{}}}".format(*fraction.split("/")) for sign, fraction in _VULGAR.items()}
    | {letter: f"\\{name} " for letter, name in _GREEK.items()}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_WRAPPED = re.compile(
    r"\$\$(.+)\$\$|\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]|\*\*(.+)\*\*|`(.+)`"
    r"|\\(?:text|mathbf|mathit|boldsymbol|textstyle|displaystyle)\{(-?[\d.,]+)\}",
    re.DOTALL,
)
_THIN = r"(?:\\[,;: ]|~|\{,\}|,\\!\s*)"
_THOUSANDS = re.compile(rf"(?<![\d.,\\])([1-9]\d{{0,2}}(?:{_THIN}\d{{3}})+)(?!\d)")
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|bf|rm|it|limits|nolimits)(?![A-Za-z])", ""),
        (r"\\(?:textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|mathit|mathsf|boldsymbol)(?![A-Za-z])", r"\\text"),
        (r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])", r"\\frac"),
        (r"\\(?:dbinom|tbinom)(?![A-Za-z])", r"\\binom"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\{?\s*\b(\w+)\s*\\choose\s*(\w+)\s*\}?", r"\\binom{\1}{\2}"),
        (r"\\(?:imath|jmath)(?![A-Za-z])", "i"),
        (r"\\fbox(?![A-Za-z])", ""),
        (r"\\text\s*\{\s*(?:negative|minus)\s+(\d[\d.,]*)\s*\}", r"-\1"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geqslant|geq)(?![A-Za-z])", r"\\ge"),
        (r"\\(?:degree|degrees)(?![A-Za-z])", r"^\\circ"),
        (r"\^\s*\{?\s*\\text\s*\{\s*o\s*\}\s*\}?|\^\s*\{\s*\\circ\s*\}", r"^\\circ"),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])", " "),  # not the end of a matrix row, `\\\\ `
        (r"\\text\s*\{\s*([ei])\s*\}", r"\1"),  # constants, never units
        (r"^\s*(?:\\text\s*\{\s*)?[Aa]ll real(?: number)?s\s*\}?\s*$", r"\\mathbb{R}"),
        (r"\\text\s*\{\s*\}", " "),
        (r"\\text\s*\{([^A-Za-z{}]*|\s*[-+]?\d[^{}]*)\}", r"\1"),  # no words, or what begins with a number
        (r"(?:\\?(?<![A-Za-z])sqrt|√)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (r"(?<![\\A-Za-z])(sqrt|pi|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:\\text\s*\{\s*)?[Ii]nfinity(?:\s*\})?(?![A-Za-z])", r"\\infty"),
        (r"(?<=[\d}])\s*\\text\s*\{\s*to\s*\}\s*(?=[\d\\])", ":"),
        (r"\s+", " "),
    )
)
_PREFACE = re.compile(
    r"(?:\\text\s*\{)?\s*(?:(?:so|thus|hence|therefore|and)[,:]?\s+)?(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)[:,]?)?"
    r"\s*\}?\s*",
    re.IGNORECASE,
)
_MAX_LAYERS = 8  # wrappers around an answer, each taken off in one pass


@lru_cache(maxsize=8192)
def tidy(latex: str) -> str:
    """`latex` in the one spelling that the comparisons know; `""` stays `""`."""
    if latex.isascii() and latex.isalnum():
        return latex
    if not latex.isascii():
        latex = _from_unicode(latex)
    latex = _unwrapped(" ".join(latex.split()))  # one blank at a time, which keeps the patterns fast
    latex = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), latex)
    for pattern, replacement in _REWRITES:
        latex = pattern.sub(replacement, latex)
    return _unwrapped(_without_preface(_unwrapped(latex)))


def _from_unicode(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    return text.translate(_UNICODE)


def _unwrapped(text: str) -> str:
    """Without dollars, Markdown, one pair of braces around everything, and the full stop of a sentence."""
    for _ in range(_MAX_LAYERS):
        before = text
        text = text.strip()
        if text[-1:] in (".", ",", ";") and not text.endswith((r"\,", r"\;")):
            text = text[:-1].rstrip()
        match = _WRAPPED.fullmatch(text)
        if match and "$" not in (inside := match[match.lastindex or 0]):
            text = inside.strip()
        if text.startswith("{") and closing_brace(text) == len(text) - 1:
            text = text[1:-1].strip() or text
        if text == before:
            break
    return text


def _without_preface(text: str) -> str:
    """`\\text{The answer is }5` is 5. A preface alone, such as the word `so`, is left."""
    match = _PREFACE.match(text)
    if match is None or not match[0].strip() or text[: match.end()].count("{") != text[: match.end()].count("}"):
        return text
    return text[match.end() :] or text
