r"""Where the answer of a text is, and whether the text has the required form.

The form is: at most one think block, opened and closed, and an answer after it. Only what stands after the think
block counts as an answer. A box inside the thinking, or an earlier box when the last one is broken, is no answer:
paying for those teaches a policy to name many numbers (verifiers PR #1028, marin #9163).

    <think>2+2 is 4</think>The sum is \boxed{4}        answer_text -> "The sum is \boxed{4}", last_box -> "4"
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"
_BOX = "\\boxed"
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


def answer_text(text: str) -> str | None:
    """What stands after the think block, stripped; the whole text if there is none.

    Returns:
        None if the text is still thinking when it ends.
    """
    _, _, after = text.rpartition(CLOSE)
    return None if OPEN in after else after.strip()


def last_box(answer: str) -> str | None:
    r"""The content of the last `\boxed{...}`, stripped, with braces matched as TeX matches them.

    Returns:
        None if there is no box, or if the last one is empty or never closed; an earlier box is not tried.
    """
    start = answer.rfind(_BOX)
    if start < 0:
        return None
    rest = answer[start + len(_BOX) :].lstrip()
    if not rest.startswith("{"):
        return None
    end = closing_brace(rest)
    return (rest[1:end].strip() or None) if end is not None else None


def marked_answer(answer: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `<answer>...</answer>`, whichever begins later, stripped.

    Returns:
        None if there is neither, or if that last one is empty or never closed; an earlier one is not tried.
    """
    begin = answer.rfind(_ANSWER_OPEN)
    if answer.rfind(_BOX) > begin:
        return last_box(answer)
    if begin < 0:
        return None
    inside, closed, _ = answer[begin + len(_ANSWER_OPEN) :].partition(_ANSWER_CLOSE)
    return (inside.strip() or None) if closed else None


def closing_brace(text: str) -> int | None:
    """Index of the brace that closes the one at 0; `\\{` and `\\}` are characters, not groups."""
    depth, index = 0, 0
    while index < len(text):
        if text[index] == "\\":
            index += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
        index += 1
    return None


def well_formed(text: str, *, boxed: bool, marked: bool = False) -> float:
    """1.0 if the text has the required form, else 0.0.

    Args:
        text: the decoded action tokens, with the opening tag put back if the prompt had already opened the block.
        boxed: the answer must hold a complete box (math).
        marked: the answer must hold a complete box or `<answer>` block (logic). If neither, any text will do (code).
    """
    num_open, num_closed = text.count(OPEN), text.count(CLOSE)
    if num_open != num_closed or num_open > 1 or text.find(OPEN) > text.find(CLOSE):
        return 0.0
    answer = answer_text(text)
    if not answer:
        return 0.0
    if boxed and last_box(answer) is None:
        return 0.0
    return float(not marked or marked_answer(answer) is not None)
