"""The real W&B client against a server of the tests' own: what arrives, after a kill and from a server that fails."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import wandb

from cispo.checkpoint import FolderCheckpoints
from cispo.stop import RunStopped
from configs.fleet import TrackingConfig
from launch.cli import main
from launch.compose import compose
from launch.trackers import JsonlTracker, open_trackers
from launch.train import open_run_trackers
from tests.launch.fake_wandb import FakeWandb
from tests.launch.processes import below, command_line
from tests.launch.test_wandb import KILLED, history, lines

QUIET = TrackingConfig(console=False, wait_seconds=20)

TIMED = ("timing_s/", "perf/", "sync/seconds")
"""What comes out otherwise when a step is made again."""

WAIT = 2
"""tracking.wait_seconds of a run with a server that fails."""


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A W&B server for which there is a login."""
    fake = FakeWandb()
    for name in ("WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    wandb.teardown()
    yield fake
    fake.close()
    wandb.teardown()


def is_mirror(run, folder, left_out=()):
    """Every line of metrics.jsonl is one row, in order, and every number in it is there."""
    rows, wanted = run.rows(), lines(folder)
    assert [row["step"] for row in rows] == [row["_step"] for row in rows] == [line["step"] for line in wanted]
    for row, line in zip(rows, wanted, strict=True):
        kept = {name: value for name, value in line.items() if value is not None and not name.startswith(left_out)}
        assert {name: row.get(name) for name in kept} == kept
    assert run.overwritten == []
    return rows


def table_of(server, run, value):
    """The rows of a table, as they were uploaded."""
    table = json.loads(server.files[run.name, value["path"]])
    return [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]


def test_a_run_arrives_whole(tmp_path, small, server):
    words = small(tmp_path, "name=run", "tracking.traces_every=2", "tracking.traces=3", "tracking.group=seeds")
    assert main(["train", *words]) == 0
    folder, run = tmp_path / "run", server.only_run()
    for row in is_mirror(run, folder)[1:]:
        for name in ("response_length/histogram", "ratio/log2_histogram"):
            assert row[name]["_type"] == "histogram"
            assert len(row[name]["bins"]) == len(row[name]["values"]) + 1
        assert ("traces" in row) == (row["step"] % 2 == 0)
        if "traces" in row:
            records = [json.loads(line) for line in (folder / f"rollouts/step_{row['step']}.jsonl").open()]
            table = table_of(server, run, row["traces"])
            assert [cells["text"] for cells in table] == [record["text"] for record in records[:3]]
    assert [artifact["state"] for artifact in server.artifacts.values()] == ["COMMITTED"] * 2
    assert run.values()["steps"] == 5
    assert set(run.values()["code"]) >= {"commit", "cispo", "libraries"}
    assert run.summary["run"] == json.loads((folder / "summary.json").read_text())
    assert set(run.summary) >= {"accuracy/first", "accuracy/last", "accuracy/best"}
    assert (run.name, run.display_name) == ((folder / "wandb_run_id").read_text().strip(), "run")
    assert (run.group, run.project, run.exit_codes) == ("seeds", "cispo", [0])
    assert server.unknown == []


WAITS_TO_BE_KILLED = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "__import__('time').sleep(600)")


def kill_when(is_time, process):
    """Kill it with SIGKILL as soon as it is time."""
    deadline = time.monotonic() + 120
    while not is_time():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()


