"""Finds the program in a model's answer, and what in it looks like a trick."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.answer_format import answer_text

FENCES = {
    "python": ("python", "python3", "py"),
    "numpy": ("python", "python3", "py"),
    "cpp": ("cpp", "c++", "cc", "cxx"),
    "c": ("c",),
    "bash": ("bash", "sh", "shell"),
    "javascript": ("javascript", "js", "node"),
}
"""What a code block of each language is opened with."""

_TRICKS = {
    "eq_override": r"\b__(?:eq|ne|class|reduce|reduce_ex|instancecheck|getattribute)__\b",
    "frames": r"\b_getframe\b|\bf_back\b|\bf_locals\b|\bgi_frame\b|\btb_frame\b|\bimport inspect\b|\binspect\.",
    "heap": r"\bgc\.get_(?:objects|referrers|referents)\b|\b__subclasses__\b|\bctypes\b",
    "exit": r"\bos\._exit\b|\bposix\._exit\b|\batexit\b",
    "proc": r"/proc/|/dev/fd|\bos\.(?:write|dup2?|kill|fork)\b|\bposix\.",
    "own_source": r"\b__file__\b|\bopen\(\s*['\"](?:main|solution|checker)\.py|\bgetsource\b",
    "patching": r"\bsys\.modules\b|\bbuiltins\b|\b__builtins__\b|\bmeta_path\b|\bsetattr\(\s*sys\b|\bsettrace\b",
    "harness": r"\brun_tests\b|\b__main__\b.*\b(?:encode|tell|check)\b",
}
_TRICK = {name: re.compile(pattern) for name, pattern in _TRICKS.items()}


@dataclass(frozen=True)
class Solution:
    """A program out of a model's answer; `language` is one of the sandbox's."""

    source: str
    language: str


def find_program(text: str) -> str:
    """The Python program in a model's answer: its last complete block of code, or all of it when there is none.

    The answer is what comes after the think block: a draft inside it does not count, nor does unfinished thinking.
    """
    return find_solution(text, ("python",)).source


def find_solution(text: str, languages: Sequence[str]) -> Solution:
    """The last complete block in one of `languages`, or all of the answer, as a program in the first of them."""
    languages_by_fence = {f"```{fence}": name for name in reversed(languages) for fence in FENCES[name]}
    answer = answer_text(text) or ""
    found: Solution | None = None
    block: list[str] | None = None
    language = ""
    for line in answer.splitlines(keepends=True):
        fence = line.strip().lower()
        if block is None:
            language = languages_by_fence.get(fence, "")
            block = [] if language else None
        elif fence == "```":
            found, block = Solution("".join(block), language), None
        else:
            block.append(line)
    return found or Solution(answer, languages[0])


def tricks(source: str) -> tuple[str, ...]:
    """Names of the tricks that `source` may be up to; to be counted, never paid: honest programs do such things too."""
    return tuple(name for name, pattern in _TRICK.items() if pattern.search(source))
