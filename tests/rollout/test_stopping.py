"""The stop rules on sequences written by hand: each test says token by token what must happen."""

import math

import torch

from rollout.sampling import Sampling
from rollout.stopping import FAILED, LENGTH, REPETITION, RUNNING, STOP, RuleState, StopRules, initial_state

OPEN, CLOSE, END, WORD = 1, 2, 3, 7


def play(sampling, tokens, probabilities=None, state=None, slot=2):
    """Feed one sequence's drawn tokens; returns (token, forced, verdict) of each step up to the end."""
    rules = StopRules(4, "cpu")
    slots = torch.tensor([slot])
    rules.assign(slots, [sampling], [state or RuleState()])
    steps = []
    for token, probability in zip(tokens, probabilities or [0.5] * len(tokens), strict=True):
        ruling = rules.apply(slots, torch.tensor([token]), torch.tensor([probability]).log())
        steps.append((int(ruling.token_N), bool(ruling.forced_N), int(ruling.verdict_N)))
        if steps[-1][2] != RUNNING:
            break
    return steps


def verdicts(steps):
    return [verdict for _, _, verdict in steps]


def test_any_stop_token_ends_the_sequence_and_beats_the_length_limit():
    sampling = Sampling(stop_token_ids=(END, 5), max_new_tokens=2)
    assert verdicts(play(sampling, [WORD, END])) == [RUNNING, STOP]
    assert verdicts(play(sampling, [5])) == [STOP]
    assert verdicts(play(sampling, [WORD, WORD])) == [RUNNING, LENGTH]


def test_length_limit_counts_new_tokens():
    assert verdicts(play(Sampling(max_new_tokens=3), [WORD] * 5)) == [RUNNING, RUNNING, LENGTH]


def test_repetition_needs_an_unbroken_run_above_the_probability():
    sampling = Sampling(repetition_tokens=3, repetition_probability=0.9)
    p = [0.95, 0.95, 0.9, 0.95, 0.95, 0.95, 0.95]
    assert verdicts(play(sampling, [WORD] * 7, p)) == [RUNNING] * 5 + [REPETITION]


def test_repetition_is_off_unless_asked_for():
    assert verdicts(play(Sampling(), [WORD] * 9, [1.0] * 9)) == [RUNNING] * 9


def test_the_closing_token_is_forced_when_the_budget_is_spent():
    sampling = Sampling(think_open_id=OPEN, think_close_id=CLOSE, thinking_budget=2, stop_token_ids=(END,))
    steps = play(sampling, [OPEN, WORD, WORD, WORD, WORD, END])
    assert [token for token, _, _ in steps] == [OPEN, WORD, WORD, CLOSE, WORD, END]
    assert [forced for _, forced, _ in steps] == [False, False, False, True, False, False]
    assert verdicts(steps)[-1] == STOP


def test_a_block_closed_in_time_is_left_alone_and_its_tokens_count_towards_the_next():
    sampling = Sampling(think_open_id=OPEN, think_close_id=CLOSE, thinking_budget=3)
    steps = play(sampling, [OPEN, WORD, WORD, CLOSE, OPEN, WORD, WORD, WORD])
    assert [token for token, _, _ in steps] == [OPEN, WORD, WORD, CLOSE, OPEN, WORD, CLOSE, WORD]
    assert [forced for _, forced, _ in steps] == [False] * 6 + [True, False]


def test_a_prompt_may_leave_the_block_open():
    sampling = Sampling(think_open_id=OPEN, think_close_id=CLOSE, thinking_budget=1)
    assert initial_state((WORD, OPEN, WORD), sampling).is_thinking
    assert not initial_state((OPEN, WORD, CLOSE, WORD), sampling).is_thinking
    assert not initial_state((OPEN,), Sampling()).is_thinking
    steps = play(sampling, [WORD, WORD, WORD], state=initial_state((OPEN,), sampling))
    assert [token for token, _, _ in steps] == [WORD, CLOSE, WORD]


def test_a_forced_token_has_no_log_probability_and_breaks_a_confident_run():
    rules = StopRules(1, "cpu")
    slot = torch.tensor([0])
    sampling = Sampling(think_open_id=OPEN, think_close_id=CLOSE, thinking_budget=1, repetition_tokens=2)
    rules.assign(slot, [sampling], [RuleState(num_new=5, confident_run=1, num_thought=1, is_thinking=True)])
    ruling = rules.apply(slot, torch.tensor([WORD]), torch.tensor([0.0]))
    assert ruling.logp_N.tolist() == [0.0]
    assert ruling.verdict_N.tolist() == [RUNNING]
    assert rules.state(0) == RuleState(num_new=6, confident_run=0, num_thought=1, is_thinking=False)


def test_a_nan_log_probability_fails_its_slot_only():
    rules = StopRules(3, "cpu")
    slots = torch.tensor([2, 0])
    rules.assign(slots, [Sampling(stop_token_ids=(WORD,))] * 2, [RuleState()] * 2)
    ruling = rules.apply(slots, torch.tensor([WORD, 4]), torch.tensor([math.nan, -1.0]))
    assert ruling.verdict_N.tolist() == [FAILED, RUNNING]


def test_slots_with_different_rules_are_judged_each_by_its_own():
    rules = StopRules(5, "cpu")
    rules.assign(torch.tensor([0]), [Sampling(stop_token_ids=(END,))], [RuleState()])
    rules.assign(
        torch.tensor([4, 1]),
        [Sampling(max_new_tokens=1), Sampling(stop_token_ids=(4, 5, 6), repetition_tokens=1)],
        [RuleState(), RuleState()],
    )
    ruling = rules.apply(torch.tensor([0, 1, 4]), torch.tensor([END, WORD, END]), torch.tensor([0.999] * 3).log())
    assert ruling.verdict_N.tolist() == [STOP, REPETITION, LENGTH]
    assert rules.num_new_S.tolist() == [1, 1, 0, 0, 1]


def test_a_reused_slot_remembers_nothing():
    rules = StopRules(1, "cpu")
    slot = torch.tensor([0])
    sampling = Sampling(repetition_tokens=2, stop_token_ids=(END,))
    rules.assign(slot, [sampling], [RuleState()])
    rules.apply(slot, torch.tensor([WORD]), torch.tensor([0.0]))
    rules.assign(slot, [Sampling(repetition_tokens=2)], [RuleState()])
    assert rules.apply(slot, torch.tensor([END]), torch.tensor([0.0])).verdict_N.tolist() == [RUNNING]
