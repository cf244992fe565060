"""Records of trajectories: aligned streams, nulls for what is not known, whole characters, whole groups."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispo.advantage import assign_credit
from cispo.packing import pack
from cispo.records import learnt_streams, rollout_record, rollout_records, token_strings, version_spans
from cispo.types import Group, ObservationSpan, Prompt, Score, StopReason, Trajectory, UpdateResult, Verdict


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
        "ids": [2, 3, 4],
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
        "versions": [[0, 7]],
        "stop_reason": "stop",
        "num_tokens": 3,
        "observations": [],
    }


def test_documentation_names_every_field():
    described = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().split("## A line of rollouts")[1]
    assert set(rollout_record(group(), 0, decode_letters)) <= set(re.findall(r"`(\w+)`", described))


def test_an_observation_has_its_place_among_the_tokens_of_the_response():
    spans = (ObservationSpan(3, 4, "python", "OK"), ObservationSpan(5, 5, "shell", "TLE", True, "too slow"))
    member = dataclasses.replace(trajectory(action_mask=(0, 0, 1, 0, 1)), observations=spans)
    record = rollout_record(group(rewards=(1.0,), members=(member,)), 0, decode_letters)
    assert record["observations"] == [
        {"start": 1, "stop": 2, "tool": "python", "verdict": "OK", "is_error": False, "note": ""},
        {"start": 3, "stop": 3, "tool": "shell", "verdict": "TLE", "is_error": True, "note": "too slow"},
    ]
    assert record["tokens"][1:2] == ["d"] and record["logp"][1] is None


def test_versions_are_spans_of_what_was_sampled():
    assert version_spans(np.array([3, 3, -1, 3, 4, -1, -1, 5])) == [[0, 3], [4, 4], [7, 5]]
    assert version_spans(np.array([-1, 2])) == [[1, 2]]
    assert version_spans(np.array([-1, -1])) == version_spans(np.array([], dtype=np.int64)) == []


def test_observation_and_nonfinite_numbers_are_null():
    member = trajectory(action_mask=(0, 0, 1, 0, 1), logp=(0, 0, -0.5, 0, -np.inf))
    record = rollout_record(group(rewards=(np.nan,), members=(member,)), 0, decode_letters, advantage=np.nan)
    assert record["logp"] == [-0.5, None, None]
    assert (record["reward"], record["advantage"], record["ratio"], record["mean_ratio"]) == (None,) * 4
    assert record["num_tokens"] == 2
    json.dumps(record, allow_nan=False)


def test_learnt_streams_come_back_to_their_trajectories_from_packed_rows():
    groups = [group(0, (1.0, np.nan, 0.0)), group(1, (0.0, 1.0))]
    batches = pack(assign_credit(groups), num_batches=1, aggregation="prompt", max_row_tokens=10, version=7)
    # As a learner would report it: twice as likely as under the behaviour policy, and nothing outside the mask.
    logp_rows = tuple(
        np.where(row.mask_T, row.behaviour_logp_T + np.log(2), np.nan).astype(np.float32) for row in batches[0].rows
    )
    assert len(logp_rows) > 1
    update = UpdateResult(loss=0.0, grad_norm=0.0, lr=0.0, kl=0.0, logp_rows=logp_rows)
    records = rollout_records(groups, learnt_streams(batches, [update]), decode_letters)
    assert [record["advantage"] for record in records] == [1.0, None, -1.0, -1.0, 1.0]
    assert [record["ratio"] for record in records] == [[2.0] * 3, None, *[[2.0] * 3] * 3]


def test_batches_that_kl_stop_left_out_have_no_stream():
    groups = [group(0), group(1)]
    batches = pack(assign_credit(groups), num_batches=2, aggregation="prompt", max_row_tokens=64, version=7)
    rows = tuple(row.behaviour_logp_T for row in batches[0].rows)
    update = UpdateResult(loss=0.0, grad_norm=0.0, lr=0.0, kl=0.0, logp_rows=rows)
    learnt = learnt_streams(batches, [update])
    assert set(learnt) == {member for row in batches[0].rows for member in row.members}


@pytest.mark.parametrize(
    "limit, chosen", [(0, [0, 0, 1, 1, 2, 2]), (4, [0, 0, 2, 2]), (3, [0, 0, 2]), (99, [0, 0, 1, 1, 2, 2])]
)
def test_limit_keeps_groups_whole_and_spread(limit, chosen):
    records = rollout_records([group(i) for i in range(3)], {}, decode_letters, limit=limit)
    assert [record["group"] for record in records] == chosen


def test_no_groups_give_no_records():
    assert rollout_records([], {}, decode_letters, limit=5) == []


@given(st.text())
def test_token_strings_join_to_the_text_whatever_the_bytes(text):
    ids = list(text.encode("utf-8", errors="replace"))
    strings = token_strings(ids, decode_bytes)
    assert len(strings) == len(ids)
    assert "".join(strings) == decode_bytes(ids)


@given(st.lists(st.integers(0, 255)))
def test_token_strings_stay_aligned_for_broken_bytes(ids):
    assert len(token_strings(ids, decode_bytes)) == len(ids)
