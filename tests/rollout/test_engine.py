"""The engine against full forwards of the same model, against itself in other company, and on hand-made logits."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from cispo.errors import ConfigError, InvalidRequest, WeightSyncError
from cispo.types import StopReason
from model import HybridCache, HybridConfig, HybridLM
from model.checkpoint import stream_weights
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling

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


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_lm(seed=0):
    torch.manual_seed(seed)
    return HybridLM(TINY)


def make_engine(lm=None, num_slots=4, max_length=300, prefill_tokens=64, stale_states="keep", **settings):
    config = EngineConfig(num_slots, max_length, prefill_tokens, stale_states)
    return HybridEngine(lm or make_lm(), config, **settings)


def run(engine):
    """Step until nothing is left; {(request, member): completion}."""
    ended = {}
    while engine.has_work:
        for completion in engine.step():
            assert (completion.request_id, completion.member) not in ended
            ended[completion.request_id, completion.member] = completion
    return ended


def logp_of(lm, tokens):
    """The model's own log-probability of each token given those before it, from one pass over all; not of the first."""
    tokens_T = torch.tensor(tokens)
    with torch.no_grad():
        hidden_TD = lm(tokens_T, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
        logp_TV = lm.logits(hidden_TD).log_softmax(-1)
    return logp_TV[:-1].gather(1, tokens_T[1:, None])[:, 0].numpy()


def prompt_of(length, seed=0):
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, length).tolist())


def mixed_requests(num=8, num_samples=1):
    """Prompts and limits of many lengths, some rules on."""
    return [
        Request(
            f"r{i}",
            prompt_of(1 + 3 * i % 17, seed=i),
            num_samples,
            seed=i,
            sampling=Sampling(
                temperature=(1.0, 0.7, 1.3, 0.0)[i % 4], max_new_tokens=5 + 7 * i % 23, stop_token_ids=(3,)
            ),
        )
        for i in range(num)
    ]


def full_forward_logits(lm, tokens):
    tokens_T = torch.tensor(tokens)
    with torch.no_grad():
        return lm.logits(lm(tokens_T, torch.arange(len(tokens)), torch.tensor([0, len(tokens)])))


def same(a, b):
    """Token-identical, and log-probabilities equal up to the rounding of another batch size."""
    np.testing.assert_array_equal(a.token_ids, b.token_ids)
    np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
    np.testing.assert_array_equal(a.version, b.version)
    assert a.stop_reason == b.stop_reason


# --- what it computes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logp_is_that_of_a_full_forward(temperature):
    lm = make_lm()
    sampling = Sampling(temperature=temperature, max_new_tokens=40)
    requests = [Request(f"r{i}", prompt_of(3 + 5 * i, i), 2, seed=i, sampling=sampling) for i in range(4)]
    engine = make_engine(lm, num_slots=3, prefill_tokens=10)
    engine.submit(requests)
    ended = run(engine)
    assert len(ended) == 8
    for request, member in itertools.product(requests, range(2)):
        completion = ended[request.id, member]
        tokens = [*request.token_ids, *completion.token_ids.tolist()]
        logp = (full_forward_logits(lm, tokens[:-1]) / temperature).log_softmax(-1)
        expected = logp[len(request.token_ids) - 1 :].gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert completion.action_mask.all()
        assert np.abs(completion.logp - expected.numpy()).max() < 1e-5


def test_truncated_logp_is_that_of_the_renormalised_rest():
    lm = make_lm()
    sampling = Sampling(top_k=4, max_new_tokens=20)
    [[completion]] = make_engine(lm).generate([(1, 2)], sampling)
    tokens = [1, 2, *completion.token_ids.tolist()]
    logits = full_forward_logits(lm, tokens[:-1])[1:]
    for row, token, logp in zip(logits, completion.token_ids, completion.logp, strict=True):
        best = row.topk(4)
        assert token in best.indices
        assert abs(best.values.log_softmax(0)[best.indices == token] - logp) < 1e-5


