"""Trackers: one line per step whatever was killed, strict JSON, and services that fail without harm."""

import io
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cispo.errors import ConfigError, DataError
from configs.fleet import TrackingConfig
from launch.run_files import read_jsonl, write_summary
from launch.trackers import (
    ConsoleTracker,
    JsonlTracker,
    RunTracker,
    Trackers,
    open_trackers,
)
from launch.wandb_tracker import WandbTracker, saved_run_id


def steps_of(folder):
    return [record["step"] for record in read_jsonl(folder / "metrics.jsonl")]


def test_step_comes_first_and_numbers_that_are_not_finite_are_null(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"b": float("nan"), "a": float("inf"), "c": np.float32(0.5), "d": np.int64(3)})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "b": null, "a": null, "c": 0.5, "d": 3}\n'


def test_second_log_of_a_step_adds_to_its_line(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(0, {"eval/all/mean@4": 0.2})
    tracker.log(1, {"reward/mean": 0.5})
    tracker.log(1, {"eval/all/mean@4": 0.3})
    tracker.log(2, {"reward/mean": 0.6})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 0, "eval/all/mean@4": 0.2},
        {"step": 1, "reward/mean": 0.5, "eval/all/mean@4": 0.3},
        {"step": 2, "reward/mean": 0.6},
    ]


def test_steps_cannot_go_back(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(3, {})
    with pytest.raises(ValueError, match="step 2 after 3"):
        tracker.log(2, {})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), max_size=4))
def test_killed_and_resumed_run_has_exactly_one_line_per_step(tmp_path_factory, kills):
    """Each kill: steps done since the resumption, steps since the last checkpoint, half a line left behind."""
    folder = tmp_path_factory.mktemp("run")
    saved = 0
    for done, since_saved, is_half_written in [*kills, (5, 0, False)]:
        tracker = JsonlTracker(folder, resumed_step=saved)
        for step in range(saved + 1, saved + done + 1):
            tracker.log(step, {"x": step / 3})
            tracker.rollouts(step, [{"step": step}])
        if is_half_written:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 99, "x"')
        saved = max(saved, saved + done - since_saved)
    last = steps_of(folder)[-1]
    assert steps_of(folder) == list(range(1, last + 1))
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == sorted(
        f"step_{step}.jsonl" for step in range(1, last + 1)
    )
    assert [record["x"] for record in read_jsonl(folder / "metrics.jsonl")] == [s / 3 for s in range(1, last + 1)]


def test_damaged_line_in_the_middle_names_file_and_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match="metrics.jsonl, line 2"):
        JsonlTracker(tmp_path, resumed_step=3)


def test_hostile_text_stays_one_line(tmp_path):
    text = "\u2028\x85\n\r</script>\ud800\x00"
    JsonlTracker(tmp_path).rollouts(1, [{"text": text}, {"text": "next"}])
    path = tmp_path / "rollouts" / "step_1.jsonl"
    assert [record["text"] for record in read_jsonl(path)] == [text, "next"]
    assert len(path.read_bytes().splitlines()) == 2


def test_summary_is_strict_json(tmp_path):
    path = write_summary(tmp_path, {"eval": {"first": {"all": np.float64("nan")}}, "tokens": (1, 2)})
    assert json.loads(path.read_text()) == {"eval": {"first": {"all": None}}, "tokens": [1, 2]}


def console_output(is_terminal, use):
    output = io.StringIO()
    tracker = ConsoleTracker(40, console=Console(file=output, force_terminal=is_terminal, width=100))
    use(tracker)
    tracker.close()
    return output.getvalue()


def test_console_says_the_numbers_that_matter_in_plain_lines():
    metrics = {
        "reward/mean": 0.25,
        "ratio/max": 2.5,
        "perf/step_seconds": 1.94,
        "actor/loss": 7.0,
        "eval/all/greedy": 0.5,
    }
    assert console_output(False, lambda tracker: tracker.log(3, metrics)) == (
        "step  3/40  reward 0.250  ratio max 2.50  seconds 1.9\n  held-out at step 3: all/greedy 0.500\n"
    )


def test_console_prints_a_phase_ten_times_at_most_and_its_end_once():
    def cold_start(tracker):
        for done in range(1, 351):
            tracker.phase("cold start", done, 350, loss=1 / done, **{"eval/all/greedy": 0.5})

    lines = console_output(False, cold_start).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "cold start 350/350  loss 0.002857"


def test_console_gives_the_cursor_back():
    output = console_output(True, lambda tracker: tracker.phase("cold start", 1, 3))
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1


class Listener(RunTracker):
    def __init__(self):
        self.heard = []

    def log(self, step, metrics):
        self.heard.append(("log", step))

    def phase(self, name, done, total, **numbers):
        self.heard.append(("phase", name, numbers))

    def finish(self, summary):
        self.heard.append(("finish", summary))

    def close(self, error=None):
        self.heard.append("close")


def test_trackers_tell_everybody_and_close_after_an_error():
    listeners = [Listener(), Listener()]
    with pytest.raises(RuntimeError), Trackers(*listeners) as trackers:
        trackers.log(1, {})
        trackers.phase("evaluation", 1, 2, accuracy=0.5)
        raise RuntimeError
    for listener in listeners:
        assert listener.heard == [("log", 1), ("phase", "evaluation", {"accuracy": 0.5}), "close"]


def test_open_trackers_opens_what_the_configuration_asks_for(tmp_path):
    quiet = open_trackers(tmp_path, TrackingConfig(console=False), total_steps=3)
    assert [type(tracker) for tracker in quiet.trackers] == [JsonlTracker]
    loud = open_trackers(tmp_path, TrackingConfig(), total_steps=3)
    assert [type(tracker) for tracker in loud.trackers] == [JsonlTracker, ConsoleTracker]


def test_configuration_names_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        TrackingConfig(wandb="on", rollouts_per_step=-1)
    assert len(caught.value.faults) == 2
    assert "offline" in caught.value.faults[0] and "-1" in caught.value.faults[1]


def test_run_id_is_made_once(tmp_path):
    assert saved_run_id(tmp_path) == saved_run_id(tmp_path)


def test_failing_wandb_warns_once_and_harms_nobody(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "a mode that W&B refuses")
    with caplog.at_level(logging.WARNING, logger="cispo.tracking"):
        tracker = WandbTracker(tmp_path, TrackingConfig(wandb="offline"), run_config={}, code={})
        tracker.log(1, {"x": 1.0})
        tracker.finish({})
        tracker.close()
    assert len(caplog.records) == 1
    assert "could not start" in caplog.text


class Broken(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_console_that_is_gone_costs_a_warning_and_no_run(is_terminal, caplog):
    tracker = ConsoleTracker(3, console=Console(file=Broken(), force_terminal=is_terminal))
    with caplog.at_level(logging.WARNING, logger="cispo.tracking"):
        for step in (1, 2):
            tracker.log(step, {"reward/mean": 0.5})
            tracker.phase("evaluation", 1, 2)
        tracker.close()
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["The console cannot be written to"]
