"""`cispo serve` as any client of the OpenAI API sees it: answers, refusals, backpressure, weights, and its end."""

import json
import time

import numpy as np
import pytest
import torch

from launch import build
from launch.compose import compose
from model import HybridLM
from model.checkpoint import save_pretrained, stream_weights
from rollout.engine import HybridEngine
from rollout.sampling import Sampling
from rollout.weight_package import make_package
from rollout.weight_wire import MEDIA_TYPE, to_bytes

TASK = ("task=chain",)
PROMPT = [17, 18, 19, 20]


@pytest.fixture(scope="module")
def server(serve):
    """A small server that nobody gives new weights."""
    return serve(*TASK, "engine.num_slots=8", "serve.max_queue=16", "serve.heartbeat_seconds=0.2")


@pytest.fixture(scope="module")
def engine():
    """The engine that the server has, in this process."""
    torch.set_num_threads(1)
    config = compose(TASK)
    return HybridEngine(build.make_policy(config, build.make_tokenizer(config)).lm(), config.engine)


def policy(seed):
    """A policy of the server's shape with other weights."""
    config = compose(TASK)
    lm = build.make_policy(config, build.make_tokenizer(config)).lm()
    torch.manual_seed(seed)
    return HybridLM(lm.config)


def package_of(lm, version):
    return make_package(stream_weights(lm), version)


def test_the_tokens_and_log_probabilities_are_those_of_the_engine(server, engine):
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.9, max_new_tokens=20, stop_token_ids=(5, 257))
    [expected] = engine.generate([PROMPT], sampling, seed=11, num_samples=3)
    body = {
        "prompt": PROMPT, "n": 3, "seed": 11, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "max_tokens": 20,
        "stop_token_ids": [5], "logprobs": 0, "return_token_ids": True,
    }  # fmt: skip
    status, answer = server.json("POST", "/v1/completions", body)
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for choice, completion in zip(answer["choices"], expected, strict=True):
        assert choice["token_ids"] == completion.token_ids.tolist()
        assert choice["prompt_token_ids"] == PROMPT
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], completion.logp, atol=1e-5)
        assert choice["finish_reason"] == completion.stop_reason
        assert choice["weight_versions"] == [{"version": "0", "start": 0, "end": len(completion.token_ids)}]
    num_new = sum(len(completion.token_ids) for completion in expected)
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": num_new, "total_tokens": 4 + num_new}


