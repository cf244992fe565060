"""VllmEngine and OpenAIEngine against the real vLLM, on a tiny Qwen3 with random weights; transformers is the oracle.

vLLM needs an environment of its own on a CPU: `make test-vllm` makes it and runs this file there (docs/engines.md).
Everywhere else the tests are skipped, and say so.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cispo.errors import ConfigError, InvalidRequest, WeightSyncError
from cispo.types import StopReason
from model import Tokenizer
from rollout.engine import Request
from rollout.engine_config import EngineConfig, ServerConfig, VllmConfig
from rollout.openai_engine import OpenAIEngine
from rollout.sampling import Sampling

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.timeout(600),
]
VOCAB, EOS = 288, 257
PROMPT = (5, 6, 7)
TOKEN = "a-token-for-the-tests"
BOUND = 2e-5
"""Of a log-probability in float32 between vLLM and transformers; 1e-5 was the largest difference seen."""


def make_model(folder, seed):
    """A tiny Qwen3 of transformers, in a folder, which it also returns."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False,
        initializer_range=0.2, eos_token_id=EOS,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    Tokenizer.bytes_and_words().save(folder)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model that vLLM starts with, another one of its shape, and the folder of the first."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("qwen")
    return make_model(folder / "one", 0), make_model(folder / "two", 1), folder / "one"


@pytest.fixture(scope="module")
def in_process(models):
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from rollout.vllm_engine import VllmEngine

    size = EngineConfig(num_slots=16, max_length=256, vllm=VllmConfig("float32", 0.3, enforce_eager=True))
    return VllmEngine(str(models[2]), size)


class Served:
    """`vllm serve` of a folder, in a process of its own."""

    def __init__(self, folder, log, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = [
            str(Path(sys.executable).parent / "vllm"), "serve", str(folder), "--port", str(port), "--dtype", "float32",
            "--max-model-len", "256", "--max-num-seqs", "16", "--enforce-eager", "--api-key", TOKEN, *options,
        ]  # fmt: skip
        settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | settings)

    def engine(self, monkeypatch, weights_folder=""):
        """A client, once the server answers."""
        monkeypatch.setenv("CISPO_ENGINE_TOKEN", TOKEN)
        server = ServerConfig(urls=(self.url,), weights_folder=str(weights_folder))
        end = time.monotonic() + 300
        while True:
            try:
                return OpenAIEngine(EngineConfig(max_length=256, kind="openai", server=server), VOCAB)
            except ConfigError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
                time.sleep(1)

    def close(self):
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    started = Served(models[2], tmp_path_factory.mktemp("vllm") / "log", "--logprobs-mode", "processed_logprobs")
    yield started
    started.close()


@pytest.fixture(params=["in_process", "server"])
def engine(request, monkeypatch, tmp_path, models):
    """Either engine, with the first model's weights."""
    if request.param == "in_process":
        made = request.getfixturevalue("in_process")
    else:
        made = request.getfixturevalue("server").engine(monkeypatch, tmp_path / "weights")
    made.load_weights(weights_of(models[0]), made.version + 1)
    yield made
    made.cancel(list(made._requests))


def weights_of(model):
    return ((name, weight.detach()) for name, weight in model.state_dict().items())


