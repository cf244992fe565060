"""Puzzles that have several right answers, or whose answer is checked faster than found: by their rules.

Each function takes (answer, puzzle) and gives whether the answer solves it; it raises Unreadable for an answer that is
not of the form at all. They know the rules alone and not the solution that the generator happened to find. Nothing is
evaluated: moves are played out on a board, and an arithmetic is read by a parser (rewards/logic_arithmetic.py).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rewards.logic_arithmetic import arithmetic
from rewards.logic_forms import Unreadable, read_json, rows, same_words
from rewards.numerals import parse_numeral

_HANOI_MOVE = re.compile(r"Move disk (\d{1,3}) from Peg (\d{1,3}) to Peg (\d{1,3})", re.ASCII)
_JUG_MOVE = re.compile(r"(fill|empty) ([A-Z])|pour ([A-Z])\s*->\s*([A-Z])")
_ROLE = re.compile(r"(\w+) is an? (\w+)")
_STEPS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}


@dataclass(frozen=True)
class Puzzle:
    """What a checker may know.

    Attributes:
        answer: a right answer as the generator gives it, stripped.
        facts: what the rules need, JSON-like: {"numbers": [4, 7, 8, 8], "target": 24}.
    """

    answer: str
    facts: Mapping[str, Any] = field(default_factory=dict)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def makes_target(answer: str, puzzle: Puzzle) -> bool:
    """An arithmetic that uses each of `numbers` once and nothing else, and comes to `target`."""
    value, used = arithmetic(answer)
    return value == puzzle.facts["target"] and Counter(used) == Counter(puzzle.facts["numbers"])


def makes_24(answer: str, puzzle: Puzzle) -> bool:
    """As `makes_target`, for 24."""
    return makes_target(answer, Puzzle(puzzle.answer, {**puzzle.facts, "target": 24}))


def is_probability(answer: str, puzzle: Puzzle) -> bool:
    """The probability exactly, as a decimal or a fraction, or to the digits that the generator gives."""
    value = parse_numeral(answer)
    if value is None:
        raise Unreadable("no number")
    exact = puzzle.facts["rational"]
    return value in (Fraction(exact["numerator"], exact["denominator"]), Fraction(puzzle.answer))


def solves_cryptarithm(answer: str, puzzle: Puzzle) -> bool:
    """`A=1,B=2`: a digit of its own for every letter, no leading zero, and the sum is right."""
    facts = puzzle.facts
    digits = _letter_digits(answer)
    words = [*facts["words_letters"], facts["result_letters"]]
    if set(digits) != set("".join(words)) or len(set(digits.values())) < len(digits):
        return False
    if not facts.get("allow_leading_zero", False) and any(digits[word[0]] == "0" for word in words):
        return False
    *addends, total = (int("".join(digits[letter] for letter in word)) for word in words)
    return sum(addends) == total


def _letter_digits(answer: str) -> dict[str, str]:
    pairs = [re.fullmatch(r"\s*([A-Z])\s*=\s*([0-9])\s*", pair) for pair in answer.split(",")]
    found = {pair[1]: pair[2] for pair in pairs if pair is not None}
    if None in pairs or len(found) < len(pairs):
        raise Unreadable("no list of letters with their digits, each letter once")
    return found


# --- grids -----------------------------------------------------------------------------------------------------------


def integer_grid(text: str, height: int, width: int) -> list[list[int]]:
    """Rows of integers with spaces between them. Raises Unreadable for another form or size."""
    grid = rows(text)
    if not all(re.fullmatch(r"\d{1,6}", cell, re.ASCII) for row in grid for cell in row):
        raise Unreadable("no grid of integers")
    if len(grid) != height or any(len(row) != width for row in grid):
        raise Unreadable(f"no grid of {height} rows and {width} columns")
    return [[int(cell) for cell in row] for row in grid]


def keeps_givens(grid: Sequence[Sequence[int]], puzzle: Sequence[Sequence[int]]) -> bool:
    """Whether every cell that the puzzle fills (not 0) is as there."""
    return all(
        given in (0, cell)
        for row, givens in zip(grid, puzzle, strict=True)
        for cell, given in zip(row, givens, strict=True)
    )


def solves_sudoku(answer: str, puzzle: Puzzle) -> bool:
    """Every row, column and square box has each number once, and the givens of `puzzle` stand."""
    givens = puzzle.facts["puzzle"]
    size = len(givens)
    return is_sudoku(integer_grid(answer, size, size), givens)


def is_sudoku(grid: Sequence[Sequence[int]], givens: Sequence[Sequence[int]]) -> bool:
    """The same of a grid that was read already."""
    size, side = len(givens), math.isqrt(len(givens))
    starts = range(0, size, side)
    boxes = [[grid[r + i][c + j] for i in range(side) for j in range(side)] for r in starts for c in starts]
    lines = [*map(list, grid), *map(list, zip(*grid, strict=True)), *boxes]
    return keeps_givens(grid, givens) and all(sorted(line) == list(range(1, size + 1)) for line in lines)


def solves_kakurasu(answer: str, puzzle: Puzzle) -> bool:
    """Zeros and ones; a row's ones sum to `row_sums` by their column number, and the columns by their row number."""
    row_sums, col_sums = list(puzzle.facts["row_sums"]), list(puzzle.facts["col_sums"])
    grid = integer_grid(answer, len(row_sums), len(col_sums))
    if any(cell not in (0, 1) for row in grid for cell in row):
        return False
    return _weighted(grid) == row_sums and _weighted(list(zip(*grid, strict=True))) == col_sums


