"""Records of trajectories: aligned streams, nulls for what is not known, whole characters, whole groups."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispo.advantage import assign_credit
from cispo.records import rollout_record, rollout_records, token_strings
from cispo.types import Group, Prompt, Score, StopReason, Trajectory, Verdict


def decode_letters(ids):
    return "".join(chr(ord("a") + i) for i in ids)


def decode_bytes(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def trajectory(action_mask=(0, 0, 1, 1, 1), logp=(0, 0, -0.5, -0.25, -1.0)):
    length = len(action_mask)
    mask = np.array(action_mask, dtype=bool)
    return Trajectory(
        np.arange(length, dtype=np.int64), mask, np.array(logp, np.float32), np.where(mask, 7, -1), StopReason.STOP
    )


def group(index=0, rewards=(1.0, 0.0), members=None):
    scores = tuple(
        Score(r, r > 0.5, {"answer": r}, Verdict.SYSTEM_ERROR if np.isnan(r) else Verdict.CORRECT, "a note")
        for r in rewards
    )
    members = members or tuple(trajectory() for _ in rewards)
    return Group(index, Prompt(f"p/{index}", "chain", "ab", (0, 1), "9"), members, scores)


def test_record_has_every_documented_field():
    record = rollout_record(
        group(index=4), 0, decode_letters, advantage=1.5, ratio_T=np.array([9, 9, 1.0, 2.0, 3.0], np.float32)
    )
    assert record == {
        "group": 4,
        "member": 0,
        "prompt_id": "p/4",
        "task": "chain",
        "prompt": "ab",
        "text": "cde",
        "tokens": ["c", "d", "e"],
        "logp": [-0.5, -0.25, -1.0],
        "ratio": [1.0, 2.0, 3.0],
        "mean_ratio": 2.0,
        "reward": 1.0,
        "parts": {"answer": 1.0},
        "verdict": "correct",
        "note": "a note",
        "correct": True,
        "advantage": 1.5,
        "version": 7,
        "stop_reason": "stop",
        "num_tokens": 3,
    }


def test_observation_and_nonfinite_numbers_are_null():
    member = trajectory(action_mask=(0, 0, 1, 0, 1), logp=(0, 0, -0.5, 0, -np.inf))
    record = rollout_record(group(rewards=(np.nan,), members=(member,)), 0, decode_letters, advantage=np.nan)
    assert record["logp"] == [-0.5, None, None]
    assert (record["reward"], record["advantage"], record["ratio"], record["mean_ratio"]) == (None,) * 4
    assert record["num_tokens"] == 2
    json.dumps(record, allow_nan=False)


def test_advantages_are_those_of_the_samples_and_unusable_members_have_none():
    groups = [group(0, (1.0, np.nan, 0.0)), group(1, (0.0, 1.0))]
    samples = assign_credit(groups)
    ratios = [np.full(5, 1.0 + i, np.float32) for i in range(len(samples))]
    records = rollout_records(groups, samples, decode_letters, ratios=ratios)
    assert [record["advantage"] for record in records] == [1.0, None, -1.0, -1.0, 1.0]
    assert [record["mean_ratio"] for record in records] == [1.0, None, 2.0, 3.0, 4.0]


def test_samples_of_other_groups_are_refused():
    with pytest.raises(ValueError, match="zip"):
        rollout_records([group(0)], assign_credit([group(0), group(1)]), decode_letters)


@pytest.mark.parametrize(
    "limit, chosen", [(0, [0, 0, 1, 1, 2, 2]), (4, [0, 0, 2, 2]), (3, [0, 0, 2]), (99, [0, 0, 1, 1, 2, 2])]
)
def test_limit_keeps_groups_whole_and_spread(limit, chosen):
    groups = [group(i) for i in range(3)]
    records = rollout_records(groups, assign_credit(groups), decode_letters, limit=limit)
    assert [record["group"] for record in records] == chosen


def test_no_groups_give_no_records():
    assert rollout_records([], [], decode_letters, limit=5) == []


@given(st.text())
def test_token_strings_join_to_the_text_whatever_the_bytes(text):
    ids = list(text.encode("utf-8", errors="replace"))
    strings = token_strings(ids, decode_bytes)
    assert len(strings) == len(ids)
    assert "".join(strings) == decode_bytes(ids)


@given(st.lists(st.integers(0, 255)))
def test_token_strings_stay_aligned_for_broken_bytes(ids):
    assert len(token_strings(ids, decode_bytes)) == len(ids)
