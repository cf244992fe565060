"""`cispo runs`: what it lists, what it compares, and what it says of folders that hold no run."""

import json
import os

import pytest

from launch.cli import main
from launch.run_folder import one_driver


def make_run(folder, lr=0.1, steps=4, logged=4, first=0.25, last=0.75, finished=True):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"name: {folder.name}\nsteps: {steps}\nlearner: {{lr: {lr}}}\nlayers: [0, 1]\nempty: {{}}\n"
    )
    lines = [{"step": step, "reward/mean": step / 10, "tokens/generated": 100} for step in range(logged + 1)]
    if lines:
        lines[0] |= {"eval/chain/mean@2": first, "eval/all/mean@2": first}
        lines[-1] |= {"eval/chain/mean@2": last, "eval/all/mean@2": last}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "summary.json").write_text("{}")


def rows(output):
    """The cells of each line of a table, by the first."""
    lines = [[cell for cell in line.split("  ") if cell.strip()] for line in output.splitlines()]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines if cells}


def test_the_runs_of_a_folder_are_listed_newest_first(tmp_path, capsys):
    make_run(tmp_path / "old")
    make_run(tmp_path / "new", logged=2, finished=False)
    make_run(tmp_path / "begun", logged=-1, finished=False)
    for name, when in (("old", 1000), ("new", 3000), ("begun", 2000)):
        os.utime(tmp_path / name / "metrics.jsonl", (when, when))
    with one_driver(tmp_path / "begun"):
        assert main(["runs", str(tmp_path)]) == 0
    found = rows(capsys.readouterr().out)
    assert [name for name in found if name in ("old", "new", "begun")] == ["new", "begun", "old"]
    assert found["old"][:5] == ["finished", "4 of 4", "0.250 → 0.750", "–", "0.4"]
    assert found["new"][:2] == ["stopped", "2 of 4"]
    assert found["begun"][:4] == ["running", "0 of 4", "–", "–"]


def test_two_runs_side_by_side_show_what_differs(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", lr=0.2, last=0.5)
    assert main(["runs", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    found = rows(capsys.readouterr().out)
    assert found["learner.lr"] == ["0.1", "0.2"]
    assert not {"name", "steps", "layers"} & found.keys(), "what is the same is shown"
    assert found["sampled accuracy"] == ["0.250 → 0.750", "0.250 → 0.500"]
    assert found["tokens sampled"] == ["500", "500"]


@pytest.mark.parametrize("missing", [False, True])
def test_a_folder_without_runs_is_an_error_that_says_what_a_run_is(tmp_path, capsys, missing):
    folder = tmp_path / "nowhere" if missing else tmp_path
    assert main(["runs", str(folder)]) == 1
    assert "holds no run, which is a folder with a config.yaml" in capsys.readouterr().err


def test_looking_does_not_keep_a_driver_out(tmp_path):
    make_run(tmp_path / "a")
    with (tmp_path / "a" / ".lock").open("w") as lock:
        import fcntl
        import threading

        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        with one_driver(tmp_path / "a"):
            pass