def logp_of(model, prompt, token_ids, temperature, top_k=0):
    """transformers' log-probabilities of the tokens after the prompt."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1] / temperature
    if top_k:
        least_T1 = logits_TV.topk(top_k).values[:, -1:]
        logits_TV = logits_TV.masked_fill(logits_TV < least_T1, -torch.inf)
    return logits_TV.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0].numpy()


def run(engine):
    ended = []
    while engine.has_work:
        ended += engine.step()
    return sorted(ended, key=lambda completion: completion.member)


@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (0.7, 0), (2.0, 0), (1.0, 20), (0.6, 5)])
def test_log_probabilities_are_those_of_the_distribution_sampled_from(engine, models, temperature, top_k):
    sampling = Sampling(temperature, top_k=top_k, max_new_tokens=30)
    [members] = engine.generate([PROMPT], sampling, seed=3, num_samples=4)
    assert [completion.member for completion in members] == [0, 1, 2, 3]
    assert len({tuple(completion.token_ids.tolist()) for completion in members}) == 4
    for completion in members:
        assert len(completion.token_ids) == 30 and completion.stop_reason is StopReason.LENGTH
        expected = logp_of(models[0], PROMPT, completion.token_ids.tolist(), temperature, top_k)
        np.testing.assert_allclose(completion.logp, expected, atol=BOUND)
        assert completion.action_mask.all() and set(completion.version.tolist()) == {engine.version}


def test_seeds_repeat_and_greedy_takes_the_likeliest(engine, models):
    sampling = Sampling(0.8, max_new_tokens=20)

    def sampled(seed):
        return [c.token_ids.tolist() for c in engine.generate([PROMPT], sampling, seed=seed, num_samples=2)[0]]

    assert sampled(1) == sampled(1) != sampled(2)
    [[greedy]] = engine.generate([PROMPT], Sampling(0.0, max_new_tokens=20))
    ids = torch.tensor([[*PROMPT, *greedy.token_ids.tolist()]])
    with torch.no_grad():
        assert models[0](ids).logits[0, 2:-1].argmax(-1).tolist() == greedy.token_ids.tolist()


def test_a_stop_token_ends_a_sequence_is_its_last_and_the_models_own_end_does_not(engine):
    [members] = engine.generate([PROMPT], Sampling(2.0, max_new_tokens=200, stop_token_ids=(119, 20)), 5, 4)
    stopped = [completion for completion in members if completion.stop_reason is StopReason.STOP]
    assert stopped
    for completion in stopped:
        assert completion.token_ids[-1] in (119, 20) and not np.isin(completion.token_ids[:-1], (119, 20)).any()
    [members] = engine.generate([PROMPT], Sampling(2.0, max_new_tokens=250), 5, 16)
    ends = [completion for completion in members if EOS in completion.token_ids]
    assert ends and all(len(completion.token_ids) == 250 for completion in ends)


def test_new_weights_take_over_and_every_token_tells_which_sampled_it(engine, models):
    old = engine.version
    engine.submit([Request("a", PROMPT, 4, 1, Sampling(0.7, max_new_tokens=200))])
    while sum(len(growing.token_ids) for growing in engine._requests["a"].members.values()) < 60:
        engine._go_on()
    engine.load_weights(weights_of(models[1]), old + 1)
    for completion in run(engine):
        assert len(completion.token_ids) == 200 and not completion.failed
        num_old = int((completion.version == old).sum())
        assert 0 < num_old < 200
        assert completion.version.tolist() == [old] * num_old + [old + 1] * (200 - num_old)
        by_old, by_new = (logp_of(m, PROMPT, completion.token_ids.tolist(), 0.7) for m in models[:2])
        np.testing.assert_allclose(completion.logp[:num_old], by_old[:num_old], atol=BOUND)
        np.testing.assert_allclose(completion.logp[num_old:], by_new[num_old:], atol=BOUND)
    # Nothing of the old weights is left in the cache of prefixes.
    [[fresh]] = engine.generate([PROMPT], Sampling(max_new_tokens=20))
    np.testing.assert_allclose(fresh.logp, logp_of(models[1], PROMPT, fresh.token_ids.tolist(), 1.0), atol=BOUND)


def test_a_request_is_saved_cancelled_and_goes_on_with_its_tokens(engine, models):
    engine.submit([Request("a", PROMPT, 3, 1, Sampling(max_new_tokens=150))])
    while sum(len(growing.token_ids) for growing in engine._requests["a"].members.values()) < 40:
        engine._go_on()
    state = engine.snapshot("a")
    engine.cancel(["a"])
    assert not engine.has_work
    engine.resume(state)
    for completion in run(engine):
        kept = state.arrays.get(f"{completion.member}/token_ids", np.empty(0, dtype=np.int64))
        assert completion.token_ids[: len(kept)].tolist() == kept.tolist()
        assert len(completion.token_ids) == 150
        expected = logp_of(models[0], PROMPT, completion.token_ids.tolist(), 1.0)
        np.testing.assert_allclose(completion.logp, expected, atol=BOUND)


def test_what_vllm_cannot_do_is_refused_in_a_sentence(engine):
    with pytest.raises(InvalidRequest, match="max_length 256"):
        engine.submit([Request("a", PROMPT, sampling=Sampling(max_new_tokens=254))])
    with pytest.raises(ConfigError, match="thinking_budget"):
        thinking = Sampling(max_new_tokens=9, thinking_budget=3, think_open_id=1, think_close_id=2)
        engine.submit([Request("a", PROMPT, sampling=thinking)])


def test_vllm_samples_at_temperatures_up_to_2(engine):
    hot = Request("a", PROMPT, sampling=Sampling(2.5, max_new_tokens=9))
    if not isinstance(engine, OpenAIEngine):
        with pytest.raises(ConfigError, match="up to 2"):
            engine.submit([hot])
        return
    engine.submit([hot])
    [completion] = run(engine)
    assert "temperature must be in [0, 2]" in completion.failed


def test_weights_of_another_model_are_refused_and_the_old_ones_kept(in_process, models):
    in_process.load_weights(weights_of(models[0]), 50)
    part = dict(weights_of(models[1]))
    part.pop("lm_head.weight")
    with pytest.raises(WeightSyncError, match="nobody is unknown; lm_head.weight is missing"):
        in_process.load_weights(iter([*part.items(), ("nobody", torch.zeros(3))]), 51)
    [[completion]] = in_process.generate([PROMPT], Sampling(max_new_tokens=10))
    expected = logp_of(models[0], PROMPT, completion.token_ids.tolist(), 1.0)
    np.testing.assert_allclose(completion.logp, expected, atol=BOUND)
    assert set(completion.version.tolist()) == {50}


def test_a_server_with_two_masters_is_noticed(server, models, monkeypatch, tmp_path):
    first, second = (server.engine(monkeypatch, tmp_path / name) for name in ("a", "b"))
    first.load_weights(weights_of(models[0]), 3)
    second.load_weights(weights_of(models[0]), 4)
    with pytest.raises(WeightSyncError, match="has the weights of version 4 where this worker left 3"):
        first.load_weights(weights_of(models[0]), 5)


def test_vllm_as_it_starts_by_itself_is_found_out(models, tmp_path, monkeypatch):
    """Without --logprobs-mode vLLM returns log-probabilities before temperature: right at 1, refused elsewhere."""
    server = Served(models[2], tmp_path / "log")
    try:
        engine = server.engine(monkeypatch)
        [[completion]] = engine.generate([PROMPT], Sampling(max_new_tokens=10))
        expected = logp_of(models[0], PROMPT, completion.token_ids.tolist(), 1.0)
        np.testing.assert_allclose(completion.logp, expected, atol=BOUND)
        with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
            engine.submit([Request("a", PROMPT, sampling=Sampling(0.7, max_new_tokens=10))])
    finally:
        server.close()