def _weighted(lines: Sequence[Sequence[int]]) -> list[int]:
    return [sum(place * cell for place, cell in enumerate(line, start=1)) for line in lines]


def solves_survo(answer: str, puzzle: Puzzle) -> bool:
    """The givens stand, the gaps hold the candidates, and the last of each row and column is the sum of the others."""
    givens = puzzle.facts["puzzle"]
    grid = integer_grid(answer, len(givens), len(givens[0]))
    filled = [
        cell
        for row, row_givens in zip(grid, givens, strict=True)
        for cell, given in zip(row, row_givens, strict=True)
        if given == 0
    ]
    lines = [*grid, *zip(*grid, strict=True)]
    return (
        keeps_givens(grid, givens)
        and sorted(filled) == sorted(puzzle.facts["candidate_numbers"])
        and all(sum(line[:-1]) == line[-1] for line in lines)
    )


def solves_queens(answer: str, puzzle: Puzzle) -> bool:
    """As many queens as rows, none attacks another, and those that were there still are."""
    size = len(rows(puzzle.answer))
    board = rows(answer)
    if len(board) != size or any(len(row) != size or set(row) - {"_", "Q"} for row in board):
        raise Unreadable(f"no board of {size} rows of {size} cells, each _ or Q")
    cells = [cell for row in board for cell in row]
    givens = [given for row in puzzle.facts["puzzle"] for given in row]
    queens = [(r, c) for r in range(size) for c in range(size) if board[r][c] == "Q"]
    lines = ({r for r, _ in queens}, {c for _, c in queens}, {r + c for r, c in queens}, {r - c for r, c in queens})
    keeps = all(cell == "Q" for cell, given in zip(cells, givens, strict=True) if given == "Q")
    return keeps and len(queens) == size and all(len(line) == size for line in lines)


# --- ways and moves --------------------------------------------------------------------------------------------------


def finds_way(answer: str, puzzle: Puzzle) -> bool:
    """Steps from * to # in `matrix` that avoid X, no more than the shortest way; `infeasible` where there is none."""
    steps = answer.replace(",", " ").casefold().split()
    if puzzle.answer == "infeasible" or steps == ["infeasible"]:
        return same_words(answer, puzzle.answer)
    if not set(steps) <= set(_STEPS):
        raise Unreadable("no steps up, down, left or right")
    cells = {(r, c): cell for r, row in enumerate(puzzle.facts["matrix"]) for c, cell in enumerate(row)}
    place = next(place for place, cell in cells.items() if cell == "*")
    for step in steps:
        place = (place[0] + _STEPS[step][0], place[1] + _STEPS[step][1])
        if cells.get(place, "X") == "X":
            return False
    return cells[place] == "#" and len(steps) == len(puzzle.answer.split())


def follows_edges(answer: str, puzzle: Puzzle) -> bool:
    """`1-4-2`: from `start` to `end` along `edges`, by no more of them than `answer` has."""
    nodes = answer.split("-")
    if not all(node.isascii() and node.isdigit() for node in nodes):
        raise Unreadable("no nodes with - between them")
    edges = {frozenset(edge) for edge in puzzle.facts["edges"]}
    path = [int(node) for node in nodes]
    steps = list(zip(path, path[1:], strict=False))
    return (
        (path[0], path[-1]) == (puzzle.facts["start"], puzzle.facts["end"])
        and all(frozenset(step) in edges for step in steps)
        and len(path) <= len(puzzle.answer.split("-"))
    )


def moves_tower(answer: str, puzzle: Puzzle) -> bool:
    """Moves of one disk each, never onto a smaller one, that bring the tower over in no more moves than known."""
    facts = puzzle.facts
    moves = [_HANOI_MOVE.fullmatch(line.strip()) for line in answer.splitlines() if line.strip()]
    if not moves or None in moves:
        raise Unreadable("a line that is no move of a disk")
    pegs: dict[int, list[int]] = {peg: [] for peg in range(1, facts["num_pegs"] + 1)}
    pegs[facts["start_peg"]] = list(range(facts["num_disks"], 0, -1))
    for move in moves:
        assert move is not None
        disk, source, target = map(int, move.groups())
        if not {source, target} <= set(pegs) or not pegs[source] or pegs[source][-1] != disk:
            return False
        if pegs[target] and pegs[target][-1] <= disk:
            return False
        pegs[target].append(pegs[source].pop())
    return len(pegs[facts["target_peg"]]) == facts["num_disks"] and len(moves) <= facts["solution_length"]