def test_greedy_is_the_argmax_of_a_full_forward():
    lm = make_lm()
    [[completion]] = make_engine(lm).generate([prompt_of(9)], Sampling(temperature=0.0, max_new_tokens=25))
    tokens = [*prompt_of(9), *completion.token_ids.tolist()]
    assert full_forward_logits(lm, tokens[:-1])[8:].argmax(-1).tolist() == completion.token_ids.tolist()


def test_a_prompt_longer_than_a_prefill_is_taken_in_pieces():
    lm, prompt, sampling = make_lm(), prompt_of(50), Sampling(max_new_tokens=10)
    [[whole]] = make_engine(lm).generate([prompt], sampling)
    [[pieces]] = make_engine(lm, prefill_tokens=7).generate([prompt], sampling)
    same(whole, pieces)


# --- what it does not depend on ------------------------------------------------------------------------------------


def test_output_does_not_depend_on_company_order_or_slots():
    lm, requests = make_lm(), mixed_requests(8, num_samples=2)
    alone = {}
    for request in requests:
        engine = make_engine(lm, num_slots=1)
        engine.submit([request])
        alone |= run(engine)
    assert {c.stop_reason for c in alone.values()} == {StopReason.STOP, StopReason.LENGTH}
    for num_slots, prefill_tokens, order in (
        (16, 64, requests),
        (5, 20, requests[::-1]),
        (3, 5, requests[3:] + requests[:3]),
    ):
        engine = make_engine(lm, num_slots=num_slots, prefill_tokens=prefill_tokens)
        engine.submit(order)
        ended = run(engine)
        assert ended.keys() == alone.keys()
        for key, completion in ended.items():
            same(completion, alone[key])


def test_requests_that_arrive_later_change_nothing():
    lm, requests = make_lm(), mixed_requests(6)
    together = make_engine(lm)
    together.submit(requests)
    expected = run(together)
    dripping = make_engine(lm)
    ended = {}
    for request in requests:
        dripping.submit([request])
        ended |= {(c.request_id, c.member): c for _ in range(3) for c in dripping.step()}
    ended |= run(dripping)
    assert ended.keys() == expected.keys()
    for key, completion in ended.items():
        same(completion, expected[key])


def test_members_of_a_group_differ_and_so_do_seeds():
    [members] = make_engine(num_slots=8).generate([(1, 2, 3)], Sampling(max_new_tokens=20), num_samples=8)
    [others] = make_engine(num_slots=8).generate([(1, 2, 3)], Sampling(max_new_tokens=20), num_samples=8, seed=1)
    assert [c.member for c in members] == list(range(8))
    assert len({tuple(c.token_ids) for c in members + others}) == 16


def test_each_prompt_is_prefilled_once_for_its_group_however_few_the_slots():
    lm = make_lm()
    prefilled = []
    prefill = lm.prefill
    lm.prefill = lambda tokens_T, *rest: prefilled.append(len(tokens_T)) or prefill(tokens_T, *rest)
    engine = make_engine(lm, num_slots=3)
    engine.submit([Request("a", prompt_of(11), 8, sampling=Sampling(max_new_tokens=6)), Request("b", prompt_of(5), 8)])
    assert len(run(engine)) == 16
    assert sum(prefilled) == 11 + 5


def test_slots_are_refilled_in_the_step_that_frees_them():
    engine = make_engine(num_slots=2)
    engine.submit([Request(f"r{i}", (1,), sampling=Sampling(max_new_tokens=1 + i % 3)) for i in range(7)])
    while engine.num_waiting:
        engine.step()
        assert engine.num_running == 2 or not engine.num_waiting


# --- versions, snapshots, cancelling --------------------------------------------------------------------------------


def test_new_weights_take_over_between_two_steps_and_each_token_records_its_version():
    old, new = make_lm(0), make_lm(1)
    engine = make_engine(old, num_slots=2, version=4)
    engine.submit([Request("a", prompt_of(6), 3, sampling=Sampling(max_new_tokens=10))])
    for _ in range(3):
        engine.step()
    engine.load_weights(((name, weight.clone()) for name, weight in stream_weights(new)), version=5)
    assert engine.version == 5
    ended = run(engine)
    # The step that admits gives the first token, so three steps give three tokens.
    for member in (0, 1):
        assert ended["a", member].version.tolist() == [4] * 3 + [5] * 7
    assert ended["a", 2].version.tolist() == [5] * 10
    # The member that was seated after the change knows nothing of the old weights.
    fresh = make_engine(new, num_slots=2, version=5)
    fresh.submit([Request("a", prompt_of(6), 3, sampling=Sampling(max_new_tokens=10))])
    same(run(fresh)["a", 2], ended["a", 2])


