"""attempts.jsonl: who drove a run with which code, changes that no commit has included."""

import json
import subprocess

import pytest

from launch import attempts


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone whose code runs: one file in its only commit."""
    root = tmp_path / "clone"
    (root / "launch").mkdir(parents=True)
    (root / "launch" / "attempts.py").write_text("x = 1\n")
    name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (["init", "-q"], ["add", "-A"], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", root, *words], check=True)
    monkeypatch.setattr(attempts, "__file__", str(root / "launch" / "attempts.py"))
    attempts.code_version.cache_clear()
    yield root
    attempts.code_version.cache_clear()


def drive(folder, step=0):
    folder.mkdir(exist_ok=True)
    attempts.code_version.cache_clear()  # as in a process of its own
    with attempts.attempt(folder, step):
        pass
    return json.loads((folder / "attempts.jsonl").read_text().splitlines()[-2])["code"]


def test_code_of_a_commit_has_no_difference(repository, tmp_path):
    code = drive(tmp_path / "run")
    assert code["is_changed"] is False and len(code["commit"]) == 40 and "diff" not in code
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["attempts.jsonl"]


def test_each_attempt_names_its_own_changes(repository, tmp_path):
    """A later attempt with other changes once replaced those of the first."""
    names = []
    for value in (2, 2, 3):
        (repository / "launch" / "attempts.py").write_text(f"x = {value}\n")
        names.append(drive(tmp_path / "run")["diff"])
    assert names[0] == names[1] != names[2]
    assert "+x = 2" in (tmp_path / "run" / names[0]).read_text()
    assert "+x = 3" in (tmp_path / "run" / names[2]).read_text()


def test_files_that_git_does_not_know_are_named(repository, tmp_path):
    (repository / "my_reward.py").write_text("y = 1\n")
    assert (tmp_path / "run" / drive(tmp_path / "run")["diff"]).read_text() == "# not in git: my_reward.py\n"


def test_changes_without_bound_are_not_kept(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "MAX_DIFF_BYTES", 10)
    (repository / "launch" / "attempts.py").write_text("x = 2\n")
    assert "bytes of changes, not kept" in (tmp_path / "run" / drive(tmp_path / "run")["diff"]).read_text()


def test_an_error_is_written_as_the_end(tmp_path):
    with pytest.raises(ZeroDivisionError), attempts.attempt(tmp_path, 3):
        raise ZeroDivisionError("by zero")
    begun, ended = attempts.read_attempts(tmp_path)
    assert begun["from_step"] == 3
    assert (ended["state"], ended["error"]) == ("failed", "ZeroDivisionError: by zero")
