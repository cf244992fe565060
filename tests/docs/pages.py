"""Pages as scripts: the blocks of README.md and docs/ in order, and how a test deals with each.

A block of commands (```bash, ```console, ```sh) says in an HTML comment right above it how it is tested:

    <!-- test: run -->                      in `make test`, as it stands
    <!-- test: slow -->                     in `make test-long`, as it stands
    <!-- test: slow, short -->              ... with the SHORT settings in the place of those that make a run long
    <!-- test: slow, serve -->              ... and it goes on in the background until the page ends, on a free port
    <!-- test: slow, short, status 1 -->    ... and must end with this status
    <!-- test: parse: needs two GPUs -->    cannot run here, for this reason: read by the real parser, settings checked

Blocks with a file name (```jsonl prompts.jsonl) are written into the page's folder, and so is a Python block that
begins with a comment of a file's name. A page that names runs/embedded finds a short run there, and one that names a
file which another page shows finds that file.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("decisions/*.md"))]
COMMANDS = ("bash", "console", "sh")
FENCE = re.compile(
    r"^(?:<!-- test: (?P<test>[^\n]*?) -->\n+)?```(?P<language>[\w]*)(?: (?P<name>[^\s`]+))?\n(?P<text>.*?)^```$",
    re.S | re.M,
)
MARK = re.compile(r"(?P<kind>run|slow|parse)(?P<flags>(?:, (?:short|serve|status \d))*)(?:: (?P<reason>.+))?")

SHORT = {
    "cluster": "inline",
    "cluster.num_workers": "1",
    "steps": "2",
    "groups_per_step": "4",
    "group_size": "4",
    "updates_per_step": "1",
    "eval_every": "0",
    "save_every": "1",
    "sft.steps": "2",
    "sft.batch_size": "8",
    "evaluation.num_prompts": "4",
    "rollout.draw_limit": "1",
}
"""What makes a run last seconds: one process, two steps of few groups, hardly a cold start."""

NO_COLD_START = "sft.steps=0"
"""Is as short as can be, and files have no demonstrations."""

PROCESSES = ("learner.num_ranks=", "sync.transport=broadcast")
"""What cannot be had in one process."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        page: its file.
        line: of the page, where the fence is.
        language, name: of the fence; "" where it has none.
        text: what is inside.
        test: the words of the comment above, "" if there is none.
    """

    page: Path
    line: int
    language: str
    name: str
    text: str
    test: str

    @property
    def file_name(self) -> str:
        """Of the file that the block is, or ""."""
        first = re.match(r"# (\w+\.py)\n", self.text) if self.language == "python" else None
        return self.name or (first[1] if first else "")

    @property
    def mark(self) -> re.Match[str] | None:
        """Kind, flags and reason of the comment, or None if it is no such comment."""
        return MARK.fullmatch(self.test)

    @property
    def kind(self) -> str:
        """ "run", "slow" or "parse"."""
        assert self.mark, f"{self.place}: no comment like <!-- test: run --> above these commands"
        return self.mark["kind"]

    @property
    def flags(self) -> list[str]:
        return [flag for flag in self.mark["flags"].split(", ") if flag]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Command lines without comments, those with a backslash at the end joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("text")),
            match["language"],
            match["name"] or "",
            match["text"],
            match["test"] or "",
        )
        for match in FENCE.finditer(text)
    ]


def command_blocks() -> list[Block]:
    """All blocks of commands, of all pages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language in COMMANDS]


def shortened(words: list[str]) -> list[str]:
    """The words of `cispo train ...` with the SHORT settings instead of its own, or added to them."""
    given = {word.split("=")[0] for word in words}
    replaced = [f"{key}={SHORT[key]}" if (key := word.split("=")[0]) in SHORT and word != NO_COLD_START else word
                for word in words]  # fmt: skip
    needs_processes = any(word.startswith(PROCESSES) for word in words)
    short = {key: value for key, value in SHORT.items() if not (key == "cluster" and needs_processes)}
    return replaced + [f"{key}={value}" for key, value in short.items() if key not in given]
