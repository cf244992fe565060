"""`cispo runs`: what it lists, what it compares, and what it says of folders that hold no run."""

import json
import os

import pytest

from launch.cli import main
from launch.run_folder import one_driver
from launch.runs import sparkline


def make_run(folder, lr=0.1, steps=4, logged=4, first=0.25, last=0.75, finished=True, commit=None):
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
    if commit:
        begun = {"begun": 1.0, "code": {"commit": commit, "is_changed": True}}
        (folder / "attempts.jsonl").write_text(json.dumps(begun) + "\n" + json.dumps({"ended": 2.0}) + "\n")


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
    assert found["old"][:6] == ["finished", "4 of 4", "0.250 → 0.750", "–", "0.4", "▁▃▅▆█"]
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


def names(output):
    return [line["name"] for line in json.loads(output)]


@pytest.fixture
def three(tmp_path):
    """Runs a, b and c, of rising accuracy; c is the shortest."""
    for name, lr, last, logged in (("a", 0.1, 0.3, 4), ("b", 0.2, 0.5, 4), ("c", 0.1, 0.9, 2)):
        make_run(tmp_path / name, lr=lr, last=last, logged=logged, commit="0123456789ab")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sort", "sampled"], ["c", "b", "a"]),
        (["--sort", "name"], ["a", "b", "c"]),
        (["--sort", "reward/mean", "--where", "learner.lr=1e-1"], ["a", "c"]),
        (["--sort", "sampled", "--limit", "1"], ["c"]),
        (["--sort", "name", "--where", "learner.lr=0.1", "--where", "layers=[0, 1]"], ["a", "c"]),
        (["--where", "learner.lr=3"], []),
    ],
)
def test_runs_are_chosen_and_sorted(options, expected, three, capsys):
    assert main(["runs", str(three), "--json", *options]) == 0
    assert names(capsys.readouterr().out) == expected


def test_runs_that_were_named_keep_their_order_unless_asked(three, capsys):
    folders = [str(three / name) for name in "bca"]
    assert main(["runs", *folders, "--json"]) == 0
    assert names(capsys.readouterr().out) == ["b", "c", "a"]
    assert main(["runs", *folders, "--json", "--sort", "sampled"]) == 0
    assert names(capsys.readouterr().out) == ["c", "b", "a"]


def test_programs_are_told_everything(three, capsys):
    assert main(["runs", str(three / "b"), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["accuracy"] == {"sampled": {"first": 0.25, "last": 0.5}}
    assert facts["settings"]["learner.lr"] == 0.2
    assert facts["metrics"]["reward/mean"] == 0.4
    assert (facts["state"], facts["step"], facts["code"]) == ("finished", 4, "01234567+")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sort", "sampeld"], "did you mean 'sampled'?"),
        (["--sort", "reward/men"], "did you mean 'reward/mean'?"),
        (["--where", "learner.rl=1"], "did you mean 'learner.lr'?"),
        (["--where", "learner.lr"], "a condition is key=value"),
        (["--limit", "-1"], "--limit must be 0 (all) or more; got -1."),
    ],
)
def test_what_no_run_has_is_answered_with_the_nearest(options, says, three, capsys):
    assert main(["runs", str(three), *options]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "curve"),
    [
        ([], ""),
        ([1.0], ""),
        ([1.0, 1.0, 1.0], "▁▁▁"),
        ([0.0, float("nan"), 1.0], "▁█"),
        (list(range(8)), "▁▂▃▄▅▆▇█"),
        (list(range(1200)), "▁▂▂▃▄▄▅▅▆▇▇█"),
    ],
)
def test_a_sparkline_is_the_course_in_twelve_characters_at_most(values, curve):
    assert sparkline(values) == curve


def test_runs_of_a_sweep_are_among_those_of_the_folder(tmp_path, capsys):
    make_run(tmp_path / "alone")
    make_run(tmp_path / "sweep" / "seed-1")
    assert main(["runs", str(tmp_path), "--json", "--sort", "name"]) == 0
    assert names(capsys.readouterr().out) == ["alone", "sweep/seed-1"]
    assert main(["runs", str(tmp_path / "sweep"), "--json"]) == 0
    assert names(capsys.readouterr().out) == ["seed-1"]


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
