"""A request that goes on from the state after the turn before: the same numbers as one that reads everything again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cispo.errors import InvalidRequest
from cispo.types import StopReason
from model import HybridConfig, HybridLM
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling

VOCAB, STOP = 40, 7
PIECE = 16


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_lm(seed=0, layers=(0, 1, 0)):
    torch.manual_seed(seed)
    return HybridLM(
        HybridConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=len(layers),
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            rotary_dim=8,
            intermediate_size=24,
            num_local_experts=4,
            attn_type_list=layers,
            initializer_range=0.15,
        )
    )


def make_engine(lm=None, num_slots=8):
    return HybridEngine(lm or make_lm(), EngineConfig(num_slots, 200, PIECE))


def ids_of(length, seed):
    drawn = np.random.default_rng(seed).integers(0, VOCAB, length)
    return np.where(drawn == STOP, STOP + 1, drawn)


def run(engine, *requests):
    engine.submit(requests)
    ended = {}
    while engine.has_work:
        for completion in engine.step():
            ended[completion.request_id, completion.member] = completion
    return ended


def first_turns(engine, num=6):
    """The first turns of a group, of members that wrote the stop token."""
    sampling = Sampling(max_new_tokens=120, stop_token_ids=(STOP,))
    ended = run(engine, Request("first", ids_of(11, 0), num, 3, sampling, keep_state_after=(STOP,)))
    stopped = [completion for completion in ended.values() if completion.stop_reason is StopReason.STOP]
    assert len(stopped) >= 3, "too few members stopped by themselves to test anything"
    return stopped


def second_turn(first, num_observed=5, *, state=True, num_new=9, **fields):
    tokens = np.concatenate([ids_of(11, 0), first.token_ids, ids_of(num_observed, 100 + first.member)])
    kept = first.state if state else None
    return Request(
        f"second/{first.member}", tokens, 1, 50 + first.member, Sampling(max_new_tokens=num_new), state=kept, **fields
    )


def full_forward_logp(lm, tokens, num_last):
    """Log-probabilities of the last tokens by one packed pass over the whole sequence: the learner's side."""
    tokens_T = torch.from_numpy(np.asarray(tokens))
    with torch.no_grad():
        hidden = lm(tokens_T, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
        logp = torch.log_softmax(lm.logits(hidden).double(), dim=1)
    return logp[:-1].gather(1, tokens_T[1:, None])[-num_last:, 0].numpy()


@pytest.mark.parametrize("layers", [(0, 1, 0), (0, 0), (1, 1)], ids=["hybrid", "lightning", "softmax"])
@pytest.mark.parametrize("num_observed", [1, 5, 45], ids=["short", "some", "in pieces"])
def test_a_continued_turn_has_the_log_probabilities_of_the_whole_sequence(layers, num_observed):
    lm = make_lm(layers=layers)
    engine = make_engine(lm)
    firsts = first_turns(engine)
    requests = {first.member: second_turn(first, num_observed) for first in firsts}
    ended = run(engine, *requests.values())
    for first in firsts:
        completion = ended[f"second/{first.member}", 0]
        tokens = np.concatenate([requests[first.member].token_ids, completion.token_ids])
        logp = full_forward_logp(lm, tokens, len(completion.token_ids))
        assert np.abs(completion.logp - logp).max() < 1e-5


def test_a_state_saves_the_reading_and_changes_nothing():
    engine = make_engine()
    firsts = first_turns(engine)
    continued = run(engine, *(second_turn(first) for first in firsts))
    read_again = run(engine, *(second_turn(first, state=False) for first in firsts))
    assert continued.keys() == read_again.keys()
    for key, completion in continued.items():
        assert completion.token_ids.tolist() == read_again[key].token_ids.tolist()
        assert np.abs(completion.logp - read_again[key].logp).max() < 1e-5


def test_what_the_state_holds_is_not_read_again():
    engine = make_engine()
    first = first_turns(engine)[0]
    honest = second_turn(first)
    spoilt_ids = honest.token_ids.copy()
    num_held = int(first.state["length"])
    spoilt_ids[:num_held] = (spoilt_ids[:num_held] + 1) % VOCAB
    spoilt = Request("spoilt", spoilt_ids, 1, honest.seed, honest.sampling, state=first.state)
    ended = run(engine, honest, spoilt)
    assert num_held == 11 + len(first.token_ids) - 1, "all but the token that was drawn last"
    assert ended["spoilt", 0].token_ids.tolist() == ended[honest.id, 0].token_ids.tolist()


def test_neighbours_change_no_token():
    engine = make_engine()
    firsts = first_turns(engine)
    together = run(
        engine,
        *(second_turn(first) for first in firsts),
        Request("new", ids_of(9, 5), 2, 1, Sampling(max_new_tokens=4)),
    )
    for first in firsts:
        alone = run(engine, second_turn(first))[f"second/{first.member}", 0]
        assert together[alone.request_id, 0].token_ids.tolist() == alone.token_ids.tolist()


def test_states_are_kept_only_after_the_tokens_asked_for():
    engine = make_engine()
    sampling = Sampling(max_new_tokens=120, stop_token_ids=(STOP, STOP + 1))
    ended = run(engine, Request("a", ids_of(11, 0), 8, 3, sampling, keep_state_after=(STOP,)))
    last = {completion.token_ids[-1]: completion.state is not None for completion in ended.values()}
    assert last[STOP] and not last[STOP + 1]


def test_a_state_of_no_length_or_of_the_whole_prompt_is_refused():
    engine = make_engine()
    first = first_turns(engine)[0]
    held = int(first.state["length"])
    with pytest.raises(InvalidRequest, match="a state must be that after a part"):
        engine.submit([Request("a", ids_of(held, 0), state=first.state)])


def test_the_state_of_another_model_fails_the_request_and_nobody_else():
    first = first_turns(make_engine())[0]
    engine = make_engine(make_lm(layers=(0, 0)))
    ended = run(engine, second_turn(first), Request("new", ids_of(9, 5), 2, 1, Sampling(max_new_tokens=4)))
    assert "snapshot" in ended[f"second/{first.member}", 0].failed
    assert [len(ended["new", member].token_ids) for member in (0, 1)] == [4, 4]
    assert engine.num_running == 0


def test_a_continuation_that_waits_or_is_half_read_survives_a_snapshot():
    lm = make_lm()
    engine = make_engine(lm)
    first = first_turns(engine)[0]
    request = second_turn(first, 45, keep_state_after=(STOP,))
    wanted = run(engine, request)[request.id, 0]
    for num_steps in (0, 1, 2):
        engine.submit([request])
        for _ in range(num_steps):
            engine.step()
        state = engine.snapshot(request.id)
        engine.cancel([request.id])
        elsewhere = make_engine(lm)
        elsewhere.resume(state)
        ended = []
        while elsewhere.has_work:
            ended += elsewhere.step()
        assert ended[0].token_ids.tolist() == wanted.token_ids.tolist()
        assert np.abs(ended[0].logp - wanted.logp).max() < 1e-5


def test_a_broken_neighbour_does_not_break_a_continuation():
    """NaN in one state must fail that request alone, whatever rows it shares matrix products with."""
    engine = make_engine()
    firsts = first_turns(engine)
    wanted = {first.member: run(engine, second_turn(first))[f"second/{first.member}", 0] for first in firsts}
    broken = {
        name: torch.full_like(t, torch.nan) if t.is_floating_point() else t for name, t in firsts[0].state.items()
    }
    sick = Request("sick", second_turn(firsts[0]).token_ids, 1, 1, Sampling(max_new_tokens=4), state=broken)
    ended = run(engine, sick, *(second_turn(first) for first in firsts[1:]))
    assert "not finite" in ended["sick", 0].failed
    for first in firsts[1:]:
        assert ended[f"second/{first.member}", 0].token_ids.tolist() == wanted[first.member].token_ids.tolist()
