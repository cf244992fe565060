"""The example of an environment of one's own: its parts, and a run with it."""

import json
import random
from pathlib import Path

import pytest

from cispo.errors import ConfigError
from cispo.types import Prompt
from launch.cli import main
from rollout.environment import Turn
from rollout.environments import EpisodeConfig, environment_words, make_environment
from rollout.own_module import load_module

FILE = Path(__file__).parents[2] / "examples" / "guessing_environment.py"
OVERRIDES = (
    f"task.own.guess={FILE}:GuessTask",
    "task.mixture={guess: 1.0}",
    f"episode.environment={FILE}:make",
    "episode.max_turns=4",
    f"rewards.custom={FILE}:reward",
    "rewards.verifiers.guess=custom",
)
SMALL = (
    "steps=1", "groups_per_step=4", "group_size=6", "sft.steps=40", "sft.batch_size=24", "sft.lr=0.004",
    "cluster=inline", "cluster.num_workers=1", "evaluation.num_prompts=2",
    "tracking.console=false", "tracking.rollouts_per_step=0", "sampling.max_new_tokens=12", "engine.max_length=48",
)  # fmt: skip


def answer(text, digit="5"):
    environment = make_environment(EpisodeConfig(environment=f"{FILE}:make"), lambda: None)
    return environment.observe(Turn(Prompt("p", "guess", "guess:1=", (1,), digit), 0, text, ())).result()


def test_what_a_guess_is_told():
    assert [answer(guess).before for guess in "47"] == ["higher", "lower"]
    assert (answer("5").done, answer("5").verdict) == (True, "right")
    assert (answer("five").done, answer("").is_error, answer("²").is_error) == (True, True, True)


def test_demonstrations_are_told_the_truth_and_end_with_a_right_guess_or_the_fourth():
    task, rng = load_module(str(FILE)).GuessTask(), random.Random(3)
    for _ in range(200):
        shown = task.demonstration(rng)
        digit = next(p.reference for p in iter(lambda: task.problem(rng), None) if p.text == shown.prompt_text)
        guesses = [shown.completion_text, *(guess for _, guess in shown.later)]
        assert digit not in guesses[:-1]
        for guess, (observation, _) in zip(guesses, shown.later, strict=False):
            assert observation.before == ("higher" if int(guess) < int(digit) else "lower")


def test_a_run_plays_it(tmp_path):
    assert main(["train", *OVERRIDES, *SMALL, f"runs_folder={tmp_path}", "name=guess"]) == 0
    records = [json.loads(line) for path in (tmp_path / "guess" / "rollouts").glob("*") for line in path.open()]
    played = [record for record in records if record["observations"]]
    assert played
    for record in played:
        verdicts = [span["verdict"] for span in record["observations"]]
        assert len(verdicts) <= 4 and set(verdicts[:-1]) <= {"wrong"}
        assert (record["reward"] == 1) == (verdicts[-1] == "right")
        assert (record["stop_reason"] == "turns") == (len(verdicts) == 4 and verdicts[-1] == "wrong")


def test_words_are_those_of_the_environment():
    assert environment_words(EpisodeConfig(environment=f"{FILE}:make")) == ("higher", "lower")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere.py:make", "FileNotFoundError"),
        ("no_such_package:make", "No module named"),
        (f"{FILE}:nothing", "no attribute 'nothing'"),
        (f"{FILE}:GuessTask", "cannot be made"),
        (f"{FILE}:told", "cannot be made"),
        ("builtins:repr", "has no words, stop_words, observe, close"),
    ],
)
def test_an_environment_that_cannot_work_is_refused(place, said):
    with pytest.raises(ConfigError, match=said):
        make_environment(EpisodeConfig(environment=place), lambda: None)
