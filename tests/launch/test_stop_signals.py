"""Signals to `cispo train`: the first saves and stops, the second ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cispo.stop import StopRequest
from launch import train
from launch.cli import main
from launch.learner_ranks import LearnerDied
from launch.stop_signals import stop_on_signals

ROOT = Path(__file__).parents[2]


def kill_at_line(folder, number):
    """Send this process SIGTERM when metrics.jsonl has so many lines."""

    def wait():
        metrics, end = folder / "metrics.jsonl", time.monotonic() + 60
        while time.monotonic() < end:
            if metrics.exists() and metrics.read_text().count("\n") >= number:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_run_that_is_told_to_stop_saves_its_step_and_goes_on_as_if_it_had_not(
    tmp_path, small, whole_run, lines_of, capsys
):
    before = signal.getsignal(signal.SIGTERM)
    thread = kill_at_line(tmp_path / "whole", 2)
    assert main(["train", *small(tmp_path, "name=whole", "save_every=0")]) == 75
    thread.join(timeout=60)
    told = capsys.readouterr().err
    assert "whose checkpoint is complete: it received SIGTERM." in told and "cispo train --resume" in told
    assert signal.getsignal(signal.SIGTERM) == before
    (checkpoint,) = [p.name for p in (tmp_path / "whole" / "checkpoints").glob("step_[1-9]*")]
    assert checkpoint in ("step_1", "step_2", "step_3", "step_4")
    assert main(["train", "--resume", str(tmp_path / "whole")]) == 0
    assert lines_of(tmp_path / "whole") == lines_of(whole_run)


def test_a_learner_that_dies_after_the_wish_does_not_make_it_forgotten(tmp_path, small, monkeypatch, capsys):
    """Without the wish the run would start again."""
    tries = []

    def asked_and_dead(config, learner_config, parts, **settings):
        tries.append(parts.stop)
        os.kill(os.getpid(), signal.SIGTERM)
        while not parts.stop.is_asked:
            time.sleep(0.01)
        raise LearnerDied("The process of learner-0 died.")

    monkeypatch.setattr(train, "train", asked_and_dead)
    assert main(["train", *small(tmp_path, "name=a", "sft.steps=0")]) == 75
    told = capsys.readouterr().err
    assert "it received SIGTERM and then the learner died" in told and "newest is of step 0" in told
    assert len(tries) == 1


def test_the_second_signal_ends_it_at_once():
    request = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop_on_signals(request):
        os.kill(os.getpid(), signal.SIGUSR1)
        while not request.is_asked:
            time.sleep(0.01)
        assert request.reason == "it received SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def test_outside_the_main_thread_there_is_no_handler():
    found = []

    def look():
        request = StopRequest()
        with stop_on_signals(request):
            found.append((signal.getsignal(signal.SIGTERM), request.is_asked))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(before, False)]


def test_a_run_in_the_background_can_be_watched_stopped_and_resumed(tmp_path, small, capsys):
    words = small(tmp_path, "name=mine", "steps=2000", "save_every=0", "sft.steps=0")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.cli", "launch", "local"]
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mine"
    pid = int((folder / "launch" / "local.pid").read_text())
    assert f"kill {pid}" in done.stdout and f"--resume {folder}" in done.stdout
    try:
        wait_until(lambda: (folder / "metrics.jsonl").exists() and "\n" in (folder / "metrics.jsonl").read_text())
        assert main(["launch", "local", *words]) == 1
        assert "holds a run already" in capsys.readouterr().err
        assert main(["launch", "local", "--resume", str(folder)]) == 1
        assert "in use by another cispo process" in capsys.readouterr().err
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    assert "RunStopped: stopped after step" in (folder / "launch" / "local.log").read_text()


def test_a_background_run_that_ends_at_once_is_told_with_its_reason(tmp_path, small, capsys):
    missing = ("model.path=/nowhere", "model=pretrained", "sft.steps=0", "name=mine")
    assert main(["launch", "local", *small(tmp_path, *missing)]) == 1
    told = capsys.readouterr().err
    assert "the run ended at once (status 1)" in told and "/nowhere" in told


def wait_until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
