"""Which datasets of reasoning-gym are tasks here, at which difficulty, and which are not, and why.

Measured with reasoning-gym 0.1.25, 25 problems at each of the library's levels. A dataset is left out if its problems
depend on anything but the seed, if they take much longer than 20 ms each, or if no answer, or any, would be right. Of
the levels, those stay whose prompts are of a few thousand characters at most. tests/rewards/test_logic_datasets.py
holds that each one that stays pays for its own answer and for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GymDataset:
    """One dataset.

    Attributes:
        first, last: the library's levels that difficulty 0 and 1 stand for.
        facts: the keys of an entry's metadata that the verifier needs; a dataset with one right answer needs none.
    """

    first: int
    last: int
    facts: tuple[str, ...] = ()


GYM_DATASETS: dict[str, GymDataset] = {
    "ab": GymDataset(0, 3),
    "advanced_geometry": GymDataset(0, 3),
    "aiw": GymDataset(0, 6),
    "arc_1d": GymDataset(0, 3),
    "arc_agi": GymDataset(0, 3),
    "base_conversion": GymDataset(0, 3),
    "basic_arithmetic": GymDataset(0, 4),
    "binary_alternation": GymDataset(0, 2),
    "binary_matrix": GymDataset(0, 1),
    "bitwise_arithmetic": GymDataset(0, 5),
    "caesar_cipher": GymDataset(0, 1),
    "calendar_arithmetic": GymDataset(0, 3),
    "chain_sum": GymDataset(0, 9),
    "circuit_logic": GymDataset(0, 1),
    "coin_flip": GymDataset(3, 12, ("rational",)),
    "color_cube_rotation": GymDataset(0, 2),
    "complex_arithmetic": GymDataset(0, 2),
    "count_bits": GymDataset(0, 4),
    "count_primes": GymDataset(0, 3),
    "countdown": GymDataset(0, 1, ("numbers", "target")),
    "course_schedule": GymDataset(0, 2),
    "cryptarithm": GymDataset(0, 2, ("words_letters", "result_letters", "allow_leading_zero")),
    "decimal_arithmetic": GymDataset(0, 3),
    "decimal_chain_sum": GymDataset(0, 3),
    "dice": GymDataset(0, 3),
    "emoji_mystery": GymDataset(0, 4),
    "family_relationships": GymDataset(0, 8),
    "figlet_font": GymDataset(0, 2),
    "fraction_simplification": GymDataset(0, 2),
    "gcd": GymDataset(0, 3),
    "group_anagrams": GymDataset(0, 1),
    "jugs": GymDataset(0, 0, ("puzzle",)),
    "kakurasu": GymDataset(0, 3, ("row_sums", "col_sums")),
    "knights_knaves": GymDataset(0, 3),
    "largest_island": GymDataset(0, 1),
    "lcm": GymDataset(0, 3),
    "leg_counting": GymDataset(0, 9),
    "letter_counting": GymDataset(0, 7),
    "letter_jumble": GymDataset(0, 3),
    "mahjong_puzzle": GymDataset(0, 1),
    "manipulate_matrix": GymDataset(0, 1),
    "maze": GymDataset(0, 1),
    "mini_sudoku": GymDataset(0, 4, ("puzzle",)),
    "modulo_grid": GymDataset(0, 0),
    "n_queens": GymDataset(1, 2, ("puzzle",)),
    "needle_haystack": GymDataset(0, 0),
    "number_filtering": GymDataset(0, 2),
    "number_format": GymDataset(0, 1),
    "number_sequence": GymDataset(0, 0),
    "number_sorting": GymDataset(0, 1),
    "palindrome_generation": GymDataset(0, 2, ("letters",)),
    "palindrome_partitioning": GymDataset(0, 1),
    "path_star": GymDataset(0, 3),
    "power_function": GymDataset(0, 4),
    "prime_factorization": GymDataset(0, 3),
    "products": GymDataset(0, 5),
    "quantum_lock": GymDataset(0, 5, ("buttons", "initial_state", "initial_value", "target_value", "solution_path")),
    "rearc": GymDataset(0, 3),
    "rotate_matrix": GymDataset(0, 1),
    "rotten_oranges": GymDataset(0, 1),
    "self_reference": GymDataset(0, 9),
    "shortest_path": GymDataset(0, 1, ("matrix",)),
    "simple_equations": GymDataset(0, 3),
    "simple_geometry": GymDataset(0, 2),
    "simple_integration": GymDataset(0, 3),
    "spell_backward": GymDataset(0, 4),
    "spiral_matrix": GymDataset(0, 1),
    "string_insertion": GymDataset(0, 2),
    "string_manipulation": GymDataset(0, 1),
    "string_splitting": GymDataset(0, 1),
    "string_synthesis": GymDataset(0, 1),
    "sudoku": GymDataset(0, 2, ("puzzle",)),
    "survo": GymDataset(0, 1, ("puzzle", "candidate_numbers")),
    "syllogism": GymDataset(0, 3),
    "tower_of_hanoi": GymDataset(1, 1, ("num_disks", "num_pegs", "start_peg", "target_peg", "solution_length")),
    "tsumego": GymDataset(0, 1),
    "word_sequence_reversal": GymDataset(0, 2),
    "word_sorting": GymDataset(0, 3),
    "zebra_puzzles": GymDataset(0, 0),
}
"""The enabled datasets."""

DENIED: dict[str, str] = {
    "acre": "makes all its problems when it is built, so a problem depends on how many there are",
    "bf": "prints to the terminal while it makes a problem",
    "boxnet": "has entries without an answer, and a scorer that pays for plans that do not solve them",
    "codeio": "runs programs of its data in the process that asks for a problem, and wants floats to the last digit",
    "composite": "is a mixture; task.mixture does that",
    "futoshiki": "takes 26 to 45 ms above its first level, and its answers hold the signs between the cells",
    "game_of_life": "takes 19 to 53 ms, and from its second level on every answer is the empty grid",
    "game_of_life_halting": "has one prompt from its third level on, and a scorer that pays for any text",
    "graph_color": "has entries without an answer, and a scorer that gives 0 to what they hold",
    "gsm_symbolic": "draws all its problems when it is built, so a problem depends on how many there are",
    "intermediate_integration": "takes 41 ms, and only evaluating an answer can tell whether it is right",
    "isomorphic_strings": "differs from process to process, with Python's hash seed",
    "knight_swap": "takes 349 ms",
    "list_functions": "draws from Python's global generator, so the seed does not decide its problems",
    "polynomial_equations": "wants the empty text where no real number solves the equation",
    "polynomial_multiplication": "differs from process to process, with Python's hash seed",
    "pool_matrix": "sets the seed of numpy's global generator, which is everybody's",
    "propositional_logic": "has entries without an answer, and a scorer that pays 0.25 for garbage",
    "puzzle24": "takes 37 to 63 ms, and its scorer takes other numbers than those given; game24 is the same puzzle",
    "ransom_note": "differs from process to process, with Python's hash seed",
    "rectangle_count": "has no prompt of less than 6,800 characters",
    "rubiks_cube": "has entries without an answer, and a scorer that gives 0 to what they hold",
    "rush_hour": "has entries without an answer, and a scorer that gives 0 to what they hold",
    "sentence_reordering": "knows one order of the words where several are right",
    "sokoban": "may take more than 10 s",
    "time_intervals": "asks about the day on which a problem is made",
    "word_ladder": "gives problems that depend on how many were asked for before",
}
"""The others, each with what is wrong with it, as the rest of a sentence that begins with its name."""
