"""Whole runs with tools: real engine, real sandbox, real learner."""

import json

import numpy as np
import pytest

from configs.schema import RunConfig
from launch import build
from launch.cli import main
from launch.compose import compose
from launch.report_traces import read_traces

TOOLS = (
    "experiment=tools",
    "steps=2",
    "groups_per_step=4",
    "group_size=4",
    # With one update per step every token was sampled by the weights that now learn from it.
    "updates_per_step=1",
    "sft.steps=60",
    "sft.batch_size=24",
    "sft.lr=[[0,0.005],[60,0.002]]",
    "task.parameters.calculate.max_operands=2",
    "task.parameters.calculate.guess_fraction=0.1",
    "sampling.max_new_tokens=48",
    "engine.num_slots=7",
    "evaluation.num_prompts=4",
    "evaluation.num_samples=2",
    "evaluation.pass_at=2",
    "tracking.console=false",
    "tracking.rollouts_per_step=0",
    "cluster=inline",
)


REWARD = '''
def checksum(prompt, text, reference, **info):
    """Differs within almost every group, so that every step has something to learn from."""
    return sum(text.encode()) % 7 / 7
'''


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two equal synchronous runs."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "checksum.py").write_text(REWARD)
    for name in ("one", "two"):
        reward = f"rewards.custom={runs}/checksum.py:checksum"
        assert main(["train", *TOOLS, reward, f"runs_folder={runs}", f"name={name}"]) == 0
    return runs / "one", runs / "two"


def steps_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]


def records_of(folder):
    return [json.loads(line) for path in sorted((folder / "rollouts").glob("*")) for line in path.open()]


def test_two_equal_synchronous_runs_give_equal_numbers(folders, lines_of):
    one, two = map(lines_of, folders)
    assert one == two


def test_tools_are_called_and_answer(folders):
    records = records_of(folders[0])
    called = [record for record in records if record["observations"]]
    assert len(called) > len(records) / 4, "the cold start shows calls"
    for record in called:
        for span in record["observations"]:
            logp, shown = record["logp"][span["start"] : span["stop"]], record["tokens"][span["start"] : span["stop"]]
            assert span["verdict"] and span["tool"]
            if shown:
                assert set(logp) == {None} and (shown[0], shown[-1]) == ("<result>", "</result>")
    actions = sum(value is not None for record in records for value in record["logp"])
    assert actions == sum(record["num_tokens"] for record in records)


def test_the_learner_finds_the_behaviour_log_probability_of_every_action(folders):
    steps = steps_of(folders[0])
    assert sum(step["episode/turns_mean"] > 1 for step in steps) == len(steps)
    for step in steps:
        assert step["mismatch/logp_abs_diff_max"] < 1e-4
        assert step["mismatch/logp_abs_diff_mean"] < 1e-5
        assert abs(step["ratio/max"] - 1) < 1e-4


def test_the_metrics_are_those_of_the_records(folders):
    for step, metrics in enumerate(steps_of(folders[0]), start=1):
        records = [json.loads(line) for line in (folders[0] / "rollouts" / f"step_{step}.jsonl").open()]
        assert len(records) == 16, "a flat group is counted and not written"
        calls = [span for record in records for span in record["observations"]]
        assert metrics["episode/tool_calls_mean"] == pytest.approx(len(calls) / len(records))
        errors = [span["is_error"] for span in calls]
        assert metrics["episode/tool_errors_fraction"] == pytest.approx(np.mean(errors))


def test_the_report_has_what_the_environment_said(folders):
    traces = read_traces(folders[0], max_traces=100, max_tokens=10_000).kept
    assert any(trace["observations"] for trace in traces)


def test_demonstrations_mask_what_the_environment_says():
    config = compose([*TOOLS, "task.parameters.calculate.guess_fraction=0"])
    tokenizer = build.make_tokenizer(config)
    for example in build.make_demonstrations(config, tokenizer)(0):
        ((start, stop),) = example.observed
        ids = list(example.completion_ids)
        shown = tokenizer.decode(ids[start:stop])
        assert shown.startswith("<result>") and shown.endswith("\n</result>")
        assert tokenizer.decode(ids[:start]).endswith("</tool>") and ids[start - 1] == tokenizer.token_id("</tool>")
        assert tokenizer.decode(ids[stop:]) == f"\\boxed{{{shown[8:-10]}}}" and ids[-1] == tokenizer.eos_id


def refusals(*overrides):
    from cispo.errors import ConfigError

    with pytest.raises(ConfigError) as refused:
        compose([*TOOLS, *overrides])
    return str(refused.value)


def test_budgets_that_cannot_work_are_refused_before_the_start():
    assert "episode.max_tokens=500 must not exceed engine.max_length=192" in refusals("episode.max_tokens=500")
    assert "episode.max_tokens=40 must exceed sampling.max_new_tokens=48" in refusals("episode.max_tokens=40")
    assert "episode.max_turns must be at least 1, got 0" in refusals("episode.max_turns=0")
    assert "episode.tools are some of python, shell; got browser" in refusals("episode.tools=[python,browser]")
    assert "package.module:make" in refusals("episode.environment=tool")


def test_lockstep_is_on_where_a_run_is_synchronous():
    config = compose([*TOOLS])
    tokenizer = build.make_tokenizer(config)

    def setting(config: RunConfig):
        return build.make_setting(config, tokenizer, lambda: None)

    assert setting(config).lockstep and not setting(compose([*TOOLS, "max_staleness=1"])).lockstep
    assert setting(config).stop_token_ids == (tokenizer.eos_id, tokenizer.token_id("</tool>"))
    assert build.make_setting(compose([]), tokenizer, lambda: None) is None
