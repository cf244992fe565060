"""Whole runs whose sampling happens elsewhere: at `cispo serve`, and in an engine of the user's own."""

import importlib.util
import json

import pytest

from cispo.errors import ConfigError
from launch import build
from launch.cli import main
from launch.compose import compose
from rollout.engine import EngineConfig

ENGINE = '''
"""An engine of somebody's own: ours, with every request noted."""

from launch import build
from rollout.engine import HybridEngine

SUBMITTED = []


class NotingEngine(HybridEngine):
    def submit(self, requests):
        requests = list(requests)
        SUBMITTED.extend(request.id for request in requests)
        super().submit(requests)


def make_engine(config, tokenizer):
    return NotingEngine(build.make_policy(config, tokenizer).lm(), config.engine)


NUMBER = 3
'''


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_the_same_from_a_server_as_from_the_engine_in_process(chain_server, tmp_path, small, whole_run):
    """Two workers share the server; each step's weights reach it over the wire, whichever of them brings them first."""
    elsewhere = (
        "engine=openai",
        f"engine.server.urls=[{chain_server.url}]",
        f"engine.server.token_file={chain_server.token_file}",
    )
    assert main(["train", *small(tmp_path, "name=a", *elsewhere)]) == 0
    there, here = metrics_of(tmp_path / "a"), metrics_of(whole_run)
    assert len(there) == len(here) > 5
    assert chain_server.json("GET", "/v1/weights")[1]["version"] == 5
    for one, other in zip(there, here, strict=True):
        assert one.keys() ^ other.keys() <= {"sync/canary_logp_diff_max"}, "a server computes no canary"
        for name in ("reward/mean", "reward/custom/mean", "tokens/trained", "response_length/mean"):
            if name in other:
                assert one[name] == pytest.approx(other[name], abs=1e-6), name
        for name in ("actor/loss", "actor/grad_norm", "actor/entropy"):
            if name in other:
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
        if "mismatch/kl" in other:
            assert abs(one["mismatch/kl"]) < 1e-6 and one["mismatch/logp_abs_diff_max"] < 1e-4


def test_a_user_brings_an_engine_by_its_dotted_path(tmp_path, small, whole_run, monkeypatch, lines_of):
    (tmp_path / "my_engine.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["train", *small(tmp_path, "name=a", "engine.kind=my_engine:make_engine")]) == 0
    import my_engine

    assert len(my_engine.SUBMITTED) >= 5 * 4
    assert lines_of(tmp_path / "a") == lines_of(whole_run)


@pytest.mark.parametrize(
    "kind, says",
    [
        ("nowhere:make", "cannot be imported"),
        ("json:nothing", "cannot be imported"),
        ("json.decoder:NaN", "a function"),
    ],
)
def test_an_engine_that_is_not_there_is_told(kind, says):
    with pytest.raises(ConfigError, match=says):
        build.custom_engine(kind)


@pytest.mark.parametrize(
    "settings, says",
    [
        (["engine=openai"], "engine=openai needs engine.server.urls"),
        (["engine.kind=openai"], "engine.kind=openai needs engine.server.urls"),
        (["engine=openai", "engine.server.urls=[ftp://a]"], "http://host:port"),
        (["engine=openai", "engine.server.urls=[http://a:1,http://a:1]"], "names a server twice"),
        (["engine.kind=sglang"], "must be one of hybrid, openai, vllm"),
        (["engine.vllm.dtype=int8"], "engine.vllm.dtype must be one of"),
        (["engine.server.tries=0"], "engine.server.tries must be positive"),
        (["serve.port=-1"], "serve.port must be a TCP port"),
    ],
)
def test_engine_settings_that_cannot_work_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        compose(settings)


def test_retokenised_text_is_for_evaluation(tmp_path, small, capsys):
    settings = ("engine=openai", "engine.server.urls=[http://127.0.0.1:9]", "engine.server.retokenise=true")
    assert main(["train", *small(tmp_path, "name=a", *settings)]) == 1
    assert "evaluation only" in capsys.readouterr().err


def test_vllm_that_is_not_installed_or_has_no_model_is_told_in_a_sentence(tmp_path):
    from rollout.vllm_engine import VllmEngine

    with pytest.raises(ConfigError, match="engine.kind=vllm needs model.path"):
        VllmEngine("", EngineConfig(kind="vllm"))
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(ConfigError, match=r"needs vLLM .*pip install cispo\[vllm\]"):
            VllmEngine(str(tmp_path), EngineConfig(kind="vllm"))
