"""Prompts that are read in pieces: what they come to, who waits for whom, and what is left when things go wrong."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from cispo.errors import CispoError, InvalidRequest
from model import HybridCache, HybridConfig, HybridLM
from model.checkpoint import stream_weights
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling
from rollout.snapshot import PausedRequest

VOCAB = 40
TINY = HybridConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rotary_dim=8,
    intermediate_size=24,
    num_local_experts=4,
    attn_type_list=(0, 1, 0),
    initializer_range=0.15,
)
PIECE = 8


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_lm(seed=0):
    torch.manual_seed(seed)
    return HybridLM(TINY)


def make_engine(lm=None, num_slots=3, max_length=300, **settings):
    return HybridEngine(lm or make_lm(), EngineConfig(num_slots, max_length, PIECE), **settings)


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length)


def long_request(length=50, num_samples=1, num_new=6, **fields):
    return Request("long", prompt_of(length), num_samples, 3, Sampling(max_new_tokens=num_new, **fields))


def run(engine):
    """Step until nothing is left; {(request, member): completion}."""
    ended = {}
    while engine.has_work:
        for completion in engine.step():
            assert (completion.request_id, completion.member) not in ended
            ended[completion.request_id, completion.member] = completion
    return ended


def alone(request, lm=None):
    """What the request comes to in an engine that reads its prompt in one piece."""
    engine = HybridEngine(lm or make_lm(), EngineConfig(16, 300, 300))
    engine.submit([request])
    return {member: completion for (_, member), completion in run(engine).items()}


def same(a, b):
    np.testing.assert_array_equal(a.token_ids, b.token_ids)
    np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
    assert (a.stop_reason, a.failed) == (b.stop_reason, b.failed)


# --- who waits for whom -----------------------------------------------------------------------------------------------


def test_running_sequences_get_a_token_between_any_two_pieces():
    engine = make_engine()
    short = Request("short", (1, 2), sampling=Sampling(max_new_tokens=12))
    engine.submit([short])
    engine.step()
    engine.submit([long_request(length=10 * PIECE)])
    lengths = []
    with_short = engine.follow("short")
    for token_ids in with_short:
        lengths.append(len(token_ids))
        if len(lengths) == 9:
            break
    # The first step has the token from before it, too. The prompt is not through yet: 8 of its 10 pieces are.
    assert lengths == [2] + [1] * 8
    assert not any(len(ids) for ids in [engine._tokens_since("long", 0)])
    assert engine.num_running == 2
    with_short.close()
    same(run(engine)["long", 0], alone(long_request(length=10 * PIECE))[0])


def test_no_forward_pass_is_longer_than_a_piece():
    lm, lengths = make_lm(), []
    prefill = lm.prefill
    lm.prefill = lambda tokens_T, *rest: lengths.append(len(tokens_T)) or prefill(tokens_T, *rest)
    engine = make_engine(lm)
    engine.submit([long_request(length=3 * PIECE + 1), Request("short", (1, 2)), Request("other", prompt_of(20))])
    while engine.has_work:
        before = len(lengths)
        engine.step()
        assert sum(lengths[before:]) <= 2 * PIECE  # one piece of a long one, and short ones up to as much
    assert max(lengths) == PIECE
    assert sum(lengths) == 25 + 2 + 20


def test_short_prompts_overtake_a_long_one_and_all_come_to_what_they_are_alone():
    lm = make_lm()
    requests = [long_request(40, num_samples=4), *(Request(f"s{i}", prompt_of(3, i), 2, i) for i in range(4))]
    requests = [Request(r.id, r.token_ids, r.num_samples, r.seed, Sampling(max_new_tokens=5)) for r in requests]
    order = []
    for num_slots in (1, 2, 3, 12):
        engine = make_engine(lm, num_slots)
        engine.submit(requests)
        ended = run(engine)
        order.append(next(iter(ended))[0])
        assert len(ended) == 12
        for request in requests:
            for member, completion in alone(request, lm).items():
                same(ended[request.id, member], completion)
    assert order == ["long", "s0", "s0", "s0"]  # with one slot there is no lane to overtake in


def test_two_long_prompts_are_read_one_after_the_other():
    engine = make_engine()
    first, second = (
        long_request(4 * PIECE),
        Request("next", prompt_of(4 * PIECE, 1), sampling=Sampling(max_new_tokens=3)),
    )
    engine.submit([first, second])
    steps = {"long": 0, "next": 0}
    for step in range(1, 30):
        engine.step()
        for id in steps:
            if not steps[id] and len(engine._tokens_since(id, 0)):
                steps[id] = step
    assert steps == {"long": 5, "next": 9}  # seated in step 1, then a piece a step


def test_an_array_is_as_good_a_prompt_as_a_tuple():
    ids = prompt_of(30)
    pair = [Request("a", ids, 2, 1), Request("a", tuple(ids.tolist()), 2, 1)]
    assert pair[0] == pair[1]
    assert hash(pair[0]) == hash(pair[1])
    assert pickle.loads(pickle.dumps(pair[0])) == pair[0]
    assert Request("a", ids[:-1], 2, 1) != pair[0] != Request("a", ids, 2, 2)
    assert len({*pair, Request("b", ids)}) == 2
    [[one]] = make_engine().generate([ids], Sampling(max_new_tokens=5))
    [[other]] = make_engine().generate([ids.tolist()], Sampling(max_new_tokens=5))
    same(one, other)


def test_cancelling_while_the_prompt_is_read_frees_the_slot():
    engine = make_engine(num_slots=1)
    engine.submit([long_request(), Request("short", (1, 2), sampling=Sampling(max_new_tokens=2))])
    for _ in range(3):
        engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    engine.cancel(["long"])
    assert run(engine).keys() == {("short", 0)}


def test_new_weights_do_not_make_a_prompt_start_again():
    """Or one that takes longer to read than a version lasts would never be through."""
    engine = make_engine(version=1)
    engine.submit([long_request(6 * PIECE, num_new=2)])
    for _ in range(4):
        engine.step()
    engine.load_weights(stream_weights(make_lm(1)), version=2)
    for _ in range(4):
        ended = engine.step()
    assert [completion.version.tolist() for completion in ended] == [[2, 2]]


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [0, 1, 4, 8, 10])
def test_a_snapshot_at_any_step_goes_on_to_the_same_tokens(num_steps):
    """Before the prompt, in the middle of it, after it; with members that wait for a slot."""
    lm, request = make_lm(), long_request(6 * PIECE + 3, num_samples=4, num_new=5)
    engine = make_engine(lm, num_slots=2)
    engine.submit([request])
    early = [completion for _ in range(num_steps) for completion in engine.step()]
    state = pickle.loads(pickle.dumps(engine.snapshot("long")))
    rest = run(engine)
    other = make_engine(lm, num_slots=2)
    other.submit([Request("company", (1, 2), 2)])
    other.step()
    other.resume(state)
    again_state = other.snapshot("long")
    again = {key: completion for key, completion in run(other).items() if key[0] == "long"}
    third = make_engine(lm, num_slots=3)
    third.resume(again_state)
    for resumed in (again, run(third)):
        assert resumed.keys() == rest.keys()
        for key, completion in resumed.items():
            same(completion, rest[key])
    assert len(early) + len(rest) == 4


def test_what_was_read_before_the_snapshot_is_not_read_again():
    lm, lengths = make_lm(), []
    engine = make_engine(lm)
    engine.submit([long_request(6 * PIECE)])
    for _ in range(5):
        engine.step()
    state = engine.snapshot("long")
    prefill = lm.prefill
    lm.prefill = lambda tokens_T, *rest: lengths.append(len(tokens_T)) or prefill(tokens_T, *rest)
    other = make_engine(lm)
    other.resume(state)
    run(other)
    assert lengths == [PIECE] * 2  # four of six were read


# --- thinking budgets -------------------------------------------------------------------------------------------------

OPEN, CLOSE, THOUGHT, ANSWER, END = 1, 2, 3, 5, 6


class Thinker:
    """A policy that thinks for ever: only a forced close makes it answer, with one token, and end."""

    def __init__(self):
        self.config = HybridConfig(vocab_size=16)

    def prefill(self, tokens_T, cu_seqlens, slots_N, cache):
        cache.length_S[slots_N] += cu_seqlens.diff()
        return tokens_T[cu_seqlens[1:] - 1]

    def decode(self, tokens_N, slots_N, cache):
        cache.length_S[slots_N] += 1
        return tokens_N

    def logits(self, hidden_N):
        follower = torch.full((16,), THOUGHT)
        follower[CLOSE], follower[ANSWER] = ANSWER, END
        return torch.nn.functional.one_hot(follower[hidden_N], 16) * 20.0


def thinking_engine():
    lm = Thinker()
    return HybridEngine(lm, EngineConfig(2, 100, PIECE), cache=HybridCache(lm.config, 2, 100))


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("prompt", [(OPEN,), (*[4] * 20, OPEN, *[4] * 9)], ids=["short", "in pieces"])
def test_a_thinking_budget_is_spent_once_however_often_the_request_is_saved(budget, prompt):
    sampling = Sampling(
        temperature=0,
        max_new_tokens=20,
        think_open_id=OPEN,
        think_close_id=CLOSE,
        thinking_budget=budget,
        stop_token_ids=(END,),
    )
    request = Request("think", prompt, sampling=sampling)
    wanted = [THOUGHT] * budget + [CLOSE, ANSWER, END]
    engine = thinking_engine()
    engine.submit([request])
    [completion] = run(engine).values()
    assert completion.token_ids.tolist() == wanted
    assert np.flatnonzero(~completion.action_mask).tolist() == [budget]
    engine = thinking_engine()
    engine.submit([request])
    # Two steps each, for what is resumed takes its seat in the first and gets a token in the second.
    while not (ended := engine.step() or engine.step()):
        state = pickle.loads(pickle.dumps(engine.snapshot("think")))
        engine = thinking_engine()
        engine.resume(state)
    assert ended[0].token_ids.tolist() == wanted
    assert np.flatnonzero(~ended[0].action_mask).tolist() == [budget]
    assert ended[0].logp[budget] == 0


# --- what is refused, and what fails alone ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (np.array([], dtype=np.int64), "at least one token"),
        (np.array([1, VOCAB]), r"\[0, 40\), got 1 to 40"),
        (np.array([[1, 2], [3, 4]]), "flat sequence of integers"),
        (np.array([1.0, 2.0]), "integers, got float64"),
        (np.array([True, False]), "integers, got bool"),
        (np.zeros(300, dtype=np.int64), r"prompt \(300\) plus max_new_tokens \(256\) must not exceed"),
    ],
)
def test_a_bad_array_is_refused_and_the_others_are_served(prompt, reason):
    engine = make_engine()
    engine.submit([long_request()])
    engine.step()
    with pytest.raises(InvalidRequest, match=reason):
        engine.submit([Request("bad", prompt)])
    same(run(engine)["long", 0], alone(long_request())[0])


def test_a_long_prompt_with_a_broken_token_fails_early_and_alone():
    """Token 7 has a NaN embedding, as a broken weight has it."""
    lm = make_lm()
    with torch.no_grad():
        lm.model.embed_tokens.weight[7] = float("nan")
    prompt = np.where(prompt_of(200) == 7, 8, prompt_of(200))
    prompt[20] = 7
    healthy = Request("healthy", (1, 2), sampling=Sampling(max_new_tokens=9, top_k=1))
    engine = make_engine(lm, num_slots=2)
    broken = Request("broken", prompt, 3, sampling=Sampling(max_new_tokens=20))
    engine.submit([healthy, broken])
    ended = {}
    for _ in range(10):
        ended |= {(completion.request_id, completion.member): completion for completion in engine.step()}
    assert all("not finite" in ended["broken", member].failed for member in range(3))  # after 3 pieces, not after 25
    ended |= run(engine)
    same(ended["healthy", 0], alone(healthy, lm)[0])
    again = make_engine(lm)
    with pytest.raises(CispoError, match="not finite"):
        list(again.stream(Request("broken", prompt, sampling=broken.sampling)))
    assert not again.has_work


def test_a_model_of_nan_fails_every_request_and_goes_on_with_the_next_weights():
    lm, engine = make_lm(), make_engine(make_lm())
    broken = [(name, torch.full_like(weight, float("nan"))) for name, weight in stream_weights(lm)]
    engine.load_weights(broken, version=1)
    engine.submit([long_request(), Request("short", (1, 2))])
    ended = run(engine)
    assert all("version 1 gave logits that are not finite" in completion.failed for completion in ended.values())
    engine.load_weights(stream_weights(lm), version=2)
    engine.submit([long_request()])
    same(run(engine)["long", 0], alone(long_request())[0])


def saved(num_steps, request=None):
    """A state and what it holds."""
    engine = make_engine()
    engine.submit([request or long_request(3 * PIECE)])
    for _ in range(num_steps):
        engine.step()
    return engine.snapshot("long")


def changed(state, **arrays):
    return type(state)(
        {**state.arrays, **{name.replace("__", "/"): array for name, array in arrays.items()}}, state.meta
    )


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"prompt": np.array([1, 99])}, r"prompt ids must lie in \[0, 40\)"),
        ({"prompt": np.array([1.5])}, "snapshot"),
        ({"0__token_ids": np.array([1, 40, 3])}, r"member 0 must be ids in \[0, 40\)"),
        ({"0__token_ids": np.array([], dtype=np.int64)}, "at least one"),
        ({"0__logp": np.zeros(2, dtype=np.float32)}, "3 new tokens by its rules"),
        ({"0__cache/length": np.array(5)}, "3 new tokens by its rules"),
        ({"0__rules": np.array([1, 2])}, "must hold what `snapshot` wrote"),
        ({"7__rules": np.array([1, 2, 3, 4])}, "must hold what `snapshot` wrote"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_state_that_contradicts_itself_is_refused_and_the_others_are_served(arrays, reason):
    state = saved(num_steps=6)
    assert PausedRequest.from_state(state).faults(VOCAB) == []
    engine = make_engine()
    short = Request("short", (1, 2), sampling=Sampling(max_new_tokens=3))
    engine.submit([short])
    engine.step()
    with pytest.raises(InvalidRequest, match=reason):
        engine.resume(changed(state, **arrays))
    engine.resume(state)
    ended = run(engine)
    same(ended["short", 0], alone(short)[0])
    same(ended["long", 0], alone(long_request(3 * PIECE))[0])


def test_a_state_is_refused_where_it_is_too_long_or_under_way():
    state = saved(num_steps=3)
    with pytest.raises(InvalidRequest, match="max_length 20"):
        make_engine(max_length=20).resume(state)
    engine = make_engine()
    engine.resume(state)
    with pytest.raises(InvalidRequest, match="its id must differ"):
        engine.resume(state)
    bad = changed(state, **{"reading__cache/length": np.array(99)})
    with pytest.raises(InvalidRequest, match="a part of 24 prompt tokens"):
        make_engine().resume(bad)


@pytest.mark.parametrize("num_steps", [3, 6], ids=["half a prompt", "some tokens"])
def test_a_state_of_another_model_fails_alone(num_steps):
    state = saved(num_steps, long_request(3 * PIECE, num_samples=4))
    other = HybridEngine(HybridLM(HybridConfig(vocab_size=VOCAB, hidden_size=32)), EngineConfig(2, 300, PIECE))
    other.submit([Request("b", (1, 2), sampling=Sampling(max_new_tokens=3))])
    other.resume(state)
    ended = run(other)
    assert "shape" in ended["long", 0].failed
    assert not ended["b", 0].failed
    assert len(ended) == 5


def test_a_state_with_nan_fails_alone():
    state = saved(num_steps=6)
    poison = {name.replace("/", "__", 1): array * np.nan for name, array in state.arrays.items() if "layers.0" in name}
    assert poison
    engine = make_engine()
    short = Request("short", (1, 2), sampling=Sampling(max_new_tokens=3))
    engine.submit([short])
    engine.resume(changed(state, **poison))
    ended = run(engine)
    assert "not finite" in ended["long", 0].failed
    same(ended["short", 0], alone(short)[0])
