"""Alarms: what they say, how often, and the settings that they refuse."""

import logging
import math

import pytest

from cispo.alarms import LIMITS, AlarmConfig, Alarms, warn_of_drift
from cispo.errors import ConfigError

QUIET = {"mismatch/kl": 1e-7, "mismatch/logp_abs_diff_mean": 1e-6, "ratio/capped_fraction": 0.0}


def told_nobody(step, metric, text):
    pass


def said(caplog, values, metric="mismatch/kl", **config):
    """Steps at which something was said, when `metric` had these values at steps 1, 2, ..."""
    caplog.clear()
    alarms = Alarms(AlarmConfig(**config), told_nobody)
    with caplog.at_level(logging.WARNING, logger="cispo"):
        for step, value in enumerate(values, start=1):
            alarms.look(step, QUIET | {metric: value})
    return [int(record.getMessage().split(":")[0].removeprefix("step ")) for record in caplog.records]


@pytest.mark.parametrize(("name", "metric"), [(name, metric) for name in LIMITS for metric in LIMITS[name][0]])
def test_a_warning_names_value_limit_and_what_to_do(caplog, name, metric):
    assert said(caplog, [0.01 * getattr(AlarmConfig(), name), 1.5 * getattr(AlarmConfig(), name)], metric) == [2]
    (text,) = (record.getMessage() for record in caplog.records)
    limit = getattr(AlarmConfig(), name)
    assert text.startswith(f"step 2: {metric} is {1.5 * limit:.3g}, above alarms.{name}={limit:g}: ")
    assert "learner.lr" in text or "correction.replay_experts=true" in text


def test_an_alarm_speaks_once_and_again_after_a_while(caplog):
    assert said(caplog, [0.02] * 12, repeat_after=5) == [1, 6, 11]


def test_or_when_its_value_has_doubled(caplog):
    assert said(caplog, [0.02, 0.039, 0.041, 0.06, 0.09, 0.1], repeat_after=100) == [1, 3, 5]


def test_each_alarm_is_silent_by_itself(caplog):
    alarms = Alarms(AlarmConfig(), told_nobody)
    with caplog.at_level(logging.WARNING, logger="cispo"):
        alarms.look(1, QUIET | {"mismatch/kl": 0.02})
        alarms.look(2, QUIET | {"mismatch/kl": 0.02, "ratio/capped_fraction": 0.2})
    assert [record.getMessage().split(" ")[2] for record in caplog.records] == ["mismatch/kl", "ratio/capped_fraction"]


def test_what_is_raised_is_counted_whether_it_is_said_or_not():
    alarms, metrics = Alarms(AlarmConfig(), told_nobody), QUIET | {"mismatch/kl": 0.02}
    wanted = {"alarm/mismatch_kl": 1.0, "alarm/mismatch_logp": 0.0, "alarm/capped_fraction": 0.0}
    assert alarms.look(1, metrics) == alarms.look(2, metrics) == wanted
    assert alarms.look(3, {"ratio/capped_fraction": math.nan, "mismatch/kl": 0.0}) == {"alarm/mismatch_kl": 0.0}


def test_an_infinite_limit_is_never_passed(caplog):
    assert said(caplog, [1e9], mismatch_kl=math.inf) == []


@pytest.mark.parametrize("name", [*LIMITS, "repeat_after"])
def test_a_limit_of_nothing_is_refused(name):
    with pytest.raises(ConfigError, match=rf"alarms\.{name} must be"):
        AlarmConfig(**{name: 0})


def test_whoever_else_listens_is_told_the_same_as_often(caplog):
    told = []
    alarms = Alarms(AlarmConfig(), lambda *what: told.append(what))
    with caplog.at_level(logging.WARNING, logger="cispo"):
        for step in (1, 2):
            alarms.look(step, QUIET | {"mismatch/kl": 0.02})
            warn_of_drift(step, {"drift/kl_p95": 0.2}, 0.1, lambda *what: told.append(what))
    assert [(step, metric) for step, metric, _ in told] == [
        (1, "mismatch/kl"),
        (1, "drift/kl_p95"),
        (2, "drift/kl_p95"),
    ]
    assert [text for _, _, text in told] == [record.getMessage() for record in caplog.records]