@pytest.mark.parametrize("num_rows", [3, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_and_resumed_run_is_one_run_with_each_step_once(tmp_path, small, server, num_rows, monkeypatch):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1" if num_rows else "600")
    words = small(tmp_path, "name=run", "save_every=4", "tracking.traces_every=2", "tracking.traces=3")
    command = [sys.executable, "-c", WAITS_TO_BE_KILLED, "train", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    kill_when(
        lambda: metrics.exists() and len(lines(metrics.parent)) == 5 and len(server.only_run().history) >= num_rows,
        process,
    )
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    run = server.only_run()
    rows = is_mirror(run, tmp_path / "run", left_out=TIMED)
    assert [row["step"] for row in rows if "traces" in row] == [2, 4]
    assert set(run.summary) >= {"run", "accuracy/first", "accuracy/last", "accuracy/best"}
    assert run.exit_codes == [0]


@pytest.mark.parametrize(
    ("error", "exit_code"), [(ValueError("x"), 1), (KeyboardInterrupt(), 255), (RunStopped("asked"), 255)]
)
def test_a_run_that_does_not_finish_is_failed_or_killed(tmp_path, server, error, exit_code):
    with pytest.raises(type(error)), open_trackers(tmp_path, QUIET, total_steps=2) as trackers:
        trackers.log(1, {"x": 0.5})
        raise error
    assert [row["x"] for row in server.only_run().rows()] == [0.5]
    assert server.only_run().exit_codes == [exit_code]


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_training_run_that_is_stopped_is_killed(tmp_path, small, server, monkeypatch, signal_number, status):
    log = JsonlTracker.log

    def stopped(tracker, step, metrics):
        log(tracker, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal_number)

    monkeypatch.setattr(JsonlTracker, "log", stopped)
    assert main(["train", *small(tmp_path, "name=run")]) == status
    run = server.only_run()
    assert [row["step"] for row in run.rows()][:2] == [0, 1]
    assert (run.exit_codes, "run" in run.summary) == ([255], False)


def test_a_resumed_run_has_its_new_config_and_its_new_end(tmp_path, server):
    with (
        pytest.raises(ValueError),
        open_trackers(tmp_path, QUIET, total_steps=2, run_config={"steps": 1, "lr": {"max": 0.5}}) as trackers,
    ):
        trackers.log(1, {"x": 0.5})
        raise ValueError
    config = {"steps": 2, "lr": {"max": 0.25}}
    with open_trackers(tmp_path, QUIET, total_steps=2, resumed_step=1, run_config=config) as trackers:
        trackers.log(2, {"x": 0.75})
        trackers.finish({"seed": 1})
    run = server.only_run()
    assert [row["x"] for row in is_mirror(run, tmp_path)] == [0.5, 0.75]
    assert run.values() == config
    assert (run.summary["run"], run.exit_codes) == ({"seed": 1}, [1, 0])


def test_an_alarm_is_an_alert(tmp_path, server):
    with open_trackers(tmp_path, QUIET, total_steps=2) as trackers:
        trackers.log(1, {"mismatch/kl": 0.5})
        trackers.alarm(1, "mismatch/kl", "0.5 is more than 0.01")
        trackers.finish({})
    title = f"{tmp_path.name}: mismatch/kl"
    assert server.only_run().alerts == [{"title": title, "text": "0.5 is more than 0.01", "severity": "WARN"}]


def test_the_policy_is_an_artifact(tmp_path, server):
    config = TrackingConfig(console=False, wait_seconds=20, upload_export=True)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text('{"family": "minimax"}')
    with open_trackers(tmp_path, config, total_steps=1) as trackers:
        trackers.log(1, {"x": 0.5})
        trackers.finish({})
    ((id, artifact),) = server.artifacts.items()
    assert artifact == {"name": f"{tmp_path.name}-policy", "type": "model", "state": "COMMITTED"}
    assert server.files[id, "config.json"] == b'{"family": "minimax"}'


def test_variables_of_a_job_do_not_arrive(tmp_path, small, server, monkeypatch):
    words = ("slurm.environment.HF_TOKEN=hf_secret", "+slurm.environment={A_TOKEN: hf_secret}")
    monkeypatch.setattr(sys, "argv", ["cispo", "train", "name=run", *words])
    config = compose(small(tmp_path, words[0]))
    open_run_trackers(config, tmp_path, FolderCheckpoints(tmp_path / "checkpoints", config.checkpoints)).close()
    assert not [data for _, data in server.received if b"hf_secret" in data]
    metadata = json.loads(server.files[server.only_run().name, "wandb-metadata.json"])
    hidden = ["slurm.environment.HF_TOKEN=(not shown)", "+slurm.environment=(not shown)"]
    assert metadata["args"] == ["train", "name=run", *hidden]
    assert sys.argv[-2:] == list(words)


def synchronise(folder):
    """What we tell people to do with an offline run."""
    (offline,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "sync", str(offline)]
    assert subprocess.run(command, capture_output=True, cwd=folder, check=False).returncode == 0


def test_an_offline_run_arrives_by_wandb_sync(tmp_path, server):
    folder = tmp_path / "run"
    folder.mkdir()
    with open_trackers(folder, TrackingConfig(console=False, wandb="offline"), total_steps=2) as trackers:
        for step in (1, 2):
            trackers.log(step, {"x": 0.25 * step})
        trackers.finish({"seed": 1})
    synchronise(folder)
    run = server.only_run()
    is_mirror(run, folder)
    assert (run.name, run.summary["run"]) == ((folder / "wandb_run_id").read_text().strip(), {"seed": 1})


class Tracked:
    """A process that tracks two steps, each with a table, and says how long each part of it took."""

    SCRIPT = """
import json, logging, sys, time
from pathlib import Path
from configs.fleet import TrackingConfig
from launch.trackers import JsonlTracker, open_trackers
from launch.wandb_rows import COLUMNS
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
begun = time.monotonic()
config = TrackingConfig(console=False, traces_every=1, wait_seconds=float(sys.argv[2]))
with open_trackers(Path(sys.argv[1]), config, total_steps=2) as trackers:
    for step in (1, 2):
        trackers.rollouts(step, [{name: 0 for name in COLUMNS}])
        trackers.log(step, {"x": 0.25 * step})
        trackers.alarm(step, "x", "much")
        print(time.monotonic() - begun, flush=True)
        sys.stdin.readline()
        begun = time.monotonic()
    trackers.finish({})
"""

    def __init__(self, folder):
        self.folder = folder / "run"
        self.folder.mkdir()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", self.SCRIPT, str(self.folder), str(WAIT)], **pipes)

    def seconds_to_begin(self):
        """Once its first step is logged."""
        return float(self.process.stdout.readline())

    def ends(self):
        """The rest of it, with how long that took the process and whoever waits for it to exit."""
        begun = time.monotonic()
        out, stderr = self.process.communicate("\n\n", timeout=120)
        self.seconds_of_step, self.seconds_to_end = float(out), time.monotonic() - begun
        self.log = [line for line in stderr.splitlines() if "Loaded credentials" not in line]
        self.warnings = [line for line in self.log if line.startswith("cispo.tracking WARNING")]
        assert self.process.returncode == 0
        assert [line["x"] for line in lines(self.folder)] == [0.25, 0.5]
        return self

    def client(self):
        """The id of W&B's own process; None before it runs."""
        return next((pid for pid in below(self.process.pid) if "wandb-core" in command_line(pid)), None)


@pytest.fixture
def tracked(tmp_path, server):
    """tracked(): a Tracked that has begun."""
    started = []

    def start():
        started.append(Tracked(tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


BIT = 6.0
"""Seconds that a busy machine may take for what takes none."""


def is_offline(one, why):
    """It said so once, and has everything in its folder."""
    (line,) = one.log
    assert why in line
    assert line.endswith("it is written offline.")
    assert [row["x"] for row in history(one.folder)] == [0.25, 0.5]
    return True


def test_a_server_that_hangs_at_the_start_makes_the_run_an_offline_one(server, tracked):
    server.gate.clear()
    one = tracked()
    assert one.seconds_to_begin() < WAIT + BIT
    assert one.ends().seconds_to_end < BIT
    assert is_offline(one, f"within tracking.wait_seconds={WAIT}")


@pytest.mark.parametrize(("fault", "why"), [("denied", "permission denied"), ("unauthorised", "error 401")])
def test_a_server_that_refuses_the_run_makes_it_an_offline_one(server, tracked, fault, why):
    server.faults[fault] = 10**6
    one = tracked()
    assert one.seconds_to_begin() < BIT
    assert one.ends().seconds_to_end < BIT
    assert is_offline(one, why)
    assert server.runs == {}


def test_a_client_that_is_killed_at_the_start_makes_the_run_an_offline_one(server, tracked):
    server.gate.clear()
    one = tracked()
    while not server.received:
        assert one.process.poll() is None
        time.sleep(0.05)
    os.kill(one.client(), signal.SIGKILL)
    one.seconds_to_begin()
    assert is_offline(one.ends(), "did not take the run")


def test_a_client_that_is_killed_later_costs_a_warning(server, tracked):
    one = tracked()
    one.seconds_to_begin()
    os.kill(one.client(), signal.SIGKILL)
    (warning,) = one.ends().warnings
    assert "the run goes on without it" in warning


@pytest.mark.parametrize("fault", ["dies", "hangs", pytest.param("broken", marks=pytest.mark.slow)])
def test_a_server_that_fails_later_costs_a_warning_and_no_step_waits_for_it(server, tracked, fault):
    one = tracked()
    one.seconds_to_begin()
    if fault == "dies":
        server.close()
    elif fault == "hangs":
        server.gate.clear()
    else:
        server.faults[fault] = 10**6
    one.ends()
    assert one.seconds_of_step < BIT
    assert one.seconds_to_end < WAIT + BIT
    (warning,) = one.warnings
    assert "W&B could not finish" in warning
    assert [row["x"] for row in history(one.folder)] == [0.25, 0.5]
    assert f"`wandb sync {one.folder}/wandb/offline-run-" in warning
    if fault != "dies":
        server.faults.clear()
        server.gate.set()
        synchronise(one.folder)
        is_mirror(server.only_run(), one.folder)


def test_a_server_that_refuses_later_costs_a_warning(server, tracked):
    one = tracked()
    one.seconds_to_begin()
    server.faults["unauthorised"] = 10**6
    assert one.ends().seconds_to_end < BIT
    assert len([line for line in one.log if "wandb sync" in line]) == 1


@pytest.mark.slow
def test_a_server_that_fails_for_a_moment_costs_nothing(tmp_path, server):
    folder = tmp_path / "run"
    folder.mkdir()
    server.faults["broken"] = 1
    with open_trackers(folder, QUIET, total_steps=2) as trackers:
        trackers.log(1, {"x": 0.5})
        server.faults["broken"] = 2
        trackers.finish({})
    is_mirror(server.only_run(), folder)
    assert server.only_run().exit_codes == [0]
