"""What a run reads before it starts: what could not be used when it is drawn is found here, once and by its place."""

import json

import pytest

from cispo.errors import ConfigError, DataError, InvalidRequest
from launch import build
from launch.compose import compose
from rollout.engine import HybridEngine, Request
from rollout.sampling import Sampling

PROGRAM = {"entry": "f", "tests": [{"args": [4], "returns": 8}]}


def row(at, **changes):
    return {"prompt": f"{at}+0=", "reference": str(at), "task": "math", **changes}


@pytest.fixture
def configured(tmp_path):
    """configured(rows, *overrides): the default run on a file of these rows alone, and the path of the file."""

    def make(rows, *overrides):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return compose(["task=files", "sft.steps=0", f"task.files.mine.path={path}", *overrides]), path

    return make


def bad_rows(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("bad row skipped")]


def test_a_prompt_is_taken_as_long_as_the_engine_takes_it(configured, caplog):
    fits, too_long = row(1, prompt="1" * 80), row(2, prompt="2" * 81)
    config, path = configured([*(row(at) for at in range(30)), fits, too_long])
    assert (config.engine.max_length, config.sampling.max_new_tokens, config.task.max_prompt_tokens) == (128, 48, 1024)
    data = build.read_data(config)
    limit = "1 to 80 are allowed by engine.max_length=128 less sampling.max_new_tokens=48"
    assert bad_rows(caplog) == [f"bad row skipped: {path}:32: the prompt has 81 tokens, and {limit}"]

    engine = HybridEngine(build.make_policy(config, data.tokenizer).lm(), config.engine)
    window = Sampling(max_new_tokens=48)
    engine.submit([Request("fits", tuple(data.tokenizer.encode(fits["prompt"])), sampling=window)])
    with pytest.raises(InvalidRequest, match="must not exceed"):
        engine.submit([Request("long", tuple(data.tokenizer.encode(too_long["prompt"])), sampling=window)])


@pytest.mark.parametrize(
    ("overrides", "num_tokens"),
    [
        (["task.max_prompt_tokens=20"], 20),
        (["sampling.max_new_tokens=[[0,16],[4,64]]", "steps=8"], 64),
        (["sampling.max_new_tokens=[[0,16],[8,64]]", "steps=4"], 88),  # the window is at 40 when the run ends
    ],
)
def test_the_lower_limit_holds_over_the_whole_run(overrides, num_tokens):
    assert build.prompt_limit(compose(overrides)).num_tokens == num_tokens


def test_a_task_whose_prompts_do_not_fit_ends_the_run_before_it_starts():
    with pytest.raises(ConfigError, match=r"'chain' drew .* 1 to 4 are allowed by engine.max_length=52 less"):
        build.read_data(compose(["task=chain", "engine.max_length=52"]))


def test_references_are_those_that_the_verifiers_take(configured, caplog):
    rows = [
        *(row(at) for at in range(30)),
        row(31, reference={"answer": 2}),
        row(32, reference=PROGRAM, task="program"),
        row(33, reference="8", task="program"),
        row(34, reference={"entry": "f", "tests": []}, task="program"),
        row(35, reference={"entry": "f", "tests": [{"args": 4, "returns": 8}]}, task="program"),
        row(36, reference=[1], task="another"),  # the default verifier is math
    ]
    config, path = configured(rows)
    build.read_data(config)
    said = bad_rows(caplog)
    assert [line.removeprefix(f"bad row skipped: {path}:").partition(":")[0] for line in said] == [
        "31",
        "33",
        "34",
        "35",
        "36",
    ]
    assert "task 'math' cannot use the reference: A math reference must be a non-empty string or a number" in said[0]
    assert "task 'program' cannot use the reference: the reference of a code task needs" in said[1]
    with pytest.raises(DataError, match=r"rows.jsonl:31: .*non-empty string or a number"):
        build.read_data(configured(rows, "task.max_bad_rows=0")[0])


def test_a_custom_reward_takes_any_reference(configured, caplog):
    rows = [row(at, reference={"any": at}, task="mine") for at in range(30)]
    build.read_data(configured(rows, "rewards.custom=mine.py:reward", "rewards.verifiers.mine=custom")[0])
    assert bad_rows(caplog) == []


def test_every_prompt_of_a_file_is_on_its_side_and_every_bad_row_is_told_once(configured, caplog):
    config, path = configured([*(row(at) for at in range(30)), {}])
    data = build.read_data(config)
    assert len(bad_rows(caplog)) == 1
    held = {prompt.text for prompt in data.held_out}
    trained = {data.prompts.next().text for _ in range(30 - len(held))}
    assert held | trained == {row(at)["prompt"] for at in range(30)}
