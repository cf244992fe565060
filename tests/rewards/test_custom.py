"""A user's own reward: the example of the documentation, and everything that can be wrong with one."""

import re
from pathlib import Path

import numpy as np
import pytest

from cispo.errors import ConfigError, RewardError
from cispo.types import Prompt, StopReason, Trajectory, Verdict
from rewards.custom import CustomReward
from rewards.math_answer import MathAnswer
from rewards.reward import Rewards, RewardsConfig

PROMPT = Prompt(id="sum/7", task="sum", text="1+1=", token_ids=(1,), reference="2")
MASK = np.array([False, True, True])
TRAJECTORY = Trajectory(np.ones(3, np.int64), MASK, np.zeros(3, np.float32), MASK - 1, StopReason.STOP)
HEAD = "def reward(prompt, text, reference, **info):\n"


@pytest.fixture
def written(tmp_path):
    def write(source):
        file = tmp_path / "mine.py"
        file.write_text(source)
        return f"{file}:reward"

    return write


def score(path, text=r"\boxed{2}", **settings):
    scorer = Rewards(RewardsConfig(custom=path, **settings), {"math": MathAnswer()})
    try:
        return scorer.submit(PROMPT, TRAJECTORY, text).result(timeout=60)
    finally:
        scorer.close()


def test_number_is_the_part_custom(written):
    result = score(written(HEAD + "    return 0.5"))
    assert result.parts == {"answer": 1.0, "format": 1.0, "custom": 0.5}
    assert (result.value, result.correct) == (1.5, True)


def test_named_parts_have_weights_of_their_own(written):
    path = written(HEAD + "    return {'brief': -len(text), 'polite': 'please' in text}")
    result = score(path, r"\boxed{3}", weights={"answer": 1.0, "brief": 0.1})
    assert result.parts == {"answer": 0.0, "format": 1.0, "brief": -9.0, "polite": 0.0}
    assert result.value == pytest.approx(-0.9)


def test_numpy_number_will_do(written):
    assert score(written("import numpy as np\n" + HEAD + "    return np.float32(0.5)")).parts["custom"] == 0.5


def test_function_is_told_what_happened(written):
    path = written(
        HEAD + "    assert (prompt, text, reference) == ('1+1=', '\\\\boxed{2}', '2')\n"
        "    assert info == dict(prompt_id='sum/7', task='sum', num_actions=2, stop_reason='stop',\n"
        "                        correct=True, verdict='correct'), info\n"
        "    return 1.0"
    )
    assert score(path).parts["custom"] == 1.0


def test_own_keywords_will_do(written):
    path = written("def reward(prompt, text, reference, *, num_actions, **_): return num_actions")
    assert score(path).parts["custom"] == 2.0


@pytest.mark.parametrize(("value", "correct"), [("1.0", True), ("0.9", False), ("{'answer': 1, 'style': 5}", True)])
def test_custom_reward_may_be_the_verifier(written, value, correct):
    result = score(written(HEAD + f"    return {value}"), "anything", verifiers={"sum": "custom"})
    assert result.correct is correct
    assert result.verdict is (Verdict.CORRECT if correct else Verdict.WRONG)
    assert result.parts["answer"] == pytest.approx(1.0 if correct else 0.9)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    return 1 / 0", r"reward in .*mine\.py, line 2, raised ZeroDivisionError.* on prompt sum/7"),
        ("    x = 1\n    return undefined", r"line 3, raised NameError"),
        ("    return float('nan')", r"mine\.py, line 1, returned nan .*sum/7.*finite number"),
        ("    return {'a': 1.0, 'b': float('inf')}", r"returned inf for the part 'b'"),
        ("    raise ValueError('two\\nlines')", r"raised ValueError: two lines on prompt"),
        ("    return None", r"returned None"),
        ("    return '1.0'", r"returned '1\.0'"),
        ("    return 10 ** 400", r"finite number"),
        ("    return {'format': 1.0}", r"part named 'format'"),
        ("    return {'answer': 1.0}", r"part named 'answer'"),
        ("    return {1: 1.0}", r"part named 1"),
    ],
)
def test_faulty_reward_ends_the_run_with_one_sentence(written, body, says):
    with pytest.raises(RewardError, match=says) as caught:
        score(written(HEAD + body))
    assert "\n" not in str(caught.value)


def test_verifier_without_an_answer_part_is_refused(written):
    with pytest.raises(RewardError, match=r'style.*without "answer"'):
        score(written(HEAD + "    return {'style': 1.0}"), verifiers={"sum": "custom"})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def other(): pass", r"mine\.py:reward, but the file has no function of that name"),
        ("reward = 3", "no function of that name"),
        ("def reward(text): return 1.0", r"reads def reward\(text\)"),
        ("def reward(prompt, text, reference): return 1.0", r"\*\*info"),
        ("async def reward(prompt, text, reference, **info): return 1.0", "must read def reward"),
        ("import no_such_module", r"line 1 raised ModuleNotFoundError"),
        ("x = 1\n\ny = 1 / 0", r"line 3 raised ZeroDivisionError"),
        ("def reward(:", r"line 1 raised SyntaxError"),
    ],
)
def test_file_that_cannot_serve_is_refused_at_the_start(written, source, says):
    with pytest.raises(ConfigError, match=says):
        CustomReward(written(source))


@pytest.mark.parametrize("path", ["mine.py", ":reward", "mine.py:", ""])
def test_path_needs_two_halves(path):
    with pytest.raises(ConfigError, match="path/to/file.py:function"):
        CustomReward(path)


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"absent\.py:reward, but there is no such file"):
        CustomReward("absent.py:reward")


def test_example_of_the_documentation_runs(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    (source,) = re.findall(r"```python\n# my_rewards\.py\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "my_rewards.py"
    file.write_text(source)
    weights = {"answer": 1.0, "format": 0.0, "length": 1.0, "checked": 0.2}
    text = r"<think>1+1 is 2. Let me check: 2-1=1.</think>\boxed{2}"
    result = score(f"{file}:reward", text, weights=weights)
    assert result.parts == {"answer": 1.0, "format": 1.0, "checked": 1.0, "brevity": pytest.approx(0.0)}
    assert result.value == pytest.approx(1.2)


def test_file_may_hold_dataclasses_with_postponed_annotations(written):
    source = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Mark:\n"
        "    value: float\n"
        "def reward(prompt, text, reference, **info):\n"
        "    return Mark(0.5).value\n"
    )
    assert CustomReward(written(source)).parts(PROMPT, TRAJECTORY, "x", None) == {"answer": 0.5}
