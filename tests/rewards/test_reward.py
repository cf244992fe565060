"""The weighted sum by hand, verdicts, retries, and the trajectory that is truncated."""

import logging
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cispo.errors import ConfigError, RewardError
from cispo.types import Prompt, Score, StopReason, Trajectory, Verdict
from rewards.length import SoftOverlongConfig
from rewards.math_answer import MathAnswer, MathAnswerConfig
from rewards.reward import Rewards, RewardsConfig

WEIGHTS = {"answer": 2.0, "format": 0.5, "length": 0.25}
OVERLONG = SoftOverlongConfig(limit_tokens=100, buffer_tokens=40)


class Scripted:
    """A verifier that returns or raises what it was given, one after the other, the last one for ever."""

    def __init__(self, *results):
        self.results = list(results)
        self.calls = []
        self.closed = False

    def score(self, text, reference):
        self.calls.append((text, reference))
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result

    def close(self):
        self.closed = True


SOLVED = Score(1.0, True, {"answer": 1.0}, Verdict.CORRECT, "all good")
HALF = Score(0.5, False, {"answer": 0.5}, Verdict.WRONG, "2 of 4 tests")
BROKEN = Score(math.nan, False, {}, Verdict.SYSTEM_ERROR, "no sandbox")


def prompt(task="sum", text="1+1=", reference="2"):
    return Prompt(id=f"{task}/0", task=task, text=text, token_ids=(1,), reference=reference)


def trajectory(num_actions=10, stop_reason=StopReason.STOP):
    length = num_actions + 1
    mask = np.arange(length) > 0
    return Trajectory(np.ones(length, np.int64), mask, np.zeros(length, np.float32), mask - 1, stop_reason)


@pytest.fixture
def rewards():
    made = []

    def make(config, **verifiers):
        made.append(Rewards(config, {"math": MathAnswer()} | verifiers))
        return made[-1]

    yield make
    for each in made:
        each.close()


SUM = prompt()
SHORT = trajectory()


def score(rewards, text, prompt=SUM, trajectory=SHORT):
    return rewards.submit(prompt, trajectory, text).result(timeout=60)


def test_value_is_the_weighted_sum(rewards):
    scorer = rewards(RewardsConfig(weights=WEIGHTS, soft_overlong=OVERLONG))
    result = score(scorer, r"<think>a</think>\boxed{2}", trajectory=trajectory(80))
    assert result.parts == {"answer": 1.0, "format": 1.0, "length": -0.5}
    assert result.value == 2.0 * 1.0 + 0.5 * 1.0 + 0.25 * -0.5
    assert (result.correct, result.verdict) == (True, Verdict.CORRECT)


def test_wrong_answer_in_good_form(rewards):
    result = score(rewards(RewardsConfig(weights=WEIGHTS)), r"<think>a</think>\boxed{3}")
    assert result.parts == {"answer": 0.0, "format": 1.0}
    assert (result.value, result.correct, result.verdict) == (0.5, False, Verdict.WRONG)
    assert result.note == "expected 2, got 3"


def test_part_without_a_weight_is_logged_and_not_paid(rewards):
    result = score(rewards(RewardsConfig(weights={"answer": 1.0})), r"<think>a\boxed{2}")
    assert result.parts == {"answer": 0.0, "format": 0.0}
    result = score(rewards(RewardsConfig(weights={"answer": 1.0})), r"\boxed{2}")
    assert (result.parts, result.value) == ({"answer": 1.0, "format": 1.0}, 1.0)


def test_truncated_answer_is_graded_and_pays_the_length_penalty(rewards):
    scorer = rewards(RewardsConfig(weights=WEIGHTS, soft_overlong=OVERLONG))
    result = score(scorer, r"\boxed{2}", trajectory=trajectory(5, StopReason.LENGTH))
    assert result.parts == {"answer": 1.0, "format": 1.0, "length": -1.0}
    assert result.correct
    assert result.value == 2.25


def test_block_that_the_prompt_opened_belongs_to_the_text(rewards):
    scorer = rewards(RewardsConfig(weights=WEIGHTS))
    opened = prompt(text="1+1=<think>\n")
    assert score(scorer, r"a</think>\boxed{2}", opened).parts == {"answer": 1.0, "format": 1.0}
    assert score(scorer, r"\boxed{2} is my guess", opened).verdict is Verdict.UNPARSEABLE
    assert score(scorer, r"a</think>\boxed{2}").parts["format"] == 0.0


