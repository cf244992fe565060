r"""Answers in words and letters: `\text{Monday}`, `no solution`, `(B)`, `\textbf{(B) }5`. Compared without a process.

The reference decides what counts. For a letter it is the letter, whatever text the answer adds to it; a second letter
is a hedge and wrong. For a letter with its text, either will do, and both must be right if both are there. Letter case
does not matter.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_TEXT_COMMAND = re.compile(r"\\(?:text|operatorname)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*")
_NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) )?no (?:real |integer |such )?solutions?(?: exists?)?|empty set|the empty set"
    r"|\\emptyset|\\varnothing|\\\{\s*\\\}"
)
_SYNONYMS = {"does not exist": "dne", "doesn't exist": "dne"}
_LABEL = re.compile(
    r"(?:\(\s*(?P<closed>[A-Ja-j])\s*\)|(?P<dotted>[A-J])\s*[).:]|(?P<half>[a-j])\s*\)|(?P<bare>[A-Ja-j])(?=$))\s*(?P<text>.*)",
    re.DOTALL,
)
_OPTION = re.compile(r"^(?:the )?(?:correct |final )?(?:option|choice|answer)(?: is)?\s*:?\s*", re.IGNORECASE)
_ANOTHER_LETTER = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z(_^])")


class Label(NamedTuple):
    """A choice: its letter in lower case and the text behind it, "" if there is none."""

    letter: str
    text: str
    is_marked: bool  # by parentheses, a point or a word, so that it cannot be a variable
    is_hedge: bool  # a second letter follows


def same_choice(gold: str, answer: str) -> bool | tuple[str, str]:
    """Whether a choice is the reference's, or (reference, answer) without labels when their texts decide."""
    ours, theirs = choice(gold), choice(answer)
    if ours is None or ours.is_hedge:  # no choice, or several
        is_label = theirs is not None and theirs.text and theirs.is_marked and not theirs.is_hedge
        return (gold, theirs.text) if is_label and theirs and re.search(r"\d", gold) else (gold, answer)
    if theirs is None:
        return (ours.text, answer) if ours.text else (gold, answer)
    if ours.letter != theirs.letter or theirs.is_hedge:
        return False
    return (ours.text, theirs.text) if ours.text and theirs.text else True


@lru_cache(maxsize=8192)
def choice(latex: str) -> Label | None:
    r"""The choice that `latex` (tidied) names: `A`, `(a)`, `\text{(A) }5`, `A. 5`, `\text{Option A}`; None if none."""
    flat = _TEXT_COMMAND.sub(r"\1", latex).strip()
    option = _OPTION.match(flat)
    match = _LABEL.fullmatch(flat, option.end() if option else 0)
    if match is None:
        return None
    letter = match["closed"] or match["dotted"] or match["half"] or match["bare"]
    text = match["text"].strip()
    if text and letter.islower() and match["closed"]:
        return None  # `(a) b` is a product
    return Label(letter.lower(), text, match["bare"] is None or flat != letter, bool(_ANOTHER_LETTER.search(text)))


def same_words(gold: str, answer: str) -> bool | None:
    """Comparison of words and single letters; None if mathematics may make them equal."""
    ours, theirs = _words(gold), _words(answer)
    if ours is None:
        return None
    if ours == theirs:
        return True
    # `ab` may be a product and equal `ba`; a reference inside \text{} and single letters are what they are.
    is_text = _TEXT_COMMAND.fullmatch(gold) is not None or " " in ours
    both_letters = len(ours) == 1 and theirs is not None and len(theirs) == 1
    return False if is_text or both_letters else None


@lru_cache(maxsize=8192)
def _words(latex: str) -> str | None:
    r"""`B.` is `b`, `\text{No solutions}` and `\emptyset` are `no solution`; None if there are no words."""
    plain = _TEXT_COMMAND.sub(r"\1", latex).strip().rstrip(".!").strip()
    plain = " ".join(plain.replace("**", "").casefold().split())
    if _NO_SOLUTION.fullmatch(plain):
        return "no solution"
    plain = _SYNONYMS.get(plain, plain)
    return plain if _WORDS.fullmatch(plain) else None
