"""Diffs are applied as git applies them, and what reaches beyond the project's own text files is refused."""

import difflib
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.repository_files import refusal
from rewards.repository_patch import PatchError, apply_diff, find_diff

FILES = {"pkg/a.py": b"one\ntwo\nthree\nfour\nfive\nsix\n", "pkg/b.py": b"x = 1", "README.md": b"hello\n"}
CHANGE = "@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
A = "--- a/pkg/a.py\n+++ b/pkg/a.py\n"
B = "--- a/pkg/b.py\n+++ b/pkg/b.py\n@@ -1 +1 @@\n"
CHANGED = b"one\nTWO\nthree\nfour\nfive\nsix\n"


def new_file(path, head=""):
    return f"{head}--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x = 1\n"


@pytest.mark.parametrize(
    ("diff", "path", "content"),
    [
        (A + CHANGE, "pkg/a.py", CHANGED),
        (f"diff --git a/pkg/a.py b/pkg/a.py\nindex 1..2 100644\n{A}{CHANGE}", "pkg/a.py", CHANGED),
        ("--- pkg/a.py\t2024-01-01\n+++ pkg/a.py\t2024-01-02\n" + CHANGE, "pkg/a.py", CHANGED),
        (A + CHANGE.replace("@@\n", "@@ def f():\n"), "pkg/a.py", CHANGED),
        (A + "@@ -2 +2,0 @@\n-two\n", "pkg/a.py", None),  # no context: at the end or nowhere
        (A + "@@ -3,3 +3,3 @@\n one\n-two\n+TWO\n three\n", "pkg/a.py", CHANGED),  # the line number is off
        (A + "@@ -5,2 +5,3 @@\n five\n six\n+seven\n", "pkg/a.py", FILES["pkg/a.py"] + b"seven\n"),
        (B + "-x = 1\n\\ No newline at end of file\n+x = 2\n", "pkg/b.py", b"x = 2\n"),
        (B + "-x = 1\n+x = 2\n", "pkg/b.py", None),  # the end differs
        (new_file("pkg/c.py", "new file mode 100644\n"), "pkg/c.py", b"x = 1\n"),
        (new_file("pkg/c.py"), "pkg/c.py", b"x = 1\n"),
        (new_file("pkg/a.py"), "pkg/a.py", None),
        ("--- a/README.md\n+++ /dev/null\n@@ -1 +0,0 @@\n-hello\n", "README.md", "gone"),
        ("--- a/pkg/a.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n", "pkg/a.py", None),
        (A + CHANGE + "@@ -4,3 +4,3 @@\n four\n-five\n+FIVE\n six\n", "pkg/a.py", CHANGED.replace(b"five", b"FIVE")),
        (A + CHANGE + CHANGE, "pkg/a.py", None),
        (A + "@@ -1,3 +1,4 @@\n one\n-two\n+TWO\n three\n", "pkg/a.py", None),
        (A + "@@ -1,3 +1,2 @@\n one\n-two\n+TWO\n three\n", "pkg/a.py", None),
        (A + "@@ -1,3 +1,3 @@\n one\n-tow\n+TWO\n three\n", "pkg/a.py", None),
        (A + "@@ -1,2 +1,2 @@\n one\n two\n", "pkg/a.py", None),
        (A, "pkg/a.py", None),
        ("", "pkg/a.py", None),
        ("some words\n" + A + CHANGE, "pkg/a.py", None),
        (A + CHANGE + A + CHANGE, "pkg/a.py", None),
    ],
)  # fmt: skip
def test_diffs(diff, path, content):
    if content is None:
        with pytest.raises(PatchError):
            apply_diff(FILES, diff)
        return
    patched = apply_diff(FILES, diff)
    assert patched.get(path, "gone") == content
    assert {name: text for name, text in patched.items() if name != path} == {
        name: text for name, text in FILES.items() if name != path
    }


@pytest.mark.parametrize(
    "diff",
    [
        f"diff --git a/pkg/a.py b/pkg/a.py\nold mode 100644\nnew mode 100755\n{A}{CHANGE}",
        new_file("pkg/run.py", "new file mode 100755\n"),
        "diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n@@ -0,0 +1 @@\n+/etc/passwd\n",
        "diff --git a/pkg/a.py b/pkg/c.py\nsimilarity index 100%\nrename from pkg/a.py\nrename to pkg/c.py\n",
        "diff --git a/pkg/a.py b/pkg/c.py\ncopy from pkg/a.py\ncopy to pkg/c.py\n",
        "diff --git a/x.png b/x.png\nGIT binary patch\nliteral 3\nKcmZ\n",
        "Binary files a/x.png and b/x.png differ\n",
        f"--- a/pkg/a.py\n+++ b/pkg/c.py\n{CHANGE}",
        "--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+x\n",
        "new file mode 100644\n",
        A + CHANGE.replace("TWO", "T\0WO"),
        A + CHANGE + " " * 100_000,
        "".join(new_file(f"pkg/n{number}.py") for number in range(21)),
        A + "@@ -1,3 +1,9999999 @@\n one\n",
        A + "@@ -1,99999999 +1 @@\n one\n",
        A + "@@ -1 +1,1048577 @@\n one\n" + "+x\n" * 20,
    ],
)
def test_what_is_no_change_of_text_is_refused(diff):
    with pytest.raises(PatchError):
        apply_diff(FILES, diff)


