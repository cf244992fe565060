"""What W&B is told, read back from the file that it writes without a network; and that it can do no harm."""

import json
import logging
import math

import pytest
import wandb

from configs.fleet import TrackingConfig
from launch import wandb_tracker
from launch.cli import main
from launch.wandb_tracker import WandbTracker, has_login, saved_run_id, wandb_mode
from tests.launch.wandb_file import read_wandb


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def record_of(tokens, ratios, text="x"):
    return {
        "task": "chain", "prompt_id": "p", "prompt": "1+1=", "text": text, "reward": 0.5, "parts": {"answer": 0.5},
        "verdict": "OK", "correct": True, "advantage": 1.0, "mean_ratio": 1.0, "version": 3, "num_tokens": tokens,
        "stop_reason": "stop", "ratio": ratios,
    }  # fmt: skip


def by_step(history, name):
    return {line["_step"]: line[name] for line in history if name in line}


@pytest.fixture(scope="module")
def told(tmp_path_factory, small):
    """A run whose checkpoint is older than its last steps when it is killed, as W&B has it in the end."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = small(
        runs, "name=a", "tracking=auto", "tracking.traces_every=3", "tracking.tags=[one,two]", "tracking.group=both",
        "tracking.upload_export=true", "alarms.capped_fraction=1e-9", "ratio_cap=1.01", "tracking.rollouts_per_step=8",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NETRC", str(runs / "netrc"))
        patched.delenv("WANDB_API_KEY", raising=False)
        assert main(["train", *overrides, "steps=3"]) == 0
        newest = max((runs / "a" / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))
        for path in sorted(newest.rglob("*"), reverse=True):  # as if it had died before this one was written
            path.rmdir() if path.is_dir() else path.unlink()
        newest.rmdir()
        assert main(["train", "--resume", str(runs / "a"), "steps=5"]) == 0
    return runs / "a", read_wandb(runs / "a")


def test_one_run_has_every_number_once_although_a_step_was_done_twice(told):
    folder, run = told
    assert set(run.ids) == {saved_run_id(folder)} and len(run.exit_codes) == 2 and not any(run.exit_codes)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    names = {name for line in lines for name in line} - {"step"}
    assert {"reward/mean", "response_length/p99", "ratio/max", "mismatch/kl", "eval/chain/greedy"} <= names
    timed = ("timing_s/", "perf/", "sync/seconds")
    for name in names:
        rows = [line["_step"] for line in run.history if name in line]
        assert rows == sorted(set(rows)), name
        if not name.startswith(timed):
            wanted = {line["step"]: line[name] for line in lines if line.get(name) is not None}
            assert by_step(run.history, name) == pytest.approx(wanted), name


def test_lengths_and_ratios_are_histograms_of_what_the_folder_keeps(told):
    folder, run = told
    for step, histogram in by_step(run.history, "response_length/histogram").items():
        records = [json.loads(line) for line in (folder / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()]
        assert sum(histogram["values"]) == len(records)
        assert histogram["bins"][-1] == max(record["num_tokens"] for record in records)
        ratios = by_step(run.history, "ratio/histogram")[step]
        assert sum(ratios["values"]) == sum(record["num_tokens"] for record in records)
        assert ratios["bins"][0] == 0 and ratios["bins"][-1] == 4
    assert sorted(by_step(run.history, "ratio/histogram")) == [1, 2, 3, 4, 5]


def test_traces_are_a_table_every_few_steps(told):
    folder, run = told
    tables = by_step(run.history, "traces")
    assert sorted(tables) == [1, 4], "the second process begins with one"
    for table in tables.values():
        assert (table["_type"], table["ncols"], table["nrows"]) == ("table-file", 14, 8)
    files = [json.loads(path.read_text()) for path in folder.glob("wandb/offline-run-*/files/media/table/*.json")]
    first = next(file for file in files if file["data"][0][0] == 1)
    assert first["columns"][:5] == ["step", "task", "prompt_id", "prompt", "text"]
    written = json.loads((folder / "rollouts" / "step_1.jsonl").read_text().splitlines()[0])
    row = dict(zip(first["columns"], first["data"][0], strict=True))
    for name in ("prompt", "text", "reward", "verdict", "version", "advantage", "mean_ratio"):
        assert row[name] == written[name], name


def test_it_knows_configuration_code_and_result(told):
    folder, run = told
    assert run.config["groups_per_step"] == 4 and run.config["learner"]["kind"] == "local"
    versions = json.loads((folder / "version.json").read_text())
    assert run.config["version"] == versions[-1] and len(versions) == 1
    assert {"cispo", "python", "torch"} <= versions[0].keys()
    assert (run.about["name"], run.about["group"], run.about["tags"]) == ("a", "both", ["one", "two"])
    assert run.summary["eval"]["last"] == json.loads((folder / "summary.json").read_text())["eval"]["last"]
    assert "eval/*" in run.max_in_summary
    assert run.artifacts.count("model") == 2


def test_an_alarm_is_an_alert(told):
    _, run = told
    assert {title for title, _ in run.alerts} == {"alarm/capped_fraction"}


def test_a_run_that_ends_with_an_error_is_marked_as_failed(tmp_path):
    tracker = WandbTracker(tmp_path, TrackingConfig(wandb="offline"), run_config={})
    tracker.log(1, {"x": math.nan, "y": 1.0})
    tracker.close()
    run = read_wandb(tmp_path)
    assert run.exit_codes == [1]
    assert [set(line) & {"x", "y"} for line in run.history] == [{"y"}]


def test_hostile_and_endless_text_is_shown_as_far_as_it_goes(tmp_path, caplog):
    tracker = WandbTracker(tmp_path, TrackingConfig(wandb="offline", traces_per_table=3), run_config={})
    tracker.rollouts(
        1, [record_of(3, None, "\ud800</script>\x00"), record_of(0, [], ""), record_of(9, [1, None], "a" * 30_000)]
    )
    tracker.log(1, {})
    tracker.finish({})
    assert not [
        record for record in caplog.records if record.name == "cispo.tracking" and record.levelno > logging.INFO
    ]
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    texts = [row[4] for row in json.loads(path.read_text())["data"]]
    assert texts[0] == "?</script>\x00" and texts[2].endswith("a ... (10000 characters more)")


def test_auto_is_online_with_a_login_and_offline_without(tmp_path, monkeypatch):
    auto = TrackingConfig(wandb="auto")
    assert not has_login() and wandb_mode(auto) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 1234\n")
    assert has_login() and wandb_mode(auto) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert not has_login(), "the key is for another server"
    monkeypatch.setenv("WANDB_API_KEY", "1234")
    assert wandb_mode(auto) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode(auto) == "offline" and wandb_mode(TrackingConfig()) == "disabled"


def test_online_without_a_login_is_refused_before_anything_starts(tmp_path, small, capsys):
    assert main(["train", *small(tmp_path, "name=a", "tracking=online")]) == 1
    assert "tracking.wandb=online needs a login to W&B" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_server_that_cannot_be_reached_costs_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_tracker, "START_SECONDS", 2.0)
    wandb.teardown()  # it reads the environment once
    with caplog.at_level(logging.WARNING, logger="cispo.tracking"):
        tracker = WandbTracker(tmp_path, TrackingConfig(wandb="online"), run_config={})
        tracker.log(1, {"x": 1.0})
        tracker.close()
    told = [record.getMessage() for record in caplog.records if record.name == "cispo.tracking"]
    assert [message.split(" (")[0] for message in told] == ["W&B could not start"] and "127.0.0.1:9" in told[0]
    wandb.teardown()
