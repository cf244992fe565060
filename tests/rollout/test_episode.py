"""One completion -> one trajectory: streams aligned with their tokens, forced tokens without gradient."""

import numpy as np

from cispo.types import Prompt, StopReason
from rollout.engine import Completion
from rollout.episode import response_text_ids, single_turn

PROMPT = Prompt("p0", "chain", "1+2=", (7, 8, 9), "3")


def completion(**changes):
    fields = {
        "request_id": "0",
        "member": 0,
        "token_ids": np.array([20, 21, 22]),
        "logp": np.array([-0.5, np.nan, -2.0], dtype=np.float32),
        "action_mask": np.array([True, False, True]),
        "version": np.array([4, 4, 5]),
        "stop_reason": StopReason.STOP,
    }
    return Completion(**(fields | changes))


def test_prompt_and_forced_tokens_are_no_actions_and_carry_nothing():
    trajectory = single_turn(PROMPT, completion())
    assert trajectory.token_ids_T.tolist() == [7, 8, 9, 20, 21, 22]
    assert trajectory.action_mask_T.tolist() == [False, False, False, True, False, True]
    assert trajectory.behaviour_logp_T.tolist() == [0, 0, 0, -0.5, 0, -2]
    assert trajectory.version_T.tolist() == [-1, -1, -1, 4, -1, 5]
    assert trajectory.stop_reason is StopReason.STOP
    assert (trajectory.num_actions, trajectory.oldest_version) == (2, 4)


def test_dtypes_are_those_of_the_data_path():
    trajectory = single_turn(PROMPT, completion())
    assert trajectory.token_ids_T.dtype == trajectory.version_T.dtype == np.int64
    assert trajectory.action_mask_T.dtype == np.bool_
    assert trajectory.behaviour_logp_T.dtype == np.float32


def test_the_verifier_reads_everything_after_the_prompt():
    trajectory = single_turn(PROMPT, completion())
    assert response_text_ids(trajectory, PROMPT) == [20, 21, 22]


def test_an_empty_completion_is_a_trajectory_without_actions():
    nothing = {name: np.zeros(0) for name in ("token_ids", "logp", "action_mask", "version")}
    trajectory = single_turn(PROMPT, completion(**nothing, stop_reason=StopReason.LENGTH))
    assert trajectory.token_ids_T.tolist() == [7, 8, 9]
    assert (trajectory.num_actions, trajectory.oldest_version) == (0, -1)
    assert response_text_ids(trajectory, PROMPT) == []
