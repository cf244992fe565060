r"""Math verdicts a second, and how many are right, against math-verify as its users call it and string normalisation.

    python benchmarks/grading.py                   about five minutes
    python benchmarks/grading.py --verdicts 200    quicker and rougher

All sides get the same texts (`<think>...</think>So it is \boxed{...}.`) and references, one after the other in one
process:

    ours          rewards.math_answer.MathAnswer; what needs a parser goes to its worker process
    math_verify   verify(parse(reference in a box), parse(text)), with its defaults
    strings       equality after the usual string clean-up, written anew here

Speed is by kind of answer, random pairs of which about half are right, and for a mix of 90 % integers. CPU seconds
count the
worker's too; repeats alternate between the sides, medians are shown. Accuracy is over tests/rewards/math_pairs.tsv: the
hard table by itself, the pairs that were written before the rules were tried on them ("fresh"), and all of them; ours
was written with these pairs at hand, the others were not. Results go to benchmarks/results/grading.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import machine

from rewards.answer_format import last_box
from rewards.math_answer import MathAnswer

RESULTS = Path(__file__).parent / "results" / "grading.json"
PAIRS = Path(__file__).parents[1] / "tests" / "rewards" / "math_pairs.tsv"
REPEATS = 3
Pair = tuple[str, str]
Grader = Callable[[str, str], bool]


def text_of(answer: str) -> str:
    return f"<think>Some thinking.</think>So it is \\boxed{{{answer}}}."


# --- the sides --------------------------------------------------------------------------------------------------


def plain_math_verify() -> Grader:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return lambda gold, text: bool(verify(parse(f"\\boxed{{{gold}}}"), parse(text)))


def strings(gold: str, text: str) -> bool:
    """What the graders of the Hendrycks family do: strip typography, spell fractions alike, compare."""
    answer = last_box(text)
    return answer is not None and cleaned(gold) == cleaned(answer)


def cleaned(latex: str) -> str:
    for gone in (r"\left", r"\right", r"\!", r"\,", r"\;", r"\ ", r"\$", "$", r"^{\circ}", r"^\circ", r"\%", "%", "\n"):
        latex = latex.replace(gone, "")
    latex = re.sub(r"\\[dt]frac", r"\\frac", latex)
    latex = re.sub(r"\\text\{[^{}]*\}$", "", latex) or latex
    latex = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", latex)
    latex = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", latex)
    latex = re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", latex)
    latex = re.sub(r"(?<=\d),(?=\d{3})", "", latex)
    head, equals, value = latex.partition("=")
    latex = value if equals and len(head.strip()) <= 2 else latex
    return latex.replace(" ", "").rstrip(".")


# --- speed ------------------------------------------------------------------------------------------------------


def integers(rng: random.Random) -> Pair:
    number = rng.randint(-(10**6), 10**6)
    return str(number), str(number + rng.choice((0, 0, 1, -7)))


def decimals(rng: random.Random) -> Pair:
    number = rng.randint(1, 10**6)
    return f"{number / 1000:.3f}", f"{(number + rng.choice((0, 1))) / 1000:.4f}"


def fractions(rng: random.Random) -> Pair:
    top, bottom, factor = rng.randint(1, 999), rng.randint(2, 999), rng.randint(1, 9)
    return f"\\frac{{{top}}}{{{bottom}}}", f"{top * factor}/{bottom * factor + rng.choice((0, 1))}"


def choices(rng: random.Random) -> Pair:
    gold, other = rng.choice("ABCDE"), rng.choice("ABCDE")
    return gold, rng.choice(("{}", "({})", r"\textbf{{({})}}", r"\text{{{}}}")).format(rng.choice((gold, other)))


def quantities(rng: random.Random) -> Pair:
    number = rng.randint(1, 10**5)
    unit = rng.choice((" cm", "", r"\text{ centimeters}"))
    return f"{number}\\text{{ cm}}", f"{number + rng.choice((0, 1))}{unit}"


def roots(rng: random.Random) -> Pair:
    outside, inside = rng.randint(2, 99), rng.choice((2, 3, 5, 7, 11, 13))
    return f"{outside}\\sqrt{{{inside}}}", f"\\sqrt{{{outside**2 * inside + rng.choice((0, 1))}}}"


def polynomials(rng: random.Random) -> Pair:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b + rng.choice((0, 1))}"


def intervals(rng: random.Random) -> Pair:
    start, length = rng.randint(-99, 99), rng.randint(1, 99)
    return f"({start},{start + length}]", f"{start}<x\\le {start + length + rng.choice((0, 1))}"


KINDS = {
    "integers": integers,
    "decimals": decimals,
    "fractions": fractions,
    "choices": choices,
    "quantities": quantities,
    "roots": roots,
    "polynomials": polynomials,
    "intervals": intervals,
}


def mix(rng: random.Random) -> Pair:
    """Nine integers to one of the other kinds."""
    others = [kind for kind in KINDS.values() if kind is not integers]
    return integers(rng) if rng.random() < 0.9 else rng.choice(others)(rng)


def cpu_seconds(pids: Sequence[int]) -> float:
    """Of this process and of the workers."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def timed(grade: Grader, pairs: Sequence[Pair], pids: Callable[[], Sequence[int]]) -> tuple[float, float]:
    """Verdicts per CPU second and per second of wall time."""
    texts = [(gold, text_of(answer)) for gold, answer in pairs]
    cpu, wall = cpu_seconds(pids()), time.perf_counter()
    for gold, text in texts:
        grade(gold, text)
    return len(texts) / (cpu_seconds(pids()) - cpu), len(texts) / (time.perf_counter() - wall)


