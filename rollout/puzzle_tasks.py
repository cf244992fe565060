r"""Tasks `game24`, `sudoku4`, `knights` and `path`: short puzzles that may have several right answers.

    prompt      24:4,7,8,8=                 arithmetic of these numbers, each once, that comes to 24
    completion  <think></think>\boxed{(7-8/8)*4}
    prompt      sudoku:1.3.|3412|2.4.|4321=
    completion  <think></think>\boxed{1234|3412|2143|4321}
    prompt      knights:A:BL,B:A#=          A says that B lies; B says that A is not as B is. Who tells the truth (K)?
    completion  <think></think>\boxed{KL}
    prompt      path:1-2,2-4,3-4;1>4=       a shortest way from 1 to 4
    completion  <think></think>\boxed{1-2-4}

The reference holds one answer and what the rules need, for the logic verifier (rewards/logic_rules.py), which takes
every right answer. The cold start shows the form; a share of its answers is drawn at random.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from cispo.errors import ConfigError
from rollout.digits_task import ANSWER_WORDS
from rollout.problem import Demonstration, Problem

CLAIMS = "KL=#"


@dataclass(frozen=True)
class PuzzleConfig:
    """How large the puzzles are.

    Attributes:
        min_size, max_size: the largest number of game24 (at least 4), the gaps of sudoku4 (at most 16), the speakers
            of knights (at most 9) or the nodes of path (at most 9); at least 2.
        random_fraction: share of demonstrations whose answer is drawn at random, and so mostly wrong.
    """

    min_size: int = 4
    max_size: int = 6
    random_fraction: float = 0.5

    def __post_init__(self) -> None:
        faults = []
        if not 2 <= self.min_size <= self.max_size <= 16:
            faults.append(f"A puzzle needs 2 <= min_size <= max_size <= 16, got {self.min_size} and {self.max_size}.")
        if not 0 <= self.random_fraction <= 1:
            faults.append(f"random_fraction is a share between 0 and 1, got {self.random_fraction}.")
        if faults:
            raise ConfigError(*faults)

    def draw(self, rng: random.Random) -> int:
        """A size, evenly."""
        return rng.randint(self.min_size, self.max_size)

    @property
    def sizes(self) -> range:
        """All sizes."""
        return range(self.min_size, self.max_size + 1)


class Riddle(NamedTuple):
    """The prompt between the task's mark and the equals sign, a right answer, and what the rules need."""

    question: str
    answer: str
    facts: dict[str, Any]


class _Kind(Protocol):
    """What one of these tasks asks."""

    def riddle(self, rng: random.Random, size: int) -> Riddle:
        """One puzzle."""

    def guess(self, rng: random.Random, riddle: Riddle) -> str:
        """An answer of the right form."""

    def num_riddles(self, size: int) -> int:
        """How many puzzles of this size there are, at most."""


class PuzzleTask:
    """A prompt `<mark>:<question>=` and an answer in a box."""

    name = mark = ""
    kind: _Kind
    largest = 9

    def __init__(self, config: PuzzleConfig | None = None) -> None:
        self.config = config or PuzzleConfig()
        if self.config.max_size > self.largest:
            raise ConfigError(
                f"task.parameters.{self.name}.max_size is at most {self.largest}, got {self.config.max_size}."
            )

    def problem(self, rng: random.Random) -> Problem:
        """One puzzle."""
        riddle = self.kind.riddle(rng, self.config.draw(rng))
        reference = {"task": self.name, "answer": riddle.answer, "metadata": riddle.facts}
        return Problem(f"{self.mark}:{riddle.question}=", reference)

    def demonstration(self, rng: random.Random) -> Demonstration:
        """A right answer, or one drawn at random."""
        riddle = self.kind.riddle(rng, self.config.draw(rng))
        is_random = rng.random() < self.config.random_fraction
        answer = self.kind.guess(rng, riddle) if is_random else riddle.answer
        return Demonstration(f"{self.mark}:{riddle.question}=", f"<think></think>\\boxed{{{answer}}}")

    def num_prompts(self) -> int:
        """At most so many."""
        return sum(map(self.kind.num_riddles, self.config.sizes))

    def words(self) -> tuple[str, ...]:
        """The task's mark and the form of an answer."""
        return (f"{self.mark}:", *ANSWER_WORDS)


