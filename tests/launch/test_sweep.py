"""What a sweep expands to, compared with Hydra's own sweeper, and the names of its runs."""

import re

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from cispo.errors import ConfigError
from launch.compose import choices, compose
from launch.sweep import LONGEST_NAME, expand, run_names


@pytest.mark.parametrize(
    "overrides",
    [
        ["steps=3"],
        ["seed=1,2", "learner.lr=1e-4,3e-4", "steps=3"],
        ["seed=range(1,4)", "task=choice(chain,program)"],
        ["learner.lr=[[0,0],[3,3e-4]],1e-4"],
        ["seed=range(0,10,step=5)", "seed=1,2"],
        ["ratio_cap=sort(5,3,2)", "task.files.m={path: a.jsonl},{path: b.jsonl}"],
    ],
)
def test_a_sweep_has_the_runs_of_hydras_own_sweeper(overrides):
    parsed = OverridesParser.create().parse_overrides(overrides)
    (wanted,) = BasicSweeper.split_arguments(parsed, None)
    found = expand(overrides)
    again = OverridesParser.create()
    assert [[again.parse_override(o).value() for o in job] for job in found] == [
        [again.parse_override(o).value() for o in job] for job in wanted
    ]


def test_a_quoted_comma_is_no_sweep():
    assert expand(["name='a,b'", "steps=1"]) == [["name='a,b'", "steps=1"]]


def test_glob_takes_the_files_of_a_group():
    assert expand(["learner=glob(*)"]) == [[f"learner={name}"] for name in choices("learner")]
    assert expand(["model=glob(hybrid_*)"]) == [["model=hybrid_16b"], ["model=hybrid_1b"]]


def test_what_is_expanded_composes():
    configs = [compose(job) for job in expand(["learner.lr=[[0,0],[3,3e-4]],1e-4", "name='a b'"])]
    assert [config.learner.lr for config in configs] == [((0.0, 0.0), (3.0, 3e-4)), 1e-4]
    assert {config.name for config in configs} == {"a b"}


def test_all_faults_of_a_sweep_are_told_at_once():
    with pytest.raises(ConfigError) as told:
        expand(["learner.lr=interval(0,1)", "seed=range(3,1)", "steps=[1", "name=glob(*)", "seed=1,2"])
    faults = told.value.faults
    assert len(faults) == 4
    assert "interval() is for optimisers" in faults[0]
    assert "names no value at all" in faults[1]
    assert "cannot be read" in faults[2]
    assert "names no value at all" in faults[3]


def test_names_say_what_differs_and_nothing_else():
    jobs = expand(["steps=3", "learner.lr=1e-4,3e-4", "seed=1,2", "task=chain"])
    assert run_names(jobs) == ["lr-0.0001_seed-1", "lr-0.0001_seed-2", "lr-0.0003_seed-1", "lr-0.0003_seed-2"]
    assert run_names(expand(["learner.lr=1e-4,2e-4", "sft.lr=1e-3,2e-3"]))[0] == "learner.lr-0.0001_sft.lr-0.001"
    assert run_names(expand(["steps=3"])) == ["run"]


@given(st.lists(st.text(max_size=100), min_size=1, max_size=5, unique=True))
def test_names_are_different_and_safe_whatever_the_values_are(values):
    names = run_names([["steps=3", f"model.path={value}"] for value in values])
    assert len({name.lower() for name in names}) == len(values)
    for name in names:
        assert re.fullmatch(r"[\w+][\w.+-]*", name, flags=re.ASCII)
        assert len(name) <= LONGEST_NAME + 9


def test_a_value_that_is_named_twice_is_one_run():
    jobs = expand(["learner.lr=1e-4,0.0001,2e-4", "seed=1,1"])
    assert jobs == [["learner.lr=0.0001", "seed=1"], ["learner.lr=0.0002", "seed=1"]]