@pytest.mark.parametrize(
    "path",
    [
        "../x.py", "pkg/../../x.py", "/etc/x.py", "./x.py", "pkg//x.py", "pkg\\..\\x.py", "", ".", "..", "a/./b.py",
        "tests/test_a.py", "pkg/tests/data.txt", "test_x.py", "pkg/x_test.py", "conftest.py", "pkg/conftest.py",
        "Tests/a.py", "pytest.ini", "setup.cfg", "tox.ini", "pyproject.toml", "setup.py", "sitecustomize.py",
        "usercustomize.py", "pkg/x.pth", "pkg/x.so", "pkg/x.pyc", "x.pyd", ".git/config", ".git/hooks/pre-commit.py",
        "pkg/.hidden.py", "unittest/__init__.py", "json.py", "os.py", "x", "pkg/x.sh", "a" * 300 + ".py", "pkg/\x01.py",
        'pkg/"x.py', "pkg/\u202ex.py", "pkg/a.py/x.py", "pkg",
    ],
)  # fmt: skip
def test_paths_that_a_patch_may_not_touch(path):
    files = FILES | {"tests/test_a.py": b"x = 2\n", "setup.cfg": b"x = 2\n"}
    with pytest.raises(PatchError):
        apply_diff(files, new_file(path))
    with pytest.raises(PatchError):
        apply_diff(files, f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-x = 2\n+x = 1\n")
    with pytest.raises(PatchError):
        apply_diff(files, f"--- a/{path}\n+++ /dev/null\n@@ -1 +0,0 @@\n-x = 2\n")


def test_paths_that_a_patch_may_touch():
    assert not any(
        map(refusal, ["pkg/a.py", "src/pkg/deep/er.py", "README.md", "notes.txt", "pkg/latest.py", "attest.py"])
    )


@pytest.mark.parametrize(
    ("answer", "diff"),
    [
        ("```diff\na\n```", "a\n"),
        ("```diff\na\n```\nand\n```diff\nb\n```\n", "b\n"),
        ("```diff\na\n```\n```diff\nunfinished", "a\n"),
        ("```diff\n+```\n ```\n```", "+```\n ```\n"),
        ("```patch\na\n```", "a\n"),
        ("```python\na\n```", None),
        ("--- a/x\n+++ b/x\n", None),
        ("```diff\n```", ""),
        ("", None),
    ],
)
def test_the_diff_is_found(answer, diff):
    assert find_diff(answer) == diff


def by_git(before, diff):
    """What git makes of it; None if it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "f.txt").write_bytes(before)
        git = ["git", "apply", "--whitespace=nowarn", "-"]
        environment = {"GIT_CEILING_DIRECTORIES": str(Path(folder).parent), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(git, input=diff.encode(), cwd=folder, env=environment, capture_output=True, check=False)
        return (Path(folder) / "f.txt").read_bytes() if done.returncode == 0 else None


def by_us(before, diff):
    try:
        return apply_diff({"f.txt": before}, diff)["f.txt"]
    except PatchError:
        return None


few_lines = st.lists(st.sampled_from(["a", "b", "", "  c"]), min_size=1, max_size=12)


def make_diff(before, after, context):
    """A unified diff with the marks for missing line ends that difflib leaves out."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), "a/f.txt", "b/f.txt", n=context
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


@settings(max_examples=150, deadline=None)
@given(few_lines, few_lines, st.integers(1, 3), st.booleans(), st.booleans())
def test_a_diff_makes_one_text_of_another(before, after, context, ends_before, ends_after):
    left, right = "\n".join(before) + "\n" * ends_before, "\n".join(after) + "\n" * ends_after
    if left != right and left and right:
        assert by_us(left.encode(), make_diff(left, right, context)) == right.encode()


@settings(max_examples=250, deadline=None)
@given(few_lines, few_lines, few_lines, st.integers(1, 2), st.data())
def test_git_agrees(before, after, other, context, data):
    """Diffs for another text: both accept the same and make the same of them. Git overlooks some damage, we do not."""
    left, right = "\n".join(before) + "\n", "\n".join(after) + "\n"
    diff = make_diff(left, right, context)
    if not diff:
        return
    lines = diff.splitlines(keepends=True)
    damage = data.draw(st.sampled_from(["other text", "drop", "double", "shift"]))
    place = data.draw(st.integers(2, len(lines) - 1))
    if damage == "other text":
        left = data.draw(
            st.sampled_from(["\n".join([*other, *before]) + "\n", "\n".join([*before, *other]) + "\n", left * 2])
        )
    elif damage == "drop":
        del lines[place]
    elif damage == "double":
        lines.insert(place, lines[place])
    else:
        lines = [line.replace("@@ -1", "@@ -2") for line in lines]
    ours, gits = by_us(left.encode(), "".join(lines)), by_git(left.encode(), "".join(lines))
    assert ours == gits or ours is None and damage in ("drop", "double")


LINES = (
    "--- a/f.txt\n", "+++ b/f.txt\n", "+++ /dev/null\n", "--- /dev/null\n", "+++ b/g.txt\n", "@@ -1 +1 @@\n",
    "@@ -0,0 +1 @@\n", "@@ -1,2 +1 @@\n", "-a\n", "+a\n", " a\n", "\n", "\\ No newline at end of file\n", "a",
    "diff --git a/f.txt b/f.txt\n", "index 1..2\n",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_any_text_is_applied_or_refused(lines):
    assert by_us(b"a\na\n", "".join(lines)) is None or "@@" in "".join(lines)