# --- game of 24 ------------------------------------------------------------------------------------------------------


class _Game24:
    """The size is the largest number; 4 is the least that leaves a choice."""

    def riddle(self, rng: random.Random, size: int) -> Riddle:
        while True:
            numbers = [rng.randint(1, max(size, 4)) for _ in range(4)]
            answer = make_24(tuple(sorted(numbers)))
            if answer:
                return Riddle(",".join(map(str, numbers)), answer, {"numbers": numbers})

    def guess(self, rng: random.Random, riddle: Riddle) -> str:
        a, b, c, d = rng.sample(riddle.facts["numbers"], 4)
        return "".join(str(part) for n in (a, b, c) for part in (n, rng.choice("+-*/"))) + str(d)

    def num_riddles(self, size: int) -> int:
        return int(max(size, 4) ** 4)


@functools.cache
def make_24(numbers: tuple[int, ...]) -> str:
    """An arithmetic of these numbers that comes to 24, or ""."""
    return next(_arithmetics([(Fraction(number), str(number)) for number in numbers]), "")


def _arithmetics(parts: list[tuple[Fraction, str]]) -> Iterator[str]:
    """Join two parts in every way, until one is left."""
    if len(parts) == 1:
        value, text = parts[0]
        if value == 24:
            yield text.removeprefix("(").removesuffix(")") if len(text) > 2 else text
        return
    for i, j in itertools.permutations(range(len(parts)), 2):
        (a, left), (b, right) = parts[i], parts[j]
        rest = [part for at, part in enumerate(parts) if at not in (i, j)]
        joined = [(a - b, "-"), *([(a / b, "/")] if b else []), *([(a + b, "+"), (a * b, "*")] if i < j else [])]
        for value, sign in joined:
            yield from _arithmetics([*rest, (value, f"({left}{sign}{right})")])


# --- sudoku of four by four ------------------------------------------------------------------------------------------


class _Sudoku4:
    """The size is the number of gaps."""

    def riddle(self, rng: random.Random, size: int) -> Riddle:
        gaps = rng.sample(range(16), size)
        cells = [0 if at in gaps else cell for at, cell in enumerate(rng.choice(_solved_grids()))]
        # Gaps may have several fillings; the reference is the first of them, so that it follows from the text.
        answer = next(_fillings(cells))
        return Riddle(_spell(cells), _spell(answer), {"puzzle": _rows_of_four(cells)})

    def guess(self, rng: random.Random, riddle: Riddle) -> str:
        return "".join(rng.choice("1234") if cell == "." else cell for cell in riddle.question)

    def num_riddles(self, size: int) -> int:
        return 288 * math.comb(16, size)


@functools.cache
def _solved_grids() -> list[list[int]]:
    """All 288 of them, as 16 cells each."""
    return list(_fillings([0] * 16))


def _fillings(cells: list[int]) -> Iterator[list[int]]:
    """Every solved grid with these givens (0 is a gap), as 16 cells, in the order of their digits."""
    if 0 not in cells:
        yield cells
        return
    gap = cells.index(0)
    taken = {cells[at] for at in range(16) if _sees(gap, at)}
    for digit in sorted({1, 2, 3, 4} - taken):
        yield from _fillings([*cells[:gap], digit, *cells[gap + 1 :]])