@pytest.mark.parametrize("interval", [1, 7])
def test_a_stream_brings_the_same_piece_by_piece(server, interval):
    body = {"prompt": PROMPT, "n": 2, "seed": 3, "max_tokens": 15, "logprobs": 0, "return_token_ids": True}
    _, whole = server.json("POST", "/v1/completions", body)
    events = server.events("/v1/completions", body | {"stream_interval": interval})
    assert len(events) >= 2 * (15 // interval)
    for choice in whole["choices"]:
        pieces = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert sum((piece["token_ids"] for piece in pieces), []) == choice["token_ids"]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        logp = sum((piece["logprobs"]["token_logprobs"] for piece in pieces), [])
        np.testing.assert_allclose(logp, choice["logprobs"]["token_logprobs"], atol=1e-5)
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_text_and_chat_prompts_are_tokenised_and_the_answer_is_text(server):
    config = compose(TASK)
    tokenizer = build.make_tokenizer(config)
    text = {"prompt": "1+2=", "seed": 1, "max_tokens": 8, "return_token_ids": True}
    _, answer = server.json("POST", "/v1/completions", text)
    [choice] = answer["choices"]
    assert choice["prompt_token_ids"] == tokenizer.encode("1+2=")
    assert choice["text"] == tokenizer.decode(choice["token_ids"])
    messages = [{"role": "user", "content": "1+2="}]
    chat = {"messages": messages, "seed": 1, "max_tokens": 8, "return_token_ids": True, "logprobs": True}
    _, answer = server.json("POST", "/v1/chat/completions", chat)
    [choice] = answer["choices"]
    assert choice["prompt_token_ids"] == tokenizer.encode(tokenizer.render(messages))
    assert choice["message"] == {"role": "assistant", "content": tokenizer.decode(choice["token_ids"])}
    assert len(choice["logprobs"]["content"]) == 8
    events = server.events("/v1/chat/completions", chat)
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == choice["message"]["content"]


def test_a_thinking_budget_forces_its_closing_token_and_says_so(server):
    tokenizer = build.make_tokenizer(compose(TASK))
    opening, closing = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    body = {
        "prompt": [*PROMPT, opening], "seed": 1, "max_tokens": 6, "logprobs": 0, "return_token_ids": True,
        "thinking_budget": 3, "think_open_id": opening, "think_close_id": closing,
    }  # fmt: skip
    [choice] = server.json("POST", "/v1/completions", body)[1]["choices"]
    assert choice["token_ids"][3] == closing
    assert choice["forced"] == [3]
    assert choice["logprobs"]["token_logprobs"][3] == 0


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"prompt": []}, "the prompt must hold at least one token"),
        ({"prompt": [100000]}, "prompt ids must lie in"),
        ({"prompt": None}, "prompt must be one text or one list of token ids"),
        ({"prompt": [[1], [2]]}, "prompt must be one text"),
        ({"max_tokens": 1000}, "must not exceed the engine's max_length 128"),
        ({"temperature": -1}, "temperature must be 0"),
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"n": 0}, "n must lie in"),
        ({"n": 25}, "n=25 is more than the 24 that have room here"),
        ({"logprobs": 5}, "logprobs must be 0"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported here"),
        ({"stop": ["\n"]}, "stop is not supported here"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must be a list"),
        ({"max_tokns": 3}, "did you mean 'max_tokens'?"),
        ({"model": "gpt"}, "there is no model 'gpt'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_request_that_cannot_be_fulfilled_is_answered_with_one_sentence(server, changed, says):
    status, answer = server.json("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 4} | changed)
    assert status == (404 if "model" in changed else 400)
    assert says in answer["error"]["message"]
    assert answer["error"]["code"] == status


def test_fields_that_ask_for_nothing_are_allowed(server):
    neutral = {"presence_penalty": 0.0, "stop": None, "user": "me", "min_p": 0, "echo": False, "top_k": -1}
    assert server.json("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 2} | neutral)[0] == 200


def test_only_the_token_opens_and_only_what_is_there_is_found(server):
    status, answer = server.json("GET", "/health", Authorization="Bearer wrong-wrong-wrong")
    assert (status, answer["error"]["type"]) == (401, "invalid_request_error")
    assert server.ask("POST", "/v1/weights", b"", Authorization="")[0] == 401
    assert server.ask("GET", "/v1/embeddings")[0] == 404
    assert server.ask("GET", "/v1/completions")[0] == 405
    assert server.ask("POST", "/v1/completions", b"{nonsense")[0] == 400
    assert server.ask("POST", "/v1/completions", b"[]")[0] == 400


def test_models_and_health_tell_what_is_served(server):
    [entry] = server.json("GET", "/v1/models")[1]["data"]
    assert (entry["id"], entry["owned_by"], entry["max_model_len"]) == ("embedded", "cispo", 128)
    assert entry["cispo"]["version"] == 0
    health = server.json("GET", "/health")[1]
    assert (health["status"], health["running"], health["waiting"], health["room"]) == ("ok", 0, 0, 24)


def test_a_full_server_says_so_and_a_client_that_leaves_makes_room(server):
    """A streamed request is held open unread; the rest of the room is asked for beside it."""
    connections = []
    for _ in range(3):
        connection = server.connect()
        body = {"prompt": PROMPT, "n": 8, "max_tokens": 120, "ignore_eos": True, "stream": True}
        token = server.token_file.read_text().strip()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {token}"})
        connections.append(connection)
    one = {"prompt": PROMPT, "max_tokens": 1}
    statuses = []
    while not statuses or statuses[-1] == 200 and len(statuses) < 50:
        status, headers, content = server.ask("POST", "/v1/completions", one)
        statuses.append(status)
    assert status == 429 and headers["Retry-After"] == "1"
    assert "sequences run or wait and 24 have room" in json.loads(content)["error"]["message"]
    for connection in connections:
        connection.close()
    end = time.monotonic() + 30
    while server.json("GET", "/health")[1]["room"] < 24 and time.monotonic() < end:
        time.sleep(0.02)
    health = server.json("GET", "/health")[1]
    assert (health["running"], health["waiting"], health["room"]) == (0, 0, 24)


def test_a_folder_is_served_takes_new_weights_refuses_damaged_ones_and_ends_gracefully(serve, tmp_path):
    zero, one, two = policy(0), policy(1), policy(2)
    save_pretrained(zero, tmp_path / "zero")
    build.make_tokenizer(compose(TASK)).save(tmp_path / "zero")
    server = serve(str(tmp_path / "zero"))
    body = {"prompt": PROMPT, "seed": 4, "max_tokens": 12, "logprobs": 0, "return_token_ids": True}

    def expected(lm):
        [[completion]] = HybridEngine(lm).generate([PROMPT], Sampling(max_new_tokens=12, stop_token_ids=(257,)), seed=4)
        return completion.token_ids.tolist()

    def sampled():
        [choice] = server.json("POST", "/v1/completions", body)[1]["choices"]
        return choice["token_ids"], choice["weight_versions"][0]["version"]

    assert server.json("GET", "/v1/models")[1]["data"][0]["id"] == "zero"
    assert sampled() == (expected(zero), "0")
    whole = b"".join(bytes(piece) for piece in to_bytes(package_of(one, 5)))
    assert server.json("POST", "/v1/weights", whole, Content_Type=MEDIA_TYPE)[1]["version"] == 5
    assert sampled() == (expected(one), "5")

    damaged = bytearray(b"".join(bytes(piece) for piece in to_bytes(package_of(two, 6))))
    damaged[-3] ^= 1
    for wrong, says in ((bytes(damaged), "checksum"), (whole[:-8], "bytes of plain numbers"), (b"x", "line of JSON")):
        status, answer = server.json("POST", "/v1/weights", wrong, Content_Type=MEDIA_TYPE)
        assert status == 400 and says in answer["error"]["message"]
    status, answer = server.json("POST", "/v1/weights", {"version": 6, "path": str(tmp_path / "nowhere")})
    assert status == 400 and "nowhere" in answer["error"]["message"]
    assert sampled() == (expected(one), "5"), "the old weights are kept whole"

    save_pretrained(two, tmp_path / "two")
    assert server.json("POST", "/v1/weights", {"version": 6, "path": str(tmp_path / "two")})[1]["version"] == 6
    assert sampled() == (expected(two), "6")

    # What was accepted ends before the server does; what comes later is refused by a closed door.
    connection = server.connect()
    token = server.token_file.read_text().strip()
    long = {"prompt": PROMPT, "max_tokens": 100, "ignore_eos": True, "return_token_ids": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(long), {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    assert server.terminate() == 0
    tokens = [line for line in answer.read().decode().splitlines() if line.startswith("data: {")]
    assert len(tokens) + 1 == 100
    assert "stopped serving" in server.log.read_text()


def test_a_server_that_cannot_start_says_why_in_a_sentence(serve, server, tmp_path):
    taken = serve(*TASK, f"serve.port={server.url.rpartition(':')[2]}")
    assert taken.wait() == 1
    assert "another process listens there" in taken.log.read_text()