def test_each_task_has_its_verifier(rewards):
    code = Scripted(HALF)
    scorer = rewards(RewardsConfig(verifiers={"program": "code"}, weights=WEIGHTS), code=code)
    reference = {"tests": [1]}
    result = score(scorer, "print(1)", prompt("program", reference=reference))
    assert code.calls == [("print(1)", reference)]
    assert result.parts == {"answer": 0.5, "format": 1.0}, "a program needs no box"
    assert (result.value, result.correct, result.note) == (1.5, False, "2 of 4 tests")
    assert score(scorer, r"\boxed{2}").correct


def test_unboxed_math_needs_no_box_for_its_form():
    config = RewardsConfig(math=MathAnswerConfig(answer_is_boxed=False))
    scorer = Rewards(config, {"math": MathAnswer(config.math)})
    assert score(scorer, "<think>1+1</think>2").parts == {"answer": 1.0, "format": 1.0}
    scorer.close()


@pytest.mark.parametrize("fault", [BROKEN, OSError("no more descriptors")])
def test_system_error_is_retried(rewards, fault):
    code = Scripted(fault, fault, SOLVED)
    scorer = rewards(RewardsConfig(default_verifier="code", retries=2), code=code)
    assert score(scorer, "x").verdict is Verdict.CORRECT
    assert len(code.calls) == 3


@pytest.mark.parametrize("fault", [BROKEN, OSError("no more descriptors")])
def test_lasting_system_error_is_nan_and_never_zero(rewards, fault):
    code = Scripted(fault)
    scorer = rewards(RewardsConfig(default_verifier="code", retries=1, weights=WEIGHTS), code=code)
    result = score(scorer, "x")
    assert len(code.calls) == 2
    assert math.isnan(result.value)
    assert (result.verdict, result.usable, result.correct) == (Verdict.SYSTEM_ERROR, False, False)
    assert "no" in result.note


def test_system_error_is_logged_once_for_each_reason(rewards, caplog):
    other = Score(math.nan, False, {}, Verdict.SYSTEM_ERROR, "no disk")
    scorer = rewards(RewardsConfig(default_verifier="code", retries=0), code=Scripted(BROKEN, BROKEN, other))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            score(scorer, "x")
    notes = [record.getMessage().rpartition(": ")[2] for record in caplog.records if record.name == "rewards.reward"]
    assert notes == ["no sandbox", "no disk"]


class Starting(Scripted):
    """A verifier whose start waits for the gate and then raises what it was given."""

    def __init__(self, fault=None):
        super().__init__(SOLVED)
        self.gate, self.ended, self.fault = threading.Event(), threading.Event(), fault

    def start(self):
        assert self.gate.wait(60)
        self.ended.set()
        if self.fault is not None:
            raise self.fault


def test_start_does_not_delay_the_scores(rewards):
    code = Starting()
    scorer = rewards(RewardsConfig(default_verifier="code", num_threads=1), code=code)
    scorer.start()
    assert score(scorer, "x").correct
    assert not code.ended.is_set()
    code.gate.set()
    assert code.ended.wait(60)


def test_verifier_that_cannot_start_ends_the_run_with_the_reason(rewards):
    code = Starting(RewardError("no module named math_verify"))
    scorer = rewards(RewardsConfig(default_verifier="code"), code=code)
    scorer.start()
    code.gate.set()
    for thread in threading.enumerate():
        if thread.name == "rewards-start":
            thread.join(60)
    with pytest.raises(RewardError, match="no module named math_verify"):
        score(scorer, "x")


def test_verifier_that_no_task_names_is_not_started(rewards):
    code, idle = Starting(), Starting()
    code.gate.set()
    scorer = rewards(RewardsConfig(default_verifier="code"), code=code, idle=idle)
    scorer.start()
    assert code.ended.wait(60)
    assert not idle.ended.is_set()