def _sees(a: int, b: int) -> bool:
    """Whether two cells are in one row, column or box."""
    (r, c), (i, j) = divmod(a, 4), divmod(b, 4)
    return r == i or c == j or (r // 2, c // 2) == (i // 2, j // 2)


def _rows_of_four(cells: list[int]) -> list[list[int]]:
    return [cells[at : at + 4] for at in range(0, 16, 4)]


def _spell(cells: list[int]) -> str:
    return "|".join("".join(str(cell or ".") for cell in row) for row in _rows_of_four(cells))


# --- knights and knaves ----------------------------------------------------------------------------------------------


class _Knights:
    """The size is the number of speakers. Each says one thing of another, and it is true if the speaker is a knight."""

    def riddle(self, rng: random.Random, size: int) -> Riddle:
        roles = "".join(rng.choices("KL", k=size))
        claims: list[tuple[int, int, str]] = []
        for speaker in range(size):
            about = rng.choice([other for other in range(size) if other != speaker])
            fitting = [what for what in CLAIMS if _is_true(roles, speaker, about, what) == (roles[speaker] == "K")]
            claims.append((speaker, about, rng.choice(fitting)))
        spelt = ",".join(f"{_letter(speaker)}:{_letter(about)}{what}" for speaker, about, what in claims)
        # Other roles may fit the claims too; the reference is the first that do, so that it follows from the text.
        fits = (
            "".join(guess)
            for guess in itertools.product("KL", repeat=size)
            if all(_is_true("".join(guess), s, about, what) == (guess[s] == "K") for s, about, what in claims)
        )
        return Riddle(spelt, next(fits), {"claims": [list(claim) for claim in claims]})

    def guess(self, rng: random.Random, riddle: Riddle) -> str:
        return "".join(rng.choices("KL", k=len(riddle.answer)))

    def num_riddles(self, size: int) -> int:
        return int((len(CLAIMS) * (size - 1)) ** size)


def _is_true(roles: str, speaker: int, about: int, what: str) -> bool:
    match what:
        case "=":
            return roles[speaker] == roles[about]
        case "#":
            return roles[speaker] != roles[about]
        case role:
            return roles[about] == role


def _letter(at: int) -> str:
    return chr(ord("A") + at)


# --- shortest ways ---------------------------------------------------------------------------------------------------


class _Path:
    """The size is the number of nodes: a tree, and half as many edges more."""

    def riddle(self, rng: random.Random, size: int) -> Riddle:
        nodes = rng.sample(range(1, size + 1), size)
        edges = {_edge(node, rng.choice(nodes[:at])) for at, node in enumerate(nodes) if at}
        edges |= {_edge(*rng.sample(nodes, 2)) for _ in range(size // 2)}
        start, end = rng.sample(nodes, 2)
        spelt = ",".join(f"{a}-{b}" for a, b in sorted(edges))
        way = "-".join(map(str, shortest_way(edges, start, end)))
        facts = {"edges": [list(edge) for edge in sorted(edges)], "start": start, "end": end}
        return Riddle(f"{spelt};{start}>{end}", way, facts)

    def guess(self, rng: random.Random, riddle: Riddle) -> str:
        start, end = riddle.facts["start"], riddle.facts["end"]
        between = sorted({node for edge in riddle.facts["edges"] for node in edge} - {start, end})
        via = rng.sample(between, rng.randint(0, min(2, len(between))))
        return "-".join(map(str, (start, *via, end)))

    def num_riddles(self, size: int) -> int:
        return int(2 ** math.comb(size, 2) * size * (size - 1))


def _edge(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


def shortest_way(edges: set[tuple[int, int]], start: int, end: int) -> list[int]:
    """Nodes of a way with the fewest edges, breadth first, smaller nodes first; the graph is connected."""
    ways = [[start]]
    for way in ways:  # grows while it is walked
        if way[-1] == end:
            return way
        seen = {node for other in ways for node in other}
        ways += [[*way, node] for node in range(1, 10) if _edge(way[-1], node) in edges and node not in seen]
    raise AssertionError("the edges hold a tree, so there is a way between any two nodes")


class Game24Task(PuzzleTask):
    """Four numbers into 24."""

    name, mark, kind = "game24", "24", _Game24()


class Sudoku4Task(PuzzleTask):
    """The gaps of a four by four grid."""

    name, mark, kind, largest = "sudoku4", "sudoku", _Sudoku4(), 16


class KnightsTask(PuzzleTask):
    """Who tells the truth and who lies."""

    name, mark, kind = "knights", "knights", _Knights()


class PathTask(PuzzleTask):
    """The shortest way from node to node."""

    name, mark, kind = "path", "path", _Path()
