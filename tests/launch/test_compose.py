"""Overrides -> RunConfig: what may be typed, what every file gives, and that a written configuration reads back."""

import logging

import pytest
import yaml

from cispo.errors import CheckpointError, ConfigError
from configs.schema import RunConfig
from configs.strict import from_dict, to_dict
from launch.cli import main
from launch.compose import GROUPS, choices, compose, load_config, save_config

NEEDED = {
    "experiment=m1_like": ["engine.server.urls=[http://10.0.0.7:8800]"],
    "engine=openai": ["engine.server.urls=[http://10.0.0.7:8800]"],
    "model=pretrained": ["model.path=/some/folder"],
    "sandbox=remote": ["sandbox.remote.urls=[http://10.0.0.7:8700]"],
    "task=files": ["task.files.mine.path=/some/file.jsonl", "sft.steps=0"],
}


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in choices(group)])
def test_every_file_of_every_group_composes(choice):
    config = compose([choice, *NEEDED.get(choice, [])])
    assert from_dict(RunConfig, to_dict(config)) == config


@pytest.mark.parametrize("choice", sorted(NEEDED))
def test_a_file_that_needs_a_value_asks_for_it_by_name(choice):
    key = NEEDED[choice][0].split("=")[0]
    with pytest.raises(ConfigError, match=f"^{choice} needs {key}=... too.$"):
        compose([choice])


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("task.mixture.sort=0.5", lambda config: config.task.mixture["sort"] == 0.5),
        ("task.files.mine.path=x.jsonl", lambda config: config.task.files["mine"].path == "x.jsonl"),
        ("task.files.mine={path: x.jsonl, task: math}", lambda config: config.task.files["mine"].task == "math"),
        ("task.own.puzzle=my_tasks.py:Puzzle", lambda config: config.task.own == {"puzzle": "my_tasks.py:Puzzle"}),
        ("task.parameters.chain.max_length=7", lambda config: config.task.parameters.chain.max_length == 7),
        ("rewards.weights.format=0.1", lambda config: config.rewards.weights["format"] == 0.1),
        ("rewards.verifiers.mine=math", lambda config: config.rewards.verifiers["mine"] == "math"),
        ("learner.lr=[[0,0],[3,3e-4]]", lambda config: config.learner.lr == ((0.0, 0.0), (3.0, 3e-4))),
        ("learner.lr=1e-4", lambda config: config.learner.lr == 1e-4),
        ("ratio_cap=[[0,2],[10,3]]", lambda config: config.ratio_cap == ((0.0, 2.0), (10.0, 3.0))),
        ("mask_above=inf", lambda config: config.mask_above == float("inf")),
        ("model.shape.attn_type_list=[0,1,0,1]", lambda config: config.model.shape.attn_type_list == (0, 1, 0, 1)),
        ("name='a b'", lambda config: config.name == "a b"),
        ("steps=1e2", lambda config: config.steps == 100),
    ],
)
def test_what_may_be_typed_means_the_same_at_the_start_and_on_a_resumed_run(override, read, tmp_path):
    assert read(compose([override]))
    save_config(compose([]), tmp_path / "config.yaml")
    assert read(load_config(tmp_path / "config.yaml", [override]))


def test_a_new_name_in_the_mixture_is_that_of_the_files_named_so():
    config = compose(["task.mixture.mine=1", "task.files.mine.path=x.jsonl"])
    assert (config.task.mixture["mine"], config.task.files["mine"].path) == (1.0, "x.jsonl")


def test_a_custom_reward_brings_parts_of_its_own(tmp_path):
    config = compose([f"rewards.custom={tmp_path}/mine.py:reward", "rewards.weights.form=0.1"])
    assert config.rewards.weights["form"] == 0.1


def test_what_cfg_prints_loads_back_equal(capsys):
    overrides = ["cluster=inline", "steps=7", "learner.lr=[[0,0],[3,3e-4]]", "name=printed"]
    assert main(["train", "--cfg", *overrides]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert from_dict(RunConfig, printed) == compose(overrides)


@pytest.mark.parametrize("words", [["--cfg"], ["--cfg", "job"], ["--cfg=job"]])
def test_cfg_is_spelled_as_hydra_does_or_without_its_word(words, capsys):
    assert main(["train", *words, "steps=7", "cluster=inline"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["steps"] == 7


@pytest.mark.parametrize(
    ("package", "value"),
    [("learner.optimizer", {"betas": [0.9, 0.8], "eps": 1e-8, "weight_decay": 0.01}), ("steps", 7)],
)
def test_cfg_prints_a_part_of_the_configuration(package, value, capsys):
    overrides = ["steps=7", "learner.optimizer.betas=[0.9,0.8]"]
    assert main(["train", "--cfg", "job", "--package", package, *overrides]) == 0
    assert yaml.safe_load(printed := capsys.readouterr().out) == value
    assert "..." not in printed


def test_a_part_that_is_not_there_is_answered_with_the_nearest(capsys):
    assert main(["train", "--cfg", "job", "--package", "learner.optimiser"]) == 1
    assert "did you mean 'learner.optimizer'?" in capsys.readouterr().err


def test_what_a_run_saves_loads_back_equal(tmp_path):
    config = compose(["task=files", "task.files.mine.path=x.jsonl", "sft.steps=0", "rewards.weights.format=0.25"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_resumed_run_may_move_to_another_cluster_but_not_to_another_experiment(tmp_path):
    save_config(compose(["cluster=local", "steps=9"]), tmp_path / "config.yaml")
    moved = load_config(tmp_path / "config.yaml", ["cluster=inline", "cluster.num_workers=3"])
    assert (moved.cluster.kind, moved.cluster.num_workers, moved.steps) == ("inline", 3, 9)
    with pytest.raises(ConfigError, match="cannot take another"):
        load_config(tmp_path / "config.yaml", ["experiment=short"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("group_sise=4", r"did you mean 'group_size'\?"),
        ("task.mixtur.mine=1", r"did you mean 'task.mixture'\?"),
        ("steps.more=1", "steps has no keys below it"),
        ("cluster=kubernetes", "cluster=kubernetes: known here: inline, local"),
        ("task.files.mine.paht=x.jsonl", r"unknown key 'task.files.mine.paht': did you mean 'path'\?"),
        ("task.mixture.mine=lots", "task.mixture.mine must be a number; got 'lots'"),
        ("learner.lr=[1,2", r"the value of 'learner.lr=\[1,2' cannot be read"),
        ("nothing", "an override reads key=value"),
    ],
)
def test_a_wrong_override_is_explained(override, says):
    with pytest.raises(ConfigError, match=says):
        compose([override])


def test_a_configuration_that_is_not_there_or_not_yaml_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("steps: [1, 2\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "config.yaml")


def test_composing_is_silent_even_when_everything_else_speaks(caplog):
    with caplog.at_level(logging.DEBUG):
        compose(["steps=3"])
    assert caplog.text == ""


def test_a_key_that_is_taken_away_is_gone_on_a_resumed_run_too(tmp_path):
    save_config(compose(["~task.mixture.program"]), tmp_path / "begun.yaml")
    save_config(compose([]), tmp_path / "whole.yaml")
    begun = load_config(tmp_path / "begun.yaml")
    assert load_config(tmp_path / "whole.yaml", ["~task.mixture.program"]).task == begun.task
    assert "program" not in begun.task.mixture
