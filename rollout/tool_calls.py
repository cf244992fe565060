"""How a policy calls a tool, and how it is shown what came of it.

    <tool:python>print(6*7)</tool>          the policy writes; `</tool>` ends its turn
    <result>42
    </result>                               the environment answers, and the policy writes on

A call counts only where it ends the turn. With a tokenizer that has `</tool>` as one token it always does. With another
one a turn ends with the text, and what follows a call on the policy's own account is no result but an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rollout.environment import Observation

END_CALL, RESULT, END_RESULT = "</tool>", "<result>", "</result>"
_OPENING = re.compile(r"<tool:([^<>\s]{1,32})>")


def opening(tool: str) -> str:
    """What a call of `tool` begins with."""
    return f"<tool:{tool}>"


def tool_words(tools: Iterable[str]) -> tuple[str, ...]:
    """The marks of calls of these tools and of their results."""
    return (*map(opening, tools), END_CALL, RESULT, END_RESULT)


@dataclass(frozen=True)
class ToolCall:
    """What the policy asked for; `tool` is "" if `</tool>` ends something that never began."""

    tool: str
    source: str


def find_call(text: str) -> ToolCall | None:
    """The call that ends a turn, from the last opening to the end; None if the turn ends otherwise."""
    whole = text.rstrip()
    if not whole.endswith(END_CALL):
        return None
    inside = whole.removesuffix(END_CALL)
    openings = list(_OPENING.finditer(inside))
    return ToolCall(openings[-1][1], inside[openings[-1].end() :]) if openings else ToolCall("", "")


def result(text: str) -> Observation:
    """What the policy is shown of an output."""
    return Observation(text, before=RESULT, after=END_RESULT)
