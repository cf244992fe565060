r"""What a text lists: the set `\{1,2\}`, the tuple `(1,2)`, the bare list `1 \text{ and } 2`, with or without names.

Here a listing is split into the texts of its members; whether two members are equal is the caller's affair. The kind of
the reference decides: a tuple has an order and a set has none, a bare list answers both, and names (`x=1, y=2`) may be
left out where the order says which is which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SEPARATOR_WORD = re.compile(
    r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\lor(?![A-Za-z]))"
)
_NAME = re.compile(r"\s*(?P<name>(?:\\?[A-Za-z]+)(?:_\{?\w+\}?)?(?:\([a-z]\))?)\s*=(?!=)\s*(?P<value>.+)", re.DOTALL)
_NAMES_OF_TUPLE = re.compile(r"\s*\([A-Za-z_0-9, ]+\)\s*=\s*(?=\()")
_ELEMENT_OF = re.compile(r"\s*\\?[A-Za-z]+\s*\\in\s*(?=\\\{)")
_DOTS_AS_MEMBER = re.compile(r"[,;]\s*(?:\\text\s*\{\s*)?(?:\\[lc]?dots(?![A-Za-z])|\.{2,}|…)")
_OPENING, _CLOSING = "([{", ")]}"
_MAX_MEMBERS = 24


@dataclass(frozen=True)
class Listing:
    """The members of a set, tuple or bare list, at least two; `names` is empty or has a different one for each."""

    kind: str  # "set", "tuple" or "list"
    members: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def num_sets(self) -> int:
        """Members that are sets themselves."""
        return sum(member.startswith(r"\{") for member in self.members)

    @property
    def repeated(self) -> list[str]:
        """Members that are there already, as they are written."""
        return sorted(member for at, member in enumerate(self.members) if member in self.members[:at])


def listing(latex: str) -> Listing | None:
    """What `latex` (tidied) lists; None if it is one thing, or more than two dozen."""
    text = _NAMES_OF_TUPLE.sub("", _ELEMENT_OF.sub("", latex, count=1), count=1).strip()
    kind = "list"
    if text.startswith(r"\{") and closing_index(text[1:]) == len(text) - 2:
        kind, text = "set", text[2:-2]
    elif text.startswith("(") and closing_index(text) == len(text) - 1:
        kind, text = "tuple", text[1:-1]
    members = split_at_top(text)
    if not 2 <= len(members) <= _MAX_MEMBERS or not all(members):
        return None
    named = [match for match in map(_NAME.fullmatch, members) if match]
    if len(named) == len(members):
        return _named_listing(kind, [match["name"] for match in named], [match["value"].strip() for match in named])
    if (first := _NAME.fullmatch(members[0])) and len(named) == 1:  # `a=4,-8,-10`: one unknown with several values
        members[0] = first["value"].strip()
    return Listing(kind, tuple(members))


def _named_listing(kind: str, names: list[str], values: list[str]) -> Listing:
    """`x=1,y=2` keeps its names; `x=1,x=2` are two values, and `p=5,q=2;p=7,q=2` two pairs."""
    num = len(set(names))
    if num == len(names):
        return Listing(kind, tuple(values), tuple(names))
    if num > 1 and len(names) % num == 0 and names == names[:num] * (len(names) // num):
        values = [f"({','.join(values[at : at + num])})" for at in range(0, len(values), num)]
    return Listing("list", tuple(values))


def goes_on(latex: str) -> bool:
    r"""Whether a listing ends, or is filled, with dots: `1,2,\ldots` names no more members, and leaves none out."""
    return _DOTS_AS_MEMBER.search(latex) is not None


def split_at_top(text: str) -> list[str]:
    """The parts between commas, semicolons and the words `and` and `or` that stand in no brackets."""
    text = _SEPARATOR_WORD.sub(",", text).replace(r"\;", " ")
    parts, depth, start = list[str](), 0, 0
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if character in ",;" and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def closing_index(text: str) -> int:
    """Index of the bracket that closes the first character; -1 if none does."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return index
    return -1


def listed_otherwise(gold: Listing, answer: Listing) -> bool:
    r"""Whether their form alone sets them apart, which a parser that flattens sets would not see.

    `\{1\},\{2\}` are two sets and not 1 and 2. A list that repeats a member, such as the roots of an equation, is no
    set: `1,1,2` is neither `1,2` nor `1,2,2`.
    """
    if gold.num_sets != answer.num_sets:
        return True
    if "set" in (gold.kind, answer.kind):
        return False
    return answer.repeated != gold.repeated


def same_members(gold: Listing, answer: Listing, same: Callable[[str, str], bool]) -> bool:
    """Whether the answer lists what the reference does, by the kind of the reference."""
    if len(gold.members) != len(answer.members) or {gold.kind, answer.kind} == {"set", "tuple"}:
        return False
    if gold.names and answer.names:
        theirs = dict(zip(answer.names, answer.members, strict=True))
        return set(gold.names) == set(theirs) and all(
            same(member, theirs[name]) for name, member in zip(gold.names, gold.members, strict=True)
        )
    if gold.names or gold.kind == "tuple":
        return all(same(*pair) for pair in zip(gold.members, answer.members, strict=True))
    return _matched(list(gold.members), answer.members, same)


def _matched(gold: list[str], answer: Sequence[str], same: Callable[[str, str], bool]) -> bool:
    """Each member of one side is one of the other's. Equality is transitive, so the first match will do."""
    for member in answer:
        match = next((other for other in gold if same(other, member)), None)
        if match is None:
            return False
        gold.remove(match)
    return True
