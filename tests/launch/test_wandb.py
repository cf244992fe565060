"""W&B: what it is sent, read back from the offline file; after a kill; without a login or a network."""

import json
import logging
import struct
import subprocess
import sys

import pytest

from cispo.checkpoint import FolderCheckpoints
from cispo.errors import ConfigError
from configs.fleet import TrackingConfig
from launch.cli import main
from launch.compose import compose
from launch.trackers import open_trackers
from launch.train import open_run_trackers
from launch.wandb_mode import wandb_mode
from launch.wandb_tracker import WandbTracker, put_aside

BLOCK = 32768


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    """Nobody is logged in, and no network would answer."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def records_of(path):
    """Those of a .wandb file: LevelDB's log format around protobuf messages."""
    from wandb.proto import wandb_internal_pb2 as messages

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        length, kind = struct.unpack("<4xHB", data[place : place + 7]) if left >= 7 else (0, 0)
        if kind == 0:
            place += left
            continue
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            record = messages.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(folder):
    """The rows of the newest offline folder, by their order."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    rows = []
    for record in records_of(path):
        if record.WhichOneof("record_type") == "history":
            rows.append(row_of(record.history.item))
    return rows


def row_of(items):
    """Values by key; one that is an object comes in parts, each with the way to it."""
    row = {}
    for item in items:
        *way, last = item.nested_key or [item.key]
        place = row
        for name in way:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return row


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def is_mirror(folder):
    """Every line of metrics.jsonl is one row, in order, and every number in it is there."""
    rows, wanted = history(folder), lines(folder)
    assert [row["step"] for row in rows] == [row["_step"] for row in rows] == [line["step"] for line in wanted]
    for row, line in zip(rows, wanted, strict=True):
        assert {name: row[name] for name, value in line.items() if value is not None} == {
            name: value for name, value in line.items() if value is not None
        }
    return rows


KILLED = """
import os, signal, sys
from launch.trackers import JsonlTracker
log = JsonlTracker.log
def killed(self, step, metrics):
    log(self, step, metrics)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
JsonlTracker.log = killed
from launch.cli import main
main(sys.argv[1:])
"""


def test_a_killed_and_resumed_run_is_whole_in_its_last_folder(tmp_path, small):
    words = small(tmp_path, "name=run", "save_every=3", "tracking.traces_every=2", "tracking.traces=3")
    assert subprocess.run([sys.executable, "-c", KILLED, "train", *words], capture_output=True).returncode == -9
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    rows = is_mirror(tmp_path / "run")
    assert len(list((tmp_path / "run" / "wandb").glob("replaced-offline-run-*"))) == 1
    for row in rows[1:]:
        for name in ("response_length/histogram", "ratio/log2_histogram"):
            assert row[name]["_type"] == "histogram"
            assert len(row[name]["bins"]) == len(row[name]["values"]) + 1
        assert sum(row["response_length/histogram"]["values"]) >= 16
        assert ("traces" in row) == (row["step"] % 2 == 0)
    attempts = [json.loads(line) for line in (tmp_path / "run" / "attempts.jsonl").read_text().splitlines()]
    assert [line.get("from_step", line.get("state")) for line in attempts] == [0, 3, "finished"]


def test_no_login_is_offline_and_one_is_online(monkeypatch):
    assert wandb_mode(TrackingConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(TrackingConfig(wandb="online")) == "disabled"


def test_the_file_that_wandb_login_writes_is_a_login(tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1:9\n  login user\n  password " + "k" * 40 + "\n")
    assert wandb_mode(TrackingConfig()) == "online"


def test_a_key_for_one_name_of_the_server_is_good_for_the_other_and_for_no_other_server(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "k" * 40 + "\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.forge.coreweave.com")
    assert wandb_mode(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode(TrackingConfig()) == "offline"


def test_online_without_a_login_is_refused_before_anything_starts(tmp_path, small, capsys):
    assert main(["train", *small(tmp_path, "name=run", "tracking.wandb=online")]) == 1
    assert "needs a login" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_mode_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "maybe")
    with pytest.raises(ConfigError, match="WANDB_MODE must be online, offline or disabled"):
        wandb_mode(TrackingConfig())


def test_a_server_that_does_not_answer_costs_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with (
        caplog.at_level(logging.WARNING, logger="cispo.tracking"),
        open_trackers(tmp_path, TrackingConfig(console=False), total_steps=1) as trackers,
    ):
        trackers.log(1, {"x": 0.5})
        trackers.finish({})
    assert "does not answer; this run is written offline" in caplog.text
    assert [row["x"] for row in history(tmp_path)] == [0.5]


def test_folders_that_the_next_one_repeats_are_put_aside(tmp_path):
    (tmp_path / "wandb" / "offline-run-1-a").mkdir(parents=True)
    put_aside(tmp_path)
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == ["replaced-offline-run-1-a"]


def test_tracking_names_all_its_faults():
    with pytest.raises(ConfigError) as caught:
        TrackingConfig(wandb="on", project="a/b", tags=("",), traces_every=-1, wait_seconds=0)
    assert len(caught.value.faults) == 5


def test_step_0_is_one_row_although_the_run_stopped_between_cold_start_and_evaluation(tmp_path):
    quiet = TrackingConfig(console=False, wandb="offline")
    with open_trackers(tmp_path, quiet, total_steps=1) as trackers:
        trackers.log(0, {"timing_s/sft": 2.0})
    assert history(tmp_path) == []
    with open_trackers(tmp_path, quiet, total_steps=1) as trackers:
        trackers.log(0, {"eval/all/mean@2": 0.25})
        trackers.log(1, {"reward/mean": 0.5})
        trackers.finish({})
    first, second = history(tmp_path)
    assert (first["_step"], first["timing_s/sft"], first["eval/all/mean@2"]) == (0, 2.0, 0.25)
    assert second["_step"] == 1


def test_the_summary_follows_steps_that_are_made_again(tmp_path):
    tracker = WandbTracker(tmp_path, TrackingConfig(wandb="offline"), run_config={}, code={})
    tracker._sent = 20  # what a server would say it has
    tracker.log(15, {"eval/all/mean@2": 0.75})
    assert tracker._run.summary["accuracy/last"] == 0.75
    tracker.finish({})
    assert history(tmp_path) == []


def test_variables_of_a_job_are_named_and_not_shown(tmp_path):
    config = compose(["slurm.environment.HF_TOKEN=hf_secret", f"runs_folder={tmp_path}", "tracking.console=false"])
    open_run_trackers(config, tmp_path, FolderCheckpoints(tmp_path / "checkpoints", config.checkpoints)).close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"HF_TOKEN" in path.read_bytes()
