"""`cispo launch ray`: a job of a Ray cluster that is up, by Ray's own job submission."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from launch.cli import main

ROOT = Path(__file__).parents[2]
HAS_JOBS = all(importlib.util.find_spec(name) for name in ("aiohttp", "aiohttp_cors", "opencensus"))


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def dashboard(tmp_path):
    """A head of its own with a dashboard; its address."""
    port, gcs, client, agent = (free_port() for _ in range(4))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={gcs}", f"--dashboard-port={port}", "--num-cpus=2", "--object-store-memory=104857600"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--temp-dir=/tmp/ray-t"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < end and head.poll() is None, (tmp_path / "head.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        head.terminate()
        try:
            head.wait(timeout=20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_JOBS, reason="ray[default] is not installed (pip install 'cispo[ray]')")
def test_a_job_of_a_ray_cluster_trains_and_its_log_is_followed(dashboard, tmp_path, small, capsys):
    words = [word for word in small(tmp_path, "name=mine", "steps=2", "sft.steps=0") if word != "cluster=inline"]
    assert main(["launch", "ray", "--address", dashboard, "--follow", *words]) == 0
    told = capsys.readouterr()
    assert "is submitted to" in told.out and "metrics.jsonl" in told.out and "succeeded" in told.err
    metrics = (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [0, 1, 2]
    (tmp_path / "bad.py").write_text("def reward(prompt, text, reference, **info):\n    raise KeyError('nothing')\n")
    bad = ("name=bad", f"rewards.custom={tmp_path}/bad.py:reward")
    assert main(["launch", "ray", "--address", dashboard, "--follow", *words, *bad]) == 1
    assert "raised KeyError" in capsys.readouterr().out


def test_a_cluster_that_cannot_be_asked_is_a_sentence(tmp_path, small, capsys):
    words = [word for word in small(tmp_path, "name=mine") if word != "cluster=inline"]
    assert main(["launch", "ray", "--address", f"http://127.0.0.1:{free_port()}", *words]) == 1
    told = capsys.readouterr().err
    assert ("cannot be reached" if HAS_JOBS else "pip install 'cispo[ray]'") in told


def test_a_run_that_cannot_work_is_refused_before_the_cluster_is_asked(small, tmp_path, capsys):
    assert main(["launch", "ray", *small(tmp_path, "name=mine")]) == 1
    assert "cluster=inline: a job of a Ray cluster trains on it" in capsys.readouterr().err
    assert main(["launch", "ray", f"runs_folder={tmp_path}", "model.path=/none", "rewards.custom=no.py:f"]) == 1
    told = capsys.readouterr().err
    assert "/none is not a folder" in told and "no.py:f, but there is no such file" in told