@pytest.mark.parametrize("verdict", [Verdict.GRADER_TIMEOUT, Verdict.TIME_LIMIT, Verdict.UNPARSEABLE])
def test_other_verdicts_are_the_model_s_and_not_retried(rewards, verdict):
    code = Scripted(Score(0.0, False, {"answer": 0.0}, verdict))
    result = score(rewards(RewardsConfig(default_verifier="code"), code=code), "x")
    assert (result.verdict, result.value, len(code.calls)) == (verdict, 0.0, 1)


def test_faulty_reference_names_the_prompt(rewards):
    with pytest.raises(RewardError, match=r"sum/0.*non-empty string"):
        score(rewards(RewardsConfig()), r"\boxed{1}", prompt(reference={"tests": []}))


def test_faulty_verifier_ends_the_run_with_the_prompt_s_name(rewards):
    scorer = rewards(RewardsConfig(default_verifier="code"), code=Scripted(KeyError("stdin")))
    with pytest.raises(RewardError, match=r"sum/0.*stdin"):
        score(scorer, "x")


def test_submit_does_not_wait_for_the_verifier(rewards):
    gate = threading.Event()

    class Slow(Scripted):
        def score(self, text, reference):
            assert gate.wait(60)
            return super().score(text, reference)

    scorer = rewards(RewardsConfig(default_verifier="code", num_threads=2), code=Slow(SOLVED))
    futures = [scorer.submit(prompt(), trajectory(), "x") for _ in range(5)]
    assert not any(future.done() for future in futures)
    gate.set()
    assert all(future.result(timeout=60).correct for future in futures)


def test_integer_run_never_starts_a_process(rewards):
    verifier = MathAnswer()
    scorer = rewards(RewardsConfig(), math=verifier)
    futures = [scorer.submit(prompt(), trajectory(), f"\\boxed{{{n}}}") for n in range(20)]
    assert [future.result(timeout=60).correct for future in futures] == [n == 2 for n in range(20)]
    assert verifier._pool.pids == ()


def test_reward_that_never_returns_holds_up_neither_close_nor_the_end_of_the_process(tmp_path):
    """The limit below is there for the test to fail by: the reward sleeps for ten minutes."""
    (tmp_path / "hanging.py").write_text(
        "import time\n\ndef reward(prompt, text, reference, **info):\n    time.sleep(600)\n    return 0.0\n"
    )
    reward = f"{tmp_path / 'hanging.py'}:reward"
    program = f"""
import numpy as np
from cispo.types import Prompt, StopReason, Trajectory
from rewards.math_answer import MathAnswer
from rewards.reward import Rewards, RewardsConfig

scorer = Rewards(RewardsConfig(custom={reward!r}, num_threads=1), {{"math": MathAnswer()}})
mask = np.array([False, True])
trajectory = Trajectory(np.ones(2, np.int64), mask, np.zeros(2, np.float32), mask - 1, StopReason.STOP)
prompt = Prompt(id="sum/0", task="sum", text="1+1=", token_ids=(1,), reference="2")
hanging, waiting = [scorer.submit(prompt, trajectory, "x") for _ in range(2)]
while not hanging.running():
    pass
scorer.close()
print(hanging.done(), waiting.cancelled())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "False True"), ended.stderr


def test_nothing_is_scored_after_close(rewards):
    scorer = rewards(RewardsConfig())
    scorer.close()
    with pytest.raises(RuntimeError, match="closed"):
        scorer.submit(prompt(), trajectory(), "x")
    scorer.close()


def test_close_closes_the_verifiers():
    code = Scripted(SOLVED)
    Rewards(RewardsConfig(default_verifier="code"), {"code": code}).close()
    assert code.closed


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weights": {"answer": math.nan}}, "weights.answer"),
        ({"weights": {"anwser": 1.0}}, "anwser"),
        ({"retries": -1}, "retries"),
        ({"num_threads": 0}, "num_threads"),
        ({"verifiers": {"sum": "custom"}}, "rewards.custom is empty"),
    ],
)
def test_config_that_cannot_work_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        RewardsConfig(**settings)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        RewardsConfig(weights={"answer": math.inf}, retries=-1)
    assert len(caught.value.faults) == 2


def test_unknown_verifier_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="mathz.*code, custom, math"):
        Rewards(RewardsConfig(verifiers={"sum": "mathz"}), {"math": Scripted(SOLVED), "code": Scripted(SOLVED)})