@pytest.mark.parametrize("prefill_tokens", [3, 8, 64], ids=["in-pieces", "some-together", "all-together"])
def test_recomputed_states_are_those_of_the_new_weights(prefill_tokens):
    """What follows is what an engine of the new weights says after the same tokens; kept states say something else."""
    new = make_lm(1)
    weights = [(name, weight.clone()) for name, weight in stream_weights(new)]
    after: dict[str, list] = {}
    for stale_states in ("keep", "recompute"):
        engine = make_engine(make_lm(0), num_slots=3, prefill_tokens=prefill_tokens, stale_states=stale_states)
        engine.submit([Request("a", prompt_of(6), 2, sampling=Sampling(max_new_tokens=12))])
        engine.submit([Request("b", prompt_of(2), 1, sampling=Sampling(max_new_tokens=12))])
        for _ in range(6):
            engine.step()
        engine.load_weights(iter(weights), version=1)
        ended = run(engine)
        for (request, member), completion in ended.items():
            tokens = [*(prompt_of(6) if request == "a" else prompt_of(2)), *completion.token_ids.tolist()]
            expected = logp_of(new, tokens)[-12:]
            difference = np.abs(completion.logp - expected)[completion.version == 1]
            assert len(difference) > 3, (request, member)
            after.setdefault(stale_states, []).append(difference.max())
    assert max(after["recompute"]) < 1e-4
    assert min(after["keep"]) > 1e-3


def test_a_snapshot_of_older_weights_is_recomputed_where_it_is_resumed():
    new = make_lm(1)
    engine = make_engine(make_lm(0), num_slots=2)
    engine.submit([Request("a", prompt_of(6), 1, sampling=Sampling(max_new_tokens=12))])
    for _ in range(4):
        engine.step()
    other = make_engine(new, num_slots=2, version=1, stale_states="recompute")
    other.resume(engine.snapshot("a"))
    completion = run(other)["a", 0]
    expected = logp_of(new, [*prompt_of(6), *completion.token_ids.tolist()])[-12:]
    assert np.abs(completion.logp - expected)[completion.version == 1].max() < 1e-4


def test_weights_of_another_model_are_refused():
    engine = make_engine(version=1)
    with pytest.raises(WeightSyncError, match="unknown"):
        engine.load_weights([("nobody", torch.zeros(3))], version=2)
    assert engine.version == 1


@pytest.mark.parametrize("num_slots", [2, 8], ids=["some-waiting", "all-seated"])
def test_a_snapshot_goes_on_in_another_engine_with_the_same_tokens(num_slots):
    lm = make_lm()
    sampling = Sampling(
        max_new_tokens=30,
        think_open_id=5,
        think_close_id=6,
        thinking_budget=4,
        repetition_tokens=9,
        stop_token_ids=(3,),
    )
    request = Request("a", (*prompt_of(6), 5), 4, seed=9, sampling=sampling)
    engine = make_engine(lm, num_slots=num_slots)
    engine.submit([request])
    early = [c for _ in range(8) for c in engine.step()]
    state = pickle.loads(pickle.dumps(engine.snapshot("a")))
    rest = run(engine)
    assert len(early) + len(rest) == 4
    other = make_engine(lm, num_slots=3)
    other.submit([Request("company", (1, 2), 2)])
    other.step()
    other.resume(state)
    again_state = other.snapshot("a")
    again = {key: c for key, c in run(other).items() if key[0] == "a"}
    assert again.keys() == rest.keys()
    for key, completion in again.items():
        same(completion, rest[key])
    # A snapshot of what was resumed but not yet seated is as good.
    third = make_engine(lm, num_slots=2)
    third.resume(again_state)
    for key, completion in run(third).items():
        same(completion, rest[key])