def measure(sides: dict[str, Grader], num: int, pids: Callable[[], Sequence[int]]) -> Iterator[dict[str, Any]]:
    for name, make in {**KINDS, "mix, 90 % integers": mix}.items():
        rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        cheap = name in ("integers", "decimals", "fractions", "choices", "quantities")
        for repeat in range(REPEATS):
            rng = random.Random(f"{name} {repeat}")
            pairs = [make(rng) for _ in range(num)]
            for side, grade in sides.items():
                # Ours and strings are too fast to be timed on a few hundred; more of the same kind then.
                more = [make(rng) for _ in range(19 * num)] if cheap and side != "math_verify" else []
                rates[side].append(timed(grade, pairs + more, pids))
        row: dict[str, Any] = {"kind": name}
        for side, found in rates.items():
            row[side] = {
                "per_cpu_second": round(statistics.median(cpu for cpu, _ in found), 1),
                "per_second": round(statistics.median(wall for _, wall in found), 1),
            }
        print(f"{name:<20}" + "".join(f" {row[side]['per_cpu_second']:>14,.0f}" for side in sides), flush=True)
        yield row


# --- accuracy ---------------------------------------------------------------------------------------------------


def read_pairs() -> list[tuple[str, str, str, bool]]:
    """(section, reference, answer, whether it is right), each as it stands in the file."""
    section, pairs = "", []
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            section = line[2:].partition(":")[0]
        elif line:
            kind, gold, answer, *_ = line.split("\t")
            pairs.append((section, gold, answer, kind.startswith("same")))
    return pairs


def accuracy(sides: dict[str, Grader], pairs: Sequence[tuple[str, str, str, bool]]) -> dict[str, Any]:
    counts: dict[str, Any] = {"pairs": len(pairs), "right_answers": sum(same for *_, same in pairs)}
    for side, grade in sides.items():
        verdicts = [(same, grade(gold, text_of(answer))) for _, gold, answer, same in pairs]
        counts[side] = {
            "right_verdicts": sum(same == said for same, said in verdicts),
            "false_positives": sum(said and not same for same, said in verdicts),
            "false_negatives": sum(same and not said for same, said in verdicts),
        }
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=300, help="of each kind, side and repeat")
    options = parser.parse_args()
    verifier = MathAnswer()
    verifier.start()
    sides: dict[str, Grader] = {
        "ours": lambda gold, text: verifier.score(text, gold).correct,
        "math_verify": plain_math_verify(),
        "strings": strings,
    }
    print("verdicts per CPU second".ljust(20) + "".join(f" {side:>14}" for side in sides))
    try:
        speed = list(measure(sides, options.verdicts, lambda: verifier._pool.pids))
        pairs = read_pairs()
        sets = {
            "hard table": [pair for pair in pairs if pair[0] == "hard"],
            "fresh": [pair for pair in pairs if pair[0].startswith("fresh")],
            "all": pairs,
        }
        right = {name: accuracy(sides, chosen) for name, chosen in sets.items()}
    finally:
        verifier.close()
    for name, counts in right.items():
        for side in sides:
            found = counts[side]
            print(
                f"{name:<11} {side:<12} {found['right_verdicts']:>4} of {counts['pairs']} right, "
                f"{found['false_positives']} false positives, {found['false_negatives']} false negatives"
            )
    libraries = ("math-verify", "latex2sympy2_extended", "sympy")
    result = {"machine": machine(*libraries), "verdicts": options.verdicts, "speed": speed, "accuracy": right}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