def fills_jug(answer: str, puzzle: Puzzle) -> bool:
    """A JSON list of moves after which a jug holds the target; no more than four times as many as needed."""
    capacities = {chr(ord("A") + at): size for at, size in enumerate(puzzle.facts["puzzle"]["jug_capacities"])}
    target, fewest = puzzle.facts["puzzle"]["target"], puzzle.facts["puzzle"]["min_moves"]
    holds = dict.fromkeys(capacities, 0)
    moves = _jug_moves(answer)
    if len(moves) > 4 * fewest:
        return False
    for whole, jug, source, target_jug in moves:
        if not {jug or source, jug or target_jug} <= set(capacities):
            return False
        if whole:
            holds[jug] = capacities[jug] if whole == "fill" else 0
        elif source != target_jug:
            poured = min(holds[source], capacities[target_jug] - holds[target_jug])
            holds[source], holds[target_jug] = holds[source] - poured, holds[target_jug] + poured
    return target in holds.values()


def _jug_moves(answer: str) -> list[tuple[str, str, str, str]]:
    texts = read_json(answer)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Unreadable("no JSON list of moves")
    moves = [_JUG_MOVE.fullmatch(" ".join(text.split())) for text in texts]
    found = [(move[1] or "", move[2] or "", move[3] or "", move[4] or "") for move in moves if move is not None]
    if len(found) < len(moves):
        raise Unreadable("a move that is not fill, empty or pour")
    return found


def opens_lock(answer: str, puzzle: Puzzle) -> bool:
    """Buttons with arrows between them that bring the number to `target_value`, no more than the shortest way has.

    Every press of a button that acts switches the light; one that does not act in the present light does nothing.
    """
    facts = puzzle.facts
    presses = [press.strip() for press in re.split(r"→|->|\\to|\\rightarrow", answer)]
    buttons = {button["name"]: button for button in facts["buttons"]}
    if not set(presses) <= set(buttons):
        raise Unreadable("no buttons with arrows between them")
    value, light = facts["initial_value"], facts["initial_state"]
    for press in presses:
        button = buttons[press]
        if button["active_state"] in (light, "any"):
            value = _pressed(value, button["type"], button["value"])
            light = "green" if light == "red" else "red"
    return bool(value == facts["target_value"]) and len(presses) <= len(facts["solution_path"])


def _pressed(value: int, kind: str, amount: int) -> int:
    return {"add": value + amount, "subtract": value - amount, "multiply": value * amount}[kind]


# --- words -----------------------------------------------------------------------------------------------------------


def is_palindrome(answer: str, puzzle: Puzzle) -> bool:
    """All of the letters, reading the same from both ends."""
    text = answer.casefold()
    return text == text[::-1] and Counter(text) == Counter(puzzle.facts["letters"])


def tells_who_is_who(answer: str, puzzle: Puzzle) -> bool:
    """`Riley is a knight, and Mia is a knave`: the right role for each name, each once, in any order."""
    return _roles(answer) == _roles(puzzle.answer)


def _roles(text: str) -> list[tuple[str, str]]:
    parts = re.split(r", and |, | and ", " ".join(text.split()).removesuffix("."))
    matches = [_ROLE.fullmatch(part) for part in parts]
    found = [(match[1].casefold(), match[2].casefold()) for match in matches if match is not None]
    if len(found) < len(matches):
        raise Unreadable("no list of who is what")
    return sorted(found)


def fits_all_claims(answer: str, puzzle: Puzzle) -> bool:
    """One letter a speaker, K for those who tell the truth and L for liars, such that exactly the K claims are true.

    `claims` has [speaker, about, what] with numbers from 0; what is "K", "L", "=" (same as I) or "#" (not as I).
    """
    claims = puzzle.facts["claims"]
    if not re.fullmatch(r"[KL]+", answer) or len(answer) != len(puzzle.answer):
        raise Unreadable("no letter K or L for each speaker")
    return all((answer[speaker] == "K") == _holds(answer, speaker, about, what) for speaker, about, what in claims)


def _holds(roles: str, speaker: int, about: int, what: str) -> bool:
    if what in "KL":
        return roles[about] == what
    return (roles[about] == roles[speaker]) == (what == "=")


def solves_small_sudoku(answer: str, puzzle: Puzzle) -> bool:
    """As `solves_sudoku`, with rows of digits and a bar between them: `1234|3412|2143|4321`."""
    spaced = "\n".join(" ".join(row) for row in answer.split("|"))
    return solves_sudoku(spaced, puzzle)