def test_a_snapshot_of_another_model_fails_alone():
    engine = make_engine()
    engine.submit([Request("a", (1, 2))])
    engine.step()
    state = engine.snapshot("a")
    wide = HybridLM(HybridConfig(vocab_size=VOCAB, hidden_size=32))
    other = HybridEngine(wide, EngineConfig(2, 300, 64))
    other.submit([Request("b", (1, 2))])
    other.resume(state)
    ended = run(other)
    assert "shape" in ended["a", 0].failed
    assert not ended["b", 0].failed


def test_a_cancelled_request_is_forgotten_and_its_slots_are_free():
    engine = make_engine(num_slots=2)
    engine.submit([Request("a", (1, 2), 4), Request("b", (3,), sampling=Sampling(max_new_tokens=4))])
    engine.step()
    engine.cancel(["a", "unknown"])
    assert (engine.num_running, engine.num_waiting) == (0, 1)
    assert run(engine).keys() == {("b", 0)}
    engine.submit([Request("a", (1, 2), sampling=Sampling(max_new_tokens=2))])
    assert len(run(engine)) == 1


# --- generate and stream --------------------------------------------------------------------------------------------


def test_generate_leaves_others_completions_for_step():
    engine = make_engine()
    engine.submit([Request("other", (4,), sampling=Sampling(max_new_tokens=2))])
    result = engine.generate([(1,), (2, 3)], Sampling(max_new_tokens=9), seed=5, num_samples=2)
    assert [[c.member for c in members] for members in result] == [[0, 1], [0, 1]]
    assert [c.request_id for c in engine.step()] == ["other"]
    assert not engine.has_work
    # Prompt i of a call is a request with seed + i.
    engine.submit([Request("same", (2, 3), 2, seed=6, sampling=Sampling(max_new_tokens=9))])
    for key, completion in run(engine).items():
        same(completion, result[1][key[1]])


def test_stream_gives_each_token_when_it_is_there():
    engine = make_engine()
    request = Request("a", (1, 2), seed=3, sampling=Sampling(max_new_tokens=7))
    tokens = engine.stream(request)
    first = next(tokens)
    assert engine.num_running == 1
    streamed = [first, *tokens]
    engine.submit([request])
    assert streamed == run(engine)["a", 0].token_ids.tolist()
    early = engine.stream(request)
    next(early)
    early.close()
    assert not engine.has_work


