"""`cispo rewards audit` on rewards that are sound, gullible, too strict and broken."""

import json
from pathlib import Path

import pytest

from cispo.types import Prompt
from launch.cli import main
from rewards.math_answer import MathAnswer
from rewards.probes import GOLD, probes_of

ROWS = [
    {"prompt": "2+2=", "reference": "4", "id": "sum"},
    {"prompt": "Half of one?", "reference": "\\frac{1}{2}", "id": "half"},
    {"prompt": "The positive root of x^2=8?", "reference": "2\\sqrt{2}", "id": "root"},
]
DOUBLE = {"entry": "f", "tests": [{"args": [4], "returns": 8}, {"args": [0], "returns": 0}]}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(rows):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def run(*arguments):
    """Exit status and what `--json` wrote."""
    status = main(["rewards", "audit", *arguments, "--json", "audit.json"])
    return status, json.loads(Path("audit.json").read_text())


def custom(tmp_path, body):
    (tmp_path / "own.py").write_text(f"def reward(prompt, text, reference, **info):\n    {body}\n")
    return ["rewards.custom=own.py:reward", "rewards.default_verifier=custom"]


def test_sound_rewards_pass(file, capsys):
    status, found = run(file(ROWS))
    assert (status, found["passes"], found["faults"]) == (0, True, [])
    assert found["kinds"]["gold"]["passed"] == 3
    assert found["kinds"]["hack"]["tried"] > 20
    assert found["kinds"]["other row"]["tried"] == 6
    printed = capsys.readouterr().out
    assert "false negatives 0.00%" in printed and "p99 ms" in printed


def test_programs_are_tried_with_their_solution_or_told_to_have_none(file):
    rows = [
        {"prompt": "f doubles x", "reference": DOUBLE, "task": "program", "solution": "def f(x): return 2 * x"},
        {"prompt": "say hi", "reference": {"tests": [{"stdin": "", "stdout": "hi"}]}, "task": "program"},
    ]
    status, found = run(file(rows))
    assert (status, found["num_without_gold"], found["kinds"]["gold"]["passed"]) == (0, 1, 1)


def test_a_solution_that_is_wrong_is_a_false_negative(file):
    row = {"prompt": "f doubles x", "reference": DOUBLE, "task": "program", "solution": "def f(x): return x + x + 1"}
    status, found = run(file([row]))
    assert (status, found["false_negative_share"], found["false_positive_share"]) == (1, 1.0, 0.0)
    assert "x + x + 1" in found["faults"][0]["probe"]["text"]


def test_a_gullible_reward_is_found_out_and_may_be_put_up_with(file, tmp_path, capsys):
    overrides = custom(tmp_path, "return float(str(reference) in text)")  # pays for naming the number anywhere
    rows = [{"prompt": "2+2= (not 5)", "reference": "5"}, {"prompt": "1+1=", "reference": "2"}]
    status, found = run(file(rows), *overrides)
    assert (status, found["false_negative_share"]) == (1, 0.0)
    assert found["false_positive_share"] > 0
    assert "the question copied" in capsys.readouterr().out
    assert run(file(rows), *overrides, "--max-false-positives", "1")[0] == 0


def test_a_reward_that_pays_nobody_fails_every_gold(file, tmp_path):
    status, found = run(file(ROWS), *custom(tmp_path, "return 0.0"))
    assert (status, found["false_negative_share"], found["false_positive_share"]) == (1, 1.0, 0.0)


def test_a_reward_that_raises_is_not_judged_and_says_where(file, tmp_path):
    status, found = run(file(ROWS), *custom(tmp_path, "return 1.0 / len(text.strip())"))
    assert status == 1
    assert {fault["verdict"] for fault in found["faults"]} >= {"raised"}
    assert any("ZeroDivisionError" in fault["note"] for fault in found["faults"])


def test_a_procedural_task_is_named_instead_of_a_file(file):
    status, found = run("chain", "--max-prompts", "5")
    assert (status, found["num_prompts"], found["kinds"]["gold"]["passed"]) == (0, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.jsonl"], "does not exist"),
        (["chian"], "did you mean 'chain'"),
        (["chain", "--max-prompts", "0"], "--max-prompts"),
        (["chain", "--max-false-positives", "2"], "a share from 0 to 1"),
    ],
)
def test_what_cannot_be_tried_is_one_sentence(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["rewards", "audit", *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "gold", ["7", "-3", "0.5", "10\\%", "\\$5", "A", "x^2+1", "(1,2)", "\\text{Monday}", "12:30", "\\{1,2\\}"]
)
def test_no_trick_answers_a_math_reference(gold):
    """Whatever kind the reference has; and the probe that is right is the only one that deserves it."""
    verifier = MathAnswer()
    probes = probes_of(Prompt("p", "math", "What is 3 times 9?", (0,), gold), verifier="math", boxed=True)
    found = {(probe.name or probe.text): verifier.score(probe.text, gold).correct for probe in probes}
    verifier.close()
    wanted = {(probe.name or probe.text): probe.kind == GOLD for probe in probes}
    assert found == wanted


def test_puzzles_and_patches_have_probes_of_their_own(file):
    rows = [{"prompt": "gcd of 8 and 12?", "reference": {"task": "gym/gcd", "answer": "4"}, "task": "gym/gcd"}]
    status, found = run(file(rows))
    assert (status, found["kinds"]["gold"]["passed"], found["faults"]) == (0, 1, [])
    project = {"shapes.py": "def area(side):\n    return side\n"}
    tests = {"tests/test_shapes.py": "from shapes import area\n\ndef test_area():\n    assert area(3) == 9\n"}
    reference = {"repository": project, "tests": tests, "fail_to_pass": ["tests/test_shapes.py::test_area"]}
    reference["pass_to_pass"] = []
    diff = "--- a/shapes.py\n+++ b/shapes.py\n@@ -2 +2 @@\n-    return side\n+    return side * side\n"
    row = {"prompt": "area", "reference": reference, "task": "fix", "gold": f"```diff\n{diff}```"}
    status, found = run(file([row]), "rewards.verifiers={fix: repository}")
    assert (status, found["kinds"]["gold"]["passed"], found["faults"]) == (0, 1, [])
    assert found["kinds"]["hack"]["tried"] >= 6


@pytest.mark.parametrize("task", ["gym/gcd", "game24", "chain"])
def test_procedural_tasks_are_tried_by_name(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, found = run(task, "--max-prompts", "5")
    assert (status, found["num_prompts"], found["kinds"]["gold"]["passed"], found["faults"]) == (0, 5, 5, [])
