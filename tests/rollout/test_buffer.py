"""Intake: what is kept, what is dropped and why, and when to stop drawing."""

import numpy as np
import pytest

from cispo.types import Group, Prompt, Score, StopReason, Trajectory, Verdict
from rollout.buffer import Intake


def group(index, rewards=(0.0, 1.0), version=0):
    """One group with a two-token trajectory for each reward; None is a system error."""
    trajectory = Trajectory(
        token_ids_T=np.array([5, 6]),
        action_mask_T=np.array([False, True]),
        behaviour_logp_T=np.array([0.0, -1.0], dtype=np.float32),
        version_T=np.array([-1, version]),
        stop_reason=StopReason.STOP,
    )
    scores = tuple(
        Score(float("nan"), False, {}, Verdict.SYSTEM_ERROR) if r is None else Score(r, r > 0, {}, Verdict.WRONG)
        for r in rewards
    )
    prompt = Prompt(f"p{index}", "chain", "x", (5,), "y")
    return Group(index, prompt, (trajectory,) * len(rewards), scores)


def differs(group):
    return len(set(group.rewards_G.tolist())) > 1


def intake(num_groups, draw_limit=4.0, oldest_version=0):
    return Intake(num_groups, oldest_version=oldest_version, keep=differs, draw_limit=draw_limit)


def test_every_drawn_group_is_kept_or_counted_by_its_reason():
    step = intake(4, oldest_version=3)
    step.add([group(0, version=3), group(1, (1.0, 1.0), version=3), group(2, version=2), group(3, (None, 1.0))], 2)
    harvest = step.harvest()
    assert [g.index for g in harvest.groups] == [0]
    assert harvest.dropped == {"flat": 1, "stale": 1, "failed": 3}
    assert harvest.drawn == 6 == len(harvest.groups) + sum(harvest.dropped.values())
    assert [g.index for g in harvest.seen] == [0, 1, 2, 3]


def test_one_masked_member_does_not_cost_the_group():
    step = intake(1)
    step.add([group(0, (None, 0.0, 1.0))], 0)
    # `differs` would call NaN a difference, so the intake must still hold two usable scores.
    assert [g.index for g in step.harvest().groups] == [0]


def test_a_group_with_one_usable_score_failed_because_it_has_nobody_to_compare_with():
    step = intake(1)
    step.add([group(0, (None, None, 1.0))], 0)
    assert step.harvest().dropped == {"failed": 1}


def test_groups_come_in_the_order_of_their_draw_whoever_was_faster():
    step = intake(3)
    step.add([group(2), group(0)], 0)
    step.add([group(1)], 0)
    assert [g.index for g in step.harvest().groups] == [0, 1, 2]
    assert [g.index for g in step.harvest().seen] == [0, 1, 2]


@pytest.mark.parametrize(
    ("draw_limit", "flat", "missing"),
    [
        (4.0, 0, 3),  # three wanted
        (4.0, 5, 3),  # five wasted of twelve allowed
        (4.0, 10, 2),  # two left of twelve
        (4.0, 12, 0),
        (1.0, 2, 1),
        (1.5, 3, 1),  # floor(4.5) = 4 allowed
        (1.0, 3, 0),
    ],
)
def test_missing_is_what_is_wanted_within_the_draw_limit(draw_limit, flat, missing):
    step = intake(3, draw_limit)
    step.add([group(i, (0.0, 0.0)) for i in range(flat)], 0)
    assert step.missing == missing


def test_failed_draws_count_against_the_limit_too():
    step = intake(2, draw_limit=2.0)
    step.add([], 3)
    assert (step.num_drawn, step.missing) == (3, 1)
