"""docs/debugging.md names only settings and metrics that exist, with the limits that the code has."""

import dataclasses
import re

import pytest

from cispo.alarms import AlarmConfig
from cispo.trainer import TrainerConfig
from configs.schema import RunConfig
from configs.strict import to_dict
from tests.docs.pages import DOCS

PAGE = (DOCS / "debugging.md").read_text()
METRICS = (DOCS / "metrics.md").read_text()
NAMED = set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.S | re.M)))


def test_every_metric_has_its_row():
    families = {row.split("/")[0] for row in re.findall(r"^\| `([\w/]+)", METRICS, flags=re.M)}
    metrics = {name for name in NAMED if name.split("/")[0] in families and "/" in name and " " not in name}
    rows = re.findall(r"^\| `([^`]+)`", METRICS, flags=re.M)
    known = [re.compile(re.sub(r"<\w+>", r"[\\w<>]+", row)) for row in rows]
    assert len(metrics) > 20
    assert not [name for name in metrics if not any(row.fullmatch(name.replace("*", "kl")) for row in known)]


def test_every_setting_exists():
    tree = to_dict(RunConfig())
    roots = {
        "sampling",
        "rollout",
        "learner",
        "engine",
        "cluster",
        "sync",
        "alarms",
        "correction",
        "rewards",
        "sft",
        "task",
    }
    settings = {re.sub(r"=.*|\.\*$", "", name) for name in NAMED if re.match(r"[a-z_]+[.=]", name) and " " not in name}
    settings = {name for name in settings if name.split(".")[0] in roots or name in tree}
    assert len(settings) > 15
    for name in settings:
        place = tree
        for part in name.split("."):
            assert isinstance(place, dict) and part in place, name
            place = place[part]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(AlarmConfig) if field.type == "float"])
def test_the_alarms_have_the_limits_of_the_code(name):
    assert re.search(rf"`alarms\.{name}` \({getattr(AlarmConfig(), name):g}\)", PAGE), name


def test_the_drift_warning_has_the_limit_of_the_code():
    assert f"above {TrainerConfig().kl_warn:g} (`kl_warn`)" in PAGE
