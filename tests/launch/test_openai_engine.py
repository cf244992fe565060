"""OpenAIEngine through `cispo serve`, against the same engine in this process, and at a server full of faults."""

import time

import numpy as np
import pytest
import torch

from cispo.errors import CispoError, ConfigError, InvalidRequest, WeightSyncError, WorkerDied
from cispo.types import StopReason
from launch import build
from launch.compose import compose
from model import HybridLM
from model.checkpoint import stream_weights
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.engine_config import ServerConfig
from rollout.openai_engine import OpenAIEngine
from rollout.sampling import Sampling
from tests.launch.fake_server import VOCAB, FakeServer, logp_of, tokens_of

PROMPT = (17, 18, 19, 20)


@pytest.fixture
def fake():
    """fake(**settings): a running FakeServer."""
    servers = []

    def start(**settings):
        servers.append(FakeServer(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.gate.set()
        server.close()


@pytest.fixture
def engine_at():
    """engine_at(*servers, **settings of engine.server): an engine that the test ends."""
    engines = []

    def make(*servers, tokenizer=None, **settings):
        settings = {"token_file": "", "backoff_seconds": 0.01, "silence_seconds": 10.0} | settings
        config = ServerConfig(urls=tuple(server.url for server in servers), **settings)
        engines.append(OpenAIEngine(EngineConfig(max_length=100, kind="openai", server=config), VOCAB, tokenizer))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def run(engine):
    """Step until nothing is left; {(request, member): completion}."""
    ended = {}
    while engine.has_work:
        ended |= {(completion.request_id, completion.member): completion for completion in engine.step()}
    return ended


def weights_of(lm):
    return ((name, weight.clone()) for name, weight in stream_weights(lm))


# --- through our own server -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(chain_server):
    """An engine at a server, and the same one in this process, with the same weights."""
    torch.set_num_threads(1)
    config = compose(["task=chain"])
    tokenizer = build.make_tokenizer(config)
    here = HybridEngine(build.make_policy(config, tokenizer).lm(), config.engine)
    there = OpenAIEngine(chain_server.engine_config(), tokenizer.vocab_size)
    there.load_weights(weights_of(here._lm), 0)
    yield there, here
    there.close()


def same(one, other):
    assert (one.request_id, one.member, one.stop_reason) == (other.request_id, other.member, other.stop_reason)
    for name in ("token_ids", "version", "action_mask"):
        array, expected = getattr(one, name), getattr(other, name)
        assert array.dtype == expected.dtype
        assert array.tolist() == expected.tolist()
    assert one.logp.dtype == other.logp.dtype
    np.testing.assert_allclose(one.logp, other.logp, atol=2e-5)


def test_a_server_samples_what_the_engine_in_process_does(both):
    requests = [
        Request(f"r{i}", PROMPT[: 1 + i % 4], 1 + i % 3, i, Sampling(temperature, 0.9, 40, 10 + 3 * i, (i, 40)))
        for i, temperature in enumerate((1.0, 0.7, 1.3, 0.0, 2.0, 1.0))
    ]
    think = Sampling(max_new_tokens=20, think_open_id=258, think_close_id=259, thinking_budget=4)
    requests.append(Request("think", (*PROMPT, 258), 2, 9, think))
    ended = []
    for engine in both:
        engine.submit(requests)
        ended.append(run(engine))
    assert ended[0].keys() == ended[1].keys()
    for key, completion in ended[0].items():
        same(completion, ended[1][key])
    assert not ended[0]["think", 0].action_mask[4]


def test_new_weights_reach_requests_under_way_and_each_token_tells_its_version(both):
    there, here = both
    lm = HybridLM(here._lm.config)
    there.submit([Request("a", PROMPT, 4, 1, Sampling(max_new_tokens=100))])
    while not any(growing.token_ids for growing in there._requests["a"].members.values()):
        there._go_on()
    for engine in both:
        engine.load_weights(weights_of(lm), 7)
    assert there.version == 7
    for completion in run(there).values():
        versions = completion.version.tolist()
        assert versions == sorted(versions) and {versions[0], versions[-1]} == {0, 7}
        assert len(versions) == 100
    [[there_now]] = there.generate([PROMPT], Sampling(max_new_tokens=30), seed=2)
    [[here_now]] = here.generate([PROMPT], Sampling(max_new_tokens=30), seed=2)
    assert there_now.token_ids.tolist() == here_now.token_ids.tolist()
    with pytest.raises(WeightSyncError, match="nobody is unknown"):
        there.load_weights(iter([("nobody", torch.zeros(3))]), 8)
    assert there.version == 7


def test_a_server_that_lost_its_weights_is_noticed_at_the_first_token(both, chain_server):
    """One that was started again has version 0, and its tokens would be dropped as too old, prompt by prompt."""
    there, here = both
    behind_its_back = OpenAIEngine(
        chain_server.engine_config(), build.make_tokenizer(compose(["task=chain"])).vocab_size
    )
    behind_its_back.load_weights(weights_of(here._lm), 1)
    with pytest.raises(WorkerDied, match=r"version 1 after it was given version 7: it was started again"):
        there.generate([PROMPT], Sampling(max_new_tokens=30), seed=2)
    there.cancel(list(there._requests))
    behind_its_back.load_weights(weights_of(here._lm), 7)
    assert there.generate([PROMPT], Sampling(max_new_tokens=30), seed=2)
    behind_its_back.close()


def test_a_cancelled_request_leaves_the_server(both):
    there, _ = both
    there.submit([Request("long", PROMPT, 8, 1, Sampling(max_new_tokens=120))])
    there._go_on()
    there.cancel(["long", "unknown"])
    assert not there.has_work
    server = there._sites[0].server
    end = time.monotonic() + 30
    while (health := server.get("/health"))["running"] + health["waiting"] and time.monotonic() < end:
        time.sleep(0.02)
    assert (health["running"], health["waiting"]) == (0, 0)


def test_a_snapshot_of_either_engine_goes_on_at_the_server_with_its_tokens_kept(both):
    there, here = both
    sampling = Sampling(max_new_tokens=90)
    begun = {}
    for name, engine, step in (("there", there, there._go_on), ("here", here, here.step)):
        engine.submit([Request("a", PROMPT, 3, 5, sampling)])
        state = engine.snapshot("a")
        while not any(key.endswith("/token_ids") for key in state.arrays):  # a fast server is soon through
            step()
            state = engine.snapshot("a")
        engine.cancel(["a"])
        begun[name] = state
    for state in begun.values():
        kept = {int(key.split("/")[0]): state.arrays[key] for key in state.arrays if key.endswith("/token_ids")}
        assert kept and all(len(ids) < 90 for ids in kept.values())
        there.resume(state)
        for (_, member), completion in run(there).items():
            ids = kept.get(member, np.empty(0, dtype=np.int64))
            assert completion.token_ids[: len(ids)].tolist() == ids.tolist()
            logp = state.arrays[f"{member}/logp"] if member in kept else []
            np.testing.assert_array_equal(completion.logp[: len(ids)], logp)
            check_logp(here, completion)


def check_logp(engine, completion):
    """Every log-probability is that of a full forward of prompt and tokens."""
    lm, tokens = engine._lm, torch.tensor([*PROMPT, *completion.token_ids.tolist()])
    with torch.no_grad():
        hidden = lm(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
        expected = lm.logp(hidden[len(PROMPT) - 1 : -1], tokens[len(PROMPT) :])
    assert len(completion.token_ids) == 90
    np.testing.assert_allclose(completion.logp, expected, atol=5e-5)


def test_a_stream_gives_the_tokens_of_its_request_and_others_go_on(both):
    there, _ = both
    there.submit([Request("other", PROMPT, 2, 1, Sampling(max_new_tokens=5))])
    [[expected]] = there.generate([PROMPT], Sampling(max_new_tokens=40), seed=3)
    got = list(there.stream(Request("s", PROMPT, 1, 3, Sampling(max_new_tokens=40))))
    assert got == expected.token_ids.tolist()
    assert {key[0] for key in run(there)} == {"other"}


# --- at a server full of faults ---------------------------------------------------------------------------------------


def expected_tokens(prompt, seed, index, length):
    source = tokens_of(prompt, seed, index)
    return [next(source) for _ in range(length)]


def test_token_ids_log_probabilities_and_settings_cross_the_wire(fake, engine_at):
    server = fake()
    [members] = engine_at(server).generate([[1, 2, 3]], Sampling(2.0, 1.0, 5, 7, (4,)), seed=6, num_samples=2)
    for completion in members:
        assert completion.token_ids.tolist() == expected_tokens([1, 2, 3], 6, completion.member, 7)
        expected = logp_of(2.0, 5)[completion.token_ids]
        np.testing.assert_allclose(completion.logp, expected.astype(np.float32), rtol=1e-6)
        assert completion.stop_reason is StopReason.LENGTH and not completion.failed
    path, body = server.requests[-1]
    assert path == "/v1/completions" and body["prompt"] == [1, 2, 3]
    wanted = {"n": 2, "seed": 6, "temperature": 2.0, "top_k": 5, "max_tokens": 7, "stop_token_ids": [4]}
    assert wanted.items() <= body.items()
    assert body["ignore_eos"] and body["return_token_ids"] and body["repetition_penalty"] == 1


@pytest.mark.parametrize("fault", ["busy", "broken"])
def test_a_fault_that_passes_is_waited_for(fake, engine_at, fault):
    server = fake()
    engine = engine_at(server)
    server.faults[fault] = 3
    [[completion]] = engine.generate([[1, 2]], Sampling(max_new_tokens=4))
    assert completion.token_ids.tolist() == expected_tokens([1, 2], 0, 0, 4) and not completion.failed


def test_a_busy_server_is_no_fault_however_often_it_says_so(fake, engine_at):
    server = fake()
    engine = engine_at(server, tries=1)
    server.faults["busy"] = 8
    assert not engine.generate([[1, 2]], Sampling(max_new_tokens=4))[0][0].failed


def test_a_connection_that_breaks_costs_no_token(fake, engine_at):
    """Four answers end after two tokens of each choice: what came stays, and the rest is asked for behind it."""
    server = fake()
    engine = engine_at(server, tries=2)
    server.faults["drops"] = 4
    num_before = len(server.requests)
    [members] = engine.generate([[1, 2]], Sampling(max_new_tokens=9), seed=3, num_samples=2)
    first, *again = [body for _, body in server.requests[num_before:]]
    assert (first["n"], first["seed"]) == (2, 3)
    assert len(again) == 5 and all(body["n"] == 1 and body["seed"] != 3 for body in again)
    for body in again:
        assert len(body["prompt"]) + body["max_tokens"] == 2 + 9
    for completion in members:
        assert len(completion.token_ids) == 9 and not completion.failed
        assert completion.token_ids[:2].tolist() == expected_tokens([1, 2], 3, completion.member, 2)
        np.testing.assert_allclose(completion.logp, logp_of()[completion.token_ids].astype(np.float32), rtol=1e-6)


def test_a_server_that_keeps_failing_fails_the_request_with_its_reason(fake, engine_at):
    server = fake()
    engine = engine_at(server, tries=3)
    server.faults["broken"] = 1000
    [[completion]] = engine.generate([[1, 2]], Sampling(max_new_tokens=4))
    assert "3 tries came to nothing, the last because" in completion.failed and "a defect" in completion.failed
    server.faults["broken"] = 0
    server.faults["refuses"] = 1
    [[completion]] = engine.generate([[1, 2]], Sampling(max_new_tokens=4))
    assert "answered 400: not like this" in completion.failed
    server.faults["nan"] = 1
    [[completion]] = engine.generate([[1, 2]], Sampling(max_new_tokens=4))
    assert "a log-probability of nan" in completion.failed
    with pytest.raises(CispoError, match="could not go on"):
        server.faults["refuses"] = 1
        list(engine.stream(Request("s", (1, 2), sampling=Sampling(max_new_tokens=4))))


def test_another_server_takes_over_from_one_that_died(fake, engine_at):
    dead, alive = fake(), fake()
    engine = engine_at(dead, alive)
    dead.close()
    prompts = [[i, 2] for i in range(6)]
    for i, [completion] in enumerate(engine.generate(prompts, Sampling(max_new_tokens=4))):
        assert completion.token_ids.tolist() == expected_tokens([i, 2], i, 0, 4)


def test_requests_wait_their_turn_and_a_deadline_ends_them(fake, engine_at):
    server = fake()
    engine = engine_at(server, max_in_flight=2, deadline_seconds=1.0)
    server.gate.clear()
    num_before = len(server.requests)
    engine.submit([Request(f"r{i}", (1, 2), sampling=Sampling(max_new_tokens=4)) for i in range(5)])
    ended = run(engine)
    assert len(ended) == 5 and all("deadline_seconds=1" in completion.failed for completion in ended.values())
    assert len(server.requests) - num_before <= 2


def test_a_silent_server_is_noticed(fake, engine_at):
    server = fake()
    engine = engine_at(server, silence_seconds=0.3, tries=2)
    server.gate.clear()
    [[completion]] = engine.generate([[1, 2]], Sampling(max_new_tokens=4))
    assert "2 tries came to nothing, the last because" in completion.failed
    assert "said nothing for too long" in completion.failed


@pytest.mark.parametrize(
    "settings, says",
    [({"has_ids": False}, "returns no token ids"), ({"has_logprobs": False}, "returns no token ids with log-prob")],
)
def test_a_server_that_cannot_be_learnt_from_is_refused_at_the_start(fake, engine_at, settings, says):
    with pytest.raises(ConfigError, match=says):
        engine_at(fake(**settings))


def test_log_probabilities_before_temperature_are_refused_where_they_would_be_wrong(fake, engine_at):
    engine = engine_at(fake(raw=True))
    [[completion]] = engine.generate([[1, 2]], Sampling(max_new_tokens=4))
    np.testing.assert_allclose(completion.logp, logp_of()[completion.token_ids].astype(np.float32), rtol=1e-6)
    for changed in ({"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}):
        with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
            engine.submit([Request("a", (1, 2), sampling=Sampling(max_new_tokens=4, **changed))])


def test_rules_that_a_server_does_not_know_are_refused(fake, engine_at):
    engine = engine_at(fake())
    thinking = Sampling(max_new_tokens=4, thinking_budget=3, think_open_id=1, think_close_id=2)
    with pytest.raises(ConfigError, match="thinking_budget"):
        engine.submit([Request("a", (1, 2), sampling=thinking)])


def test_what_no_server_could_sample_is_refused_before_it_is_sent(fake, engine_at):
    engine = engine_at(fake())
    ok = Request("ok", (1, 2), sampling=Sampling(max_new_tokens=4))
    for wrong, says in (
        (Request("a", ()), "at least one token"),
        (Request("a", (VOCAB,)), "prompt ids"),
        (Request("a", (1,) * 90, sampling=Sampling(max_new_tokens=11)), "max_length 100"),
        (ok, "must differ"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            engine.submit([ok, wrong])
    assert not engine.has_work


def test_new_weights_need_a_folder_where_the_server_is_not_ours(fake, engine_at):
    with pytest.raises(WeightSyncError, match="engine.server.weights_folder"):
        engine_at(fake()).load_weights(iter([("a", torch.zeros(3))]), 1)


class Letters:
    """Token id 0 is "a" and so on."""

    def encode(self, text):
        return [ord(letter) - 97 for letter in text]

    def decode(self, ids):
        return "".join(chr(97 + id) for id in ids)


def test_text_is_tokenised_again_only_if_asked_for_and_never_learnt_from(fake, engine_at):
    server = fake(has_ids=False)
    engine = engine_at(server, tokenizer=Letters(), retokenise=True)
    [[completion]] = engine.generate([[1, 2]], Sampling(max_new_tokens=4))
    _, body = server.requests[-1]
    assert body["prompt"] == "bc" and "return_token_ids" not in body
    expected = [id % 26 for id in expected_tokens("bc", 0, 0, 4)]
    assert completion.token_ids.tolist() == expected
    assert np.isnan(completion.logp).all(), "a token without a finite log-probability is in no loss"


def test_a_server_that_is_not_there_is_told_before_a_run_starts(engine_at):
    class Nowhere:
        url = "http://127.0.0.1:9"

    with pytest.raises(ConfigError, match=r"must answer before a run starts.*127.0.0.1:9 cannot be reached"):
        engine_at(Nowhere)
