"""Which procedural tasks the logic verifier knows, and how each one's answers are checked.

The datasets of reasoning-gym are here under "gym/<dataset>", our own puzzles under their names. The library's scorers
pay for substrings, for a near miss, for any text at all, or evaluate the answer, so none of them is used: an answer is
compared by its form (rewards/logic_forms.py) or checked by the rules (rewards/logic_rules.py). Both take milliseconds
at most, so no process has to be killed and no worker imports reasoning-gym. Which datasets are left out, and why, is
in rollout/gym_datasets.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rewards import logic_forms as forms
from rewards import logic_rules as rules
from rewards.logic_rules import Puzzle

GYM = "gym/"
"""What the names of reasoning-gym's datasets begin with here."""


@dataclass(frozen=True)
class ByForm:
    """One answer is right; `same` compares it with what was written."""

    form: str
    same: Callable[[str, str], bool]


@dataclass(frozen=True)
class ByRules:
    """Several answers may be right; `solves` checks the rules. `facts` are what it needs of the puzzle."""

    solves: Callable[[str, Puzzle], bool]
    facts: tuple[str, ...]


Scorer = ByForm | ByRules

_TEXT = ByForm("text", forms.same_text)
_WORDS = ByForm("words", forms.same_words)
_NUMBER = ByForm("number", forms.same_number)
_ITEMS = ByForm("list", forms.same_items)
_NUMBERS = ByForm("numbers", forms.same_numbers)
_FRACTION = ByForm("reduced fraction", forms.same_reduced_fraction)

_ONE_ANSWER: dict[ByForm, str] = {
    _TEXT: "ab arc_1d arc_agi binary_matrix caesar_cipher emoji_mystery letter_jumble manipulate_matrix modulo_grid "
    "path_star rearc rotate_matrix spiral_matrix string_insertion string_manipulation string_splitting "
    "string_synthesis",
    _WORDS: "base_conversion circuit_logic color_cube_rotation course_schedule family_relationships figlet_font "
    "mahjong_puzzle needle_haystack spell_backward syllogism tsumego zebra_puzzles "
    "calendar_arithmetic",
    _NUMBER: "aiw basic_arithmetic binary_alternation chain_sum count_bits count_primes decimal_arithmetic "
    "decimal_chain_sum gcd largest_island lcm leg_counting letter_counting maze number_format number_sequence "
    "products rotten_oranges self_reference simple_equations simple_geometry",
    _ITEMS: "word_sequence_reversal word_sorting",
    _NUMBERS: "number_filtering number_sorting",
    _FRACTION: "dice fraction_simplification",
    ByForm("characters", forms.same_letters): "advanced_geometry",
    ByForm("hexadecimal", forms.same_hexadecimal): "bitwise_arithmetic",
    ByForm("complex number", forms.same_complex): "complex_arithmetic",
    ByForm("three digits", forms.same_to_three_digits): "power_function",
    ByForm("factors", forms.same_factors): "prime_factorization",
    ByForm("groups", forms.same_groups): "group_anagrams",
    ByForm("set of lists", forms.same_set_of_lists): "palindrome_partitioning",
    ByForm("antiderivative", forms.same_antiderivative): "simple_integration",
}

_SEVERAL_ANSWERS: dict[str, ByRules] = {
    "coin_flip": ByRules(rules.is_probability, ("rational",)),
    "countdown": ByRules(rules.makes_target, ("numbers", "target")),
    "cryptarithm": ByRules(rules.solves_cryptarithm, ("words_letters", "result_letters", "allow_leading_zero")),
    "jugs": ByRules(rules.fills_jug, ("puzzle",)),
    "kakurasu": ByRules(rules.solves_kakurasu, ("row_sums", "col_sums")),
    "knights_knaves": ByRules(rules.tells_who_is_who, ()),
    "mini_sudoku": ByRules(rules.solves_sudoku, ("puzzle",)),
    "n_queens": ByRules(rules.solves_queens, ("puzzle",)),
    "palindrome_generation": ByRules(rules.is_palindrome, ("letters",)),
    "quantum_lock": ByRules(
        rules.opens_lock, ("buttons", "initial_state", "initial_value", "target_value", "solution_path")
    ),
    "shortest_path": ByRules(rules.finds_way, ("matrix",)),
    "sudoku": ByRules(rules.solves_sudoku, ("puzzle",)),
    "survo": ByRules(rules.solves_survo, ("puzzle", "candidate_numbers")),
    "tower_of_hanoi": ByRules(
        rules.moves_tower, ("num_disks", "num_pegs", "start_peg", "target_peg", "solution_length")
    ),
}

OWN: dict[str, Scorer] = {
    "game24": ByRules(rules.makes_24, ("numbers",)),
    "sudoku4": ByRules(rules.solves_small_sudoku, ("puzzle",)),
    "knights": ByRules(rules.fits_all_claims, ("claims",)),
    "path": ByRules(rules.follows_edges, ("start", "end", "edges")),
}
"""The puzzles of rollout/puzzle_tasks.py."""

SCORERS: dict[str, Scorer] = {
    **{GYM + name: form for form, names in _ONE_ANSWER.items() for name in names.split()},
    **{GYM + name: scorer for name, scorer in _SEVERAL_ANSWERS.items()},
    **OWN,
}
"""How the answers of each task are checked."""
