"""A run is given more workers and fewer while it runs, and no prompt is lost."""

import threading
import time
from types import SimpleNamespace

import pytest

from launch.cli import main
from launch.fleet_size import FleetSize, ask_for_workers, forget_wish
from launch.run_folder import one_driver
from tests.launch.test_async import ASYNC, check_that_nothing_was_lost, metrics_of


def when_a_step_shows(folder, num_workers, act):
    """A thread that acts once a step was made with so many workers."""

    def wait():
        end = time.monotonic() + 200
        while time.monotonic() < end:
            metrics = folder / "metrics.jsonl"
            if metrics.exists() and f'"perf/workers": {num_workers}.0' in metrics.read_text():
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow  # tests/rollout/test_service.py has workers come and go without processes
def test_workers_join_and_leave_while_a_run_runs(tmp_path, small):
    """With a broadcast, which must know how many will come to it."""
    folder, num_steps = tmp_path / "a", 40
    growing = when_a_step_shows(folder, 2, lambda: main(["workers", str(folder), "3"]))
    shrinking = when_a_step_shows(folder, 3, lambda: main(["workers", str(folder), "1"]))
    assert main(["train", *small(tmp_path, *ASYNC, "sync.transport=broadcast", f"steps={num_steps}", "name=a")]) == 0
    growing.join(timeout=10)
    shrinking.join(timeout=10)
    numbers = [line["perf/workers"] for line in metrics_of(folder)[1:]]
    assert max(numbers) == 3 and numbers[-1] == 1, numbers
    check_that_nothing_was_lost(folder, num_steps)


def test_only_a_run_under_way_can_be_given_workers_and_it_needs_one(tmp_path, capsys):
    assert main(["workers", str(tmp_path), "2"]) == 1
    assert "No run is under way in" in capsys.readouterr().err
    assert main(["workers", str(tmp_path), "0"]) == 1
    assert "needs at least 1 worker, got 0" in capsys.readouterr().err


def test_a_wish_outlives_a_restart_within_the_process_and_no_longer(tmp_path):
    """A run that starts again because its learner died has another FleetSize over the same folder."""

    def wish_after_restart():
        names, pool = (
            [],
            SimpleNamespace(staying=[SimpleNamespace(name="rollout-0")], add=lambda made: names.append(made)),
        )
        FleetSize(tmp_path, 1, lambda name: name).adjust(pool)
        return names

    with one_driver(tmp_path):
        ask_for_workers(tmp_path, 3)
        assert wish_after_restart() == wish_after_restart() == ["rollout-1", "rollout-2"]
        forget_wish(tmp_path)
        assert wish_after_restart() == []
