"""What TAB offers: asked of the functions, and of a real bash with the line that the documentation gives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import RunConfig
from configs.strict import to_dict
from launch.cli import main
from launch.completion import SHELLS, overrides_of, runs_of
from launch.config_tree import GROUPS, choices, key_types

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("prefix", "offers"),
    [
        ("model=ti", ["model=tiny", "model=tiny_ring"]),
        ("model=tiny,hybrid_1", ["model=tiny,hybrid_16b", "model=tiny,hybrid_1b"]),
        ("group", ["groups_per_step=", "group_size="]),
        ("learner.max", ["learner.max_grad_norm=", "learner.max_row_tokens="]),
        ("learner.recompute=", ["learner.recompute=true", "learner.recompute=false"]),
        ("checkp", ["checkpoints.keep="]),
        ("learner.opt", ["learner.optimizer.betas=", "learner.optimizer.eps=", "learner.optimizer.weight_decay="]),
        ("nonsense", []),
    ],
)
def test_overrides_are_offered_up_to_the_next_dot(prefix, offers):
    assert sorted(word for word in overrides_of(prefix) if word.startswith(prefix)) == sorted(offers)


def test_everything_may_begin_an_override():
    offered = overrides_of("")
    assert {f"{group}=" for group in GROUPS} <= {*offered}
    assert {"learner.", "steps=", "sampling."} <= {*offered}
    assert "sampling=" not in offered


def test_the_keys_that_are_offered_are_those_of_the_configuration():
    def leaves(values, path=""):
        for key, value in values.items():
            if isinstance(value, dict) and value and f"{path}{key}" not in key_types():
                yield from leaves(value, f"{path}{key}.")
            else:
                yield f"{path}{key}"

    assert {*leaves(to_dict(RunConfig()))} == {*key_types()}


def test_folders_of_runs_are_offered_and_folders_on_the_way_to_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/ab", "runs/sweep/one", "other"):
        Path(name).mkdir(parents=True)
    for name in ("runs/a", "runs/ab", "runs/sweep/one"):
        (Path(name) / "config.yaml").touch()
    assert runs_of("") == ["runs/a", "runs/ab", "runs/sweep/"]
    assert runs_of("runs/a") == ["runs/a", "runs/ab"]
    assert runs_of("runs/sweep/") == ["runs/sweep/one"]
    assert runs_of("nowhere/") == []


@pytest.fixture(scope="module")
def ask_bash(tmp_path_factory):
    """ask_bash(line): what a bash with our completion offers at the end of the line."""
    if not (bash := shutil.which("bash")):
        pytest.skip("no bash here")
    folder = tmp_path_factory.mktemp("shell")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "config.yaml").touch()
    command = folder / "cispo"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.cli "$@"\n')
    command.chmod(0o755)
    program = """
eval "$(cispo completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<<"$1"
[[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete cispo
printf '%s\\n' "${COMPREPLY[@]}"
"""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def ask(line):
        done = subprocess.run(
            [bash, "-c", program, "bash", line],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return [word.strip() for word in done.stdout.split("\n") if word.strip()]

    return ask


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("cispo tr", {"train"}),
        ("cispo train --res", {"--resume"}),
        ("cispo train experiment=one", {"one_gpu"}),  # bash has the words up to the = already
        ("cispo train steps=3 learner.max_r", {"learner.max_row_tokens="}),
        ("cispo report ", {"runs/mine"}),
    ],
)
def test_a_real_bash_offers_it(ask_bash, line, offers):
    assert {*ask_bash(line)} == offers


def test_nothing_heavy_is_imported_for_a_tab(tmp_path):
    """A TAB costs one start of the command; these would make it seconds."""
    program = """
import os, sys
os.environ |= {"_ARGCOMPLETE": "1", "COMP_LINE": "cispo train learner.l", "COMP_POINT": "21"}
os.environ |= {"_ARGCOMPLETE_STDOUT_FILENAME": sys.argv[1], "_ARGCOMPLETE_IFS": "\\n"}
os._exit = sys.exit
from launch.cli import main
try:
    main()
except SystemExit:
    pass
print([name for name in ("torch", "ray", "hydra", "omegaconf", "numpy", "yaml", "rich") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "words")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert "learner.lr=" in (tmp_path / "words").read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_code(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "_ARGCOMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "plan"])
def test_help_lists_the_groups_and_their_choices(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    for group in GROUPS:
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == [group]]
        assert line.split()[1:] == choices(group)