# --- bad requests and broken logits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Request("x", ()), "at least one token"),
        (Request("x", (1, VOCAB)), r"\[0, 40\), got 1 to 40"),
        (Request("x", (-1,)), "got -1"),
        (Request("x", (1.5,)), "integers"),
        (Request("x", (1,) * 50, sampling=Sampling(max_new_tokens=251)), r"prompt \(50\)"),
        (Request("x", (1,), 0), "num_samples must be at least 1"),
        (Request("x", (1,), sampling=Sampling(temperature=-0.5)), "temperature"),
        (Request("x", (1,), sampling=Sampling(stop_token_ids=(VOCAB,))), "stop and think"),
        (Request("good", (1,), sampling=Sampling(max_new_tokens=3)), "must differ"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_is_refused_and_the_others_are_served(bad, reason):
    engine = make_engine()
    good = Request("good", (1, 2), sampling=Sampling(max_new_tokens=3))
    engine.submit([good])
    also = Request("also", (1, 2), sampling=Sampling(max_new_tokens=3))
    with pytest.raises(InvalidRequest, match=reason) as error:
        engine.submit([also, bad])
    assert pickle.loads(pickle.dumps(error.value)).args == error.value.args
    assert run(engine).keys() == {("good", 0)}


def test_the_longest_request_fits_exactly():
    [[completion]] = make_engine(max_length=12).generate([(1,) * 5], Sampling(max_new_tokens=7))
    assert len(completion.token_ids) == 7


def test_faulty_sizes_are_named_together():
    with pytest.raises(ConfigError) as error:
        EngineConfig(num_slots=0, prefill_tokens=-1)
    assert len(error.value.faults) == 2


def test_broken_logits_fail_their_request_and_nobody_else_now_or_later():
    """Token 7 has a NaN embedding: a prompt that holds it is broken from the start, a sequence once it draws it."""
    lm, requests = make_lm(), mixed_requests(8, num_samples=2)
    requests = [Request(r.id, tuple(t if t != 7 else 8 for t in r.token_ids), 2, r.seed, r.sampling) for r in requests]
    healthy = make_engine(lm)
    healthy.submit(requests)
    expected = run(healthy)
    broken = make_lm()
    with torch.no_grad():
        broken.model.embed_tokens.weight[7] = float("nan")
    engine = make_engine(broken)
    poison = Request("poison", (1, 7, 2), 3)
    engine.submit([requests[0], poison, *requests[1:]])
    ended = run(engine)
    assert all("not finite" in ended["poison", member].failed for member in range(3))
    num_spread = 0
    for key, completion in expected.items():
        where = np.flatnonzero(completion.token_ids[:-1] == 7)
        if where.size:
            num_spread += 1
            assert ended[key].failed
            np.testing.assert_array_equal(ended[key].token_ids, completion.token_ids[: where[0] + 1])
        else:
            assert not ended[key].failed
            same(ended[key], completion)
    assert 0 < num_spread < len(expected)


# --- the rules, on logits written by hand ---------------------------------------------------------------------------


class Script:
    """A policy whose next token is a fixed function of the last one, with probability `certainty`."""

    def __init__(self, follower, certainty=0.999):
        self.config = HybridConfig(vocab_size=16)
        self.follower, self.certainty = follower, certainty

    def prefill(self, tokens_T, cu_seqlens, slots_N, cache):
        cache.length_S[slots_N] += cu_seqlens.diff()
        return tokens_T[cu_seqlens[1:] - 1]

    def decode(self, tokens_N, slots_N, cache):
        cache.length_S[slots_N] += 1
        return tokens_N

    def logits(self, hidden_N):
        p = torch.full((len(hidden_N), 16), (1 - self.certainty) / 15)
        p[torch.arange(len(hidden_N)), torch.tensor([self.follower[int(t)] for t in hidden_N])] = self.certainty
        return p.log()


def play(follower, sampling, prompt=(0,), certainty=0.999):
    lm = Script(follower, certainty)
    engine = HybridEngine(lm, EngineConfig(2, 300, 64), cache=HybridCache(lm.config, 2, 300))
    [[completion]] = engine.generate([prompt], sampling)
    return completion


CYCLE = [(i + 1) % 16 for i in range(16)]


def test_a_stop_token_ends_and_is_kept():
    completion = play(CYCLE, Sampling(temperature=0, stop_token_ids=(9, 4)))
    assert completion.token_ids.tolist() == [1, 2, 3, 4]
    assert completion.stop_reason is StopReason.STOP
    np.testing.assert_allclose(completion.logp, np.log(0.999), atol=1e-6)


def test_confident_loops_are_stopped_and_unsure_ones_are_not():
    sampling = Sampling(temperature=0, max_new_tokens=20, repetition_tokens=6)
    stopped = play(CYCLE, sampling)
    assert (len(stopped.token_ids), stopped.stop_reason) == (6, StopReason.REPETITION)
    unsure = play(CYCLE, sampling, certainty=0.98)
    assert (len(unsure.token_ids), unsure.stop_reason) == (20, StopReason.LENGTH)


def test_a_spent_thinking_budget_forces_the_close_and_records_it_as_no_action():
    follower = [3] * 16
    follower[2] = 5  # after the close comes the answer, and the end
    follower[5] = 6
    sampling = Sampling(temperature=0, think_open_id=1, think_close_id=2, thinking_budget=3, stop_token_ids=(6,))
    completion = play(follower, sampling, prompt=(0, 1))
    assert completion.token_ids.tolist() == [3, 3, 3, 2, 5, 6]
    assert completion.action_mask.tolist() == [True, True, True, False, True, True]
    assert completion.version.tolist() == [0, 0, 0, -1, 0, 0]
    assert completion.logp[3] == 0
    assert completion.stop_reason is StopReason.STOP
