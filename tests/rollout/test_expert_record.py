"""The engine's record of experts: it is what the learner's routers choose, however a sequence came to its tokens."""

import numpy as np
import pytest
import torch

from cispo.protocols import ModelState
from cispo.types import Prompt
from model import HybridLM, Routing
from model.replay import Replay
from rollout.engine import Request
from rollout.episode import single_turn
from rollout.sampling import Sampling
from tests.rollout.test_engine import make_engine, make_lm, prompt_of, run

NOTHING = 255


def changed(lm: HybridLM, prompt, completion):
    """(token, layer) pairs for which the learner would choose otherwise, and all recorded."""
    ids_T = torch.tensor([*prompt, *completion.token_ids])
    assert completion.experts_TLk.dtype == np.uint8 and completion.experts_TLk.shape == (len(ids_T), 3, 2)
    routing = Routing(Replay(torch.from_numpy(completion.experts_TLk)))
    lm(ids_T, torch.arange(len(ids_T)), torch.tensor([0, len(ids_T)]), routing)
    return routing.replay.counts


def test_the_record_is_what_the_learner_chooses_for_every_member_of_a_group():
    """More members than slots, so that a prompt's state is kept aside; a long prompt is read in pieces."""
    lm = make_lm()
    engine = make_engine(lm, num_slots=3, prefill_tokens=16, records_experts=True)
    prompts = {"short": prompt_of(5), "long": prompt_of(40, seed=1)}
    sampling = Sampling(max_new_tokens=9)
    engine.submit([Request(name, ids, 5, seed=4, sampling=sampling) for name, ids in prompts.items()])
    for (name, _), completion in run(engine).items():
        prompt, num_new = prompts[name], len(completion.token_ids)
        num_read = len(prompt) + num_new - 1  # nobody has seen the last token
        at_ends = 1 if name == "short" else 3  # the last layer works on the end of each piece
        assert changed(lm, prompt, completion) == (0, 2 * num_read + num_new - 1 + at_ends)
        assert (completion.experts_TLk[-1] == NOTHING).all()


def test_a_record_goes_along_with_a_request_to_another_engine():
    whole = run_of(make_engine(records_experts=True))
    engine = make_engine(records_experts=True)
    engine.submit([request()])
    for _ in range(4):
        engine.step()
    state = engine.snapshot("r")
    arrays = {name: array.copy() for name, array in state.arrays.items()}
    other = make_engine(num_slots=2, records_experts=True)
    other.resume(ModelState(arrays, state.meta))
    for member, completion in run_of(other, submit=False).items():
        np.testing.assert_array_equal(completion.token_ids, whole[member].token_ids)
        np.testing.assert_array_equal(completion.experts_TLk, whole[member].experts_TLk)


def test_a_state_without_a_record_is_refused_where_one_is_kept():
    engine = make_engine()
    engine.submit([request()])
    engine.step()
    other = make_engine(records_experts=True)
    other.resume(engine.snapshot("r"))
    assert all("experts" in completion.failed for completion in run(other).values())


def test_to_record_changes_nothing_that_is_sampled():
    for member, completion in run_of(make_engine(records_experts=True)).items():
        plain = run_of(make_engine())[member]
        assert plain.experts_TLk is None
        np.testing.assert_array_equal(plain.token_ids, completion.token_ids)
        np.testing.assert_array_equal(plain.logp, completion.logp)


@pytest.mark.parametrize("records", [False, True])
def test_the_record_reaches_the_trajectory(records):
    completion = run_of(make_engine(records_experts=records))[1]
    trajectory = single_turn(Prompt("p", "chain", "", request().token_ids, ""), completion)
    assert trajectory.experts_TLk is completion.experts_TLk
    assert (trajectory.experts_TLk is not None) == records
    if records:
        assert len(trajectory.experts_TLk) == len(trajectory.token_ids_T)


def request():
    return Request("r", prompt_of(6), 4, seed=2, sampling=Sampling(max_new_tokens=11))


def run_of(engine, submit=True):
    if submit:
        engine.submit([request()])
    return {member: completion for (_, member), completion in run(engine).items()}
