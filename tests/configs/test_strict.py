"""from_dict: nothing is guessed, every fault is found, and to_dict is its inverse."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispo.errors import ConfigError
from configs.schema import RunConfig
from configs.strict import from_dict, nearest, to_dict


@dataclass(frozen=True)
class Inner:
    size: int = 1
    rate: float = 0.5

    def __post_init__(self):
        if self.size < 0:
            raise ConfigError("size must be at least 0.")


@dataclass(frozen=True)
class Parent:
    steps: int = 1

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError("steps must be at least 1.")


@dataclass(frozen=True)
class Outer(Parent):
    path: str = ""
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    curve: float | tuple[tuple[float, float], ...] = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    maybe: int | None = None
    by_name: dict[str, Inner] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Needy:
    path: str
    split: str = "train"


def faults_of(values, cls=Outer):
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, values)
    return list(caught.value.faults)


def test_nothing_given_is_the_defaults():
    assert from_dict(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ({"inner": {"rate": "1e-4"}}, lambda o: o.inner.rate == 1e-4),
        ({"inner": {"rate": 2}}, lambda o: o.inner.rate == 2.0 and isinstance(o.inner.rate, float)),
        ({"steps": 3.0}, lambda o: o.steps == 3 and isinstance(o.steps, int)),
        ({"curve": "3e-4"}, lambda o: o.curve == 3e-4),
        ({"curve": [[0, 0], [3, "3e-4"]]}, lambda o: o.curve == ((0.0, 0.0), (3.0, 3e-4))),
        ({"betas": [0.8, 1]}, lambda o: o.betas == (0.8, 1.0)),
        ({"maybe": None}, lambda o: o.maybe is None),
        ({"maybe": 4}, lambda o: o.maybe == 4),
        ({"by_name": {"a": {"size": 2}}}, lambda o: o.by_name == {"a": Inner(size=2)}),
        ({"anything": {"a": [1, "x"]}}, lambda o: o.anything == {"a": [1, "x"]}),
    ],
)
def test_what_a_person_would_mean_is_understood(values, read):
    assert read(from_dict(Outer, values))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": True}, "steps must be a whole number; got True."),
        ({"steps": "3"}, "steps must be a whole number; got '3'."),
        ({"steps": 2.5}, "steps must be a whole number; got 2.5."),
        ({"steps": None}, "steps must be a whole number; got None."),
        ({"flag": 1}, "flag must be true or false; got 1."),
        ({"flag": "true"}, "flag must be true or false; got 'true'."),
        ({"path": 3}, "path must be a text; got 3."),
        ({"inner": {"rate": True}}, "inner.rate must be a number; got True."),
        ({"inner": {"rate": "fast"}}, "inner.rate must be a number; got 'fast'."),
        ({"inner": {"rate": math.nan}}, "inner.rate must be a number; got nan."),
        ({"inner": 3}, "inner must be a mapping of keys; got 3."),
        ({"inner": {"sise": 3}}, "unknown key 'inner.sise': did you mean 'size'?"),
        ({"curve": "steep"}, "curve must be a number or a list; got 'steep'."),
        ({"curve": [[0, 1, 2]]}, "curve must be a number or a list; got [[0, 1, 2]]."),
        ({"betas": [0.9]}, "betas must be a list of 2 values; got [0.9]."),
        ({"betas": 0.9}, "betas must be a list; got 0.9."),
        ({"maybe": "x"}, "maybe must be a whole number or null; got 'x'."),
        ({"by_name": {"a": {"size": "x"}}}, "by_name.a.size must be a whole number; got 'x'."),
        ({"by_name": []}, "by_name must be a mapping; got []."),
        ({"inner": {"size": -1}}, "size must be at least 0."),
    ],
)
def test_everything_else_is_a_fault_with_its_path(values, says):
    assert faults_of(values) == [says]


def test_all_faults_come_at_once_those_of_rules_included():
    faults = faults_of({"steps": 0, "flag": 2, "inner": {"size": -1}, "zzz": 1, "by_name": {"a": {"rate": "x"}}})
    assert faults == [
        "unknown key 'zzz': known here: anything, betas, by_name, curve, flag, inner, maybe, path, steps.",
        "flag must be true or false; got 2.",
        "size must be at least 0.",
        "by_name.a.rate must be a number; got 'x'.",
        "steps must be at least 1.",
    ]


def test_a_rule_about_a_value_of_the_wrong_type_is_not_guessed_at():
    assert faults_of({"steps": "x", "flag": 2}) == [
        "steps must be a whole number; got 'x'.",
        "flag must be true or false; got 2.",
    ]


def test_a_field_without_default_is_asked_for_by_name():
    assert faults_of({"split": "test"}, Needy) == ["path is needed and has no default."]


@pytest.mark.parametrize(("key", "answer"), [("sise", "did you mean 'size'?"), ("colour", "known here: rate, size.")])
def test_nearest_names_one_key_or_lists_them(key, answer):
    assert nearest(key, ["size", "rate"]) == answer


NUMBERS = st.floats(allow_nan=False)


@given(
    st.builds(
        Outer,
        steps=st.integers(1, 10**9),
        path=st.text(),
        flag=st.booleans(),
        inner=st.builds(Inner, size=st.integers(0, 9), rate=NUMBERS),
        curve=NUMBERS | st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1).map(tuple),
        betas=st.tuples(NUMBERS, NUMBERS),
        maybe=st.none() | st.integers(),
        by_name=st.dictionaries(st.text(), st.builds(Inner, size=st.integers(0, 9))),
        anything=st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.integers())),
    )
)
def test_to_dict_and_from_dict_are_inverses(config):
    import json

    assert from_dict(Outer, to_dict(config)) == config
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


def test_the_default_run_survives_the_round_trip():
    config = RunConfig()
    assert from_dict(RunConfig, to_dict(config)) == config


def test_a_run_whose_engine_is_too_short_for_its_window_is_refused():
    values = to_dict(RunConfig()) | {"name": "../up"}
    values["engine"] = values["engine"] | {"max_length": 100}
    faults = faults_of(values, RunConfig)
    assert any("name must be a plain folder name" in fault for fault in faults)
    assert any("engine.max_length must exceed sampling.max_new_tokens" in fault for fault in faults)


def test_every_field_of_every_config_is_documented():
    """An "Attributes:" line for each: what `cispo train --cfg` prints can be looked up."""

    def configs(cls):
        yield cls
        for each in dataclasses.fields(cls):
            default = each.default_factory if each.default_factory is not dataclasses.MISSING else None
            if isinstance(default, type) and dataclasses.is_dataclass(default):
                yield from configs(default)

    missing = [
        f"{cls.__name__}.{each.name}"
        for cls in configs(RunConfig)
        for each in dataclasses.fields(cls)
        if not any(each.name in (parent.__doc__ or "") for parent in cls.__mro__)
    ]
    assert missing == []


def test_faults_between_fields_are_told_beside_faults_of_others():
    """One wrong value hides nothing but the checks that look at it."""
    with pytest.raises(ConfigError) as told:
        from_dict(
            RunConfig,
            {
                "name": "a/b",
                "seed": "x",
                "groups_per_step": 0,
                "engine": {"max_length": 100},
                "sampling": {"max_new_tokens": 100},
                "cluster": {"kind": "inline"},
                "learner": {"num_ranks": 2},
                "sync": {"transport": "pigeon"},
            },
        )
    text = "\n".join(told.value.faults)
    assert len(told.value.faults) == 5
    for fault in (
        "seed must be a whole number",
        "groups_per_step must be at least 1",
        "name must be a plain folder name",
        "engine.max_length must exceed sampling.max_new_tokens",
        "sync.transport must be one of",
    ):
        assert fault in text
    assert "learner.num_ranks=2 needs a process" not in text  # that check looks at sync, too


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learner": {"lr": -1, "max_grad_norm": 0, "num_ranks": 0}}, ("lr must", "max_grad_norm must", "num_ranks")),
        ({"sft": {"steps": -1, "lr": -1}}, ("sft.steps", "sft.lr")),
        ({"sampling": {"max_new_tokens": [[3, 1], [2, 5]], "temperature": 0}}, ("increasing steps", "above 0")),
        ({"sampling": {"max_new_tokens": 0, "top_p": 0.5}}, ("at least 1 at every step", "cut the distribution")),
        ({"ratio_cap": 0.2, "ratio_floor": 2, "mask_above": 0.5, "mask_below": 2}, ("ratio_cap", "ratio_floor must")),
        ({"mask_above": 0.5, "mask_below": 2}, ("mask_above must", "mask_below must")),
        ({"learner": {"optimizer": {"betas": [0.9, 1.5], "eps": 0}}}, ("betas", "eps")),
        ({"cluster": {"gpus_per_worker": -1, "object_store_mb": 1}}, ("gpus_per_worker", "object_store_mb")),
    ],
)
def test_two_faults_of_one_group_are_told_together(changes, says):
    with pytest.raises(ConfigError) as told:
        from_dict(RunConfig, changes)
    assert len(told.value.faults) >= len(says)
    for words in says:
        assert any(words in fault for fault in told.value.faults), told.value.faults


def test_a_thinking_budget_may_be_set():
    """It was refused for want of token ids, which only a tokenizer has."""
    assert from_dict(RunConfig, {"sampling": {"thinking_budget": 5}}).sampling.thinking_budget == 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_workers": 5, "gpus_per_worker": 1.0, "gpus_per_node": 8}, "4 GPUs and the workers' 5 are 9"),
        ({"num_workers": 4, "gpus_per_worker": 1.0, "gpus_per_node": 8}, ""),
        ({"num_workers": 8, "gpus_per_worker": 0.5, "gpus_per_node": 8}, ""),
        ({"num_workers": 4, "gpus_per_worker": 1.5}, "a part of one GPU or a whole number"),
    ],
)
def test_more_gpus_than_there_are_to_be_are_refused(changes, says):
    values = {"learner": {"num_ranks": 4, "device": "cuda"}, "cluster": {"kind": "local", **changes}}
    if not says:
        config = from_dict(RunConfig, values)
        assert (config.learner_gpus, config.worker_gpus) == (4, 4)
        return
    with pytest.raises(ConfigError, match=says):
        from_dict(RunConfig, values)
