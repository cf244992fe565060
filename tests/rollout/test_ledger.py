"""Drawn groups on their way: each in one place at a time, none too old for its turn, and all of them in the files."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.protocols import ModelState
from cispo.types import Group, ObservationSpan, Prompt, Score, StopReason, Trajectory, Verdict
from rollout.buffer import may_be_taken
from rollout.episode import EpisodeSoFar
from rollout.ledger import Entry, Ledger
from rollout.ledger_file import read_ledger, write_ledger
from rollout.requests import Begun

STREAMS = ("token_ids_T", "action_mask_T", "behaviour_logp_T", "version_T")


class Stream:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return Prompt(f"p{self.count - 1}", "chain", "x", (self.count, 7), {"answer": ["y", 1]})


def trajectory(version, *tokens):
    return Trajectory(
        token_ids_T=np.array([7, *tokens]),
        action_mask_T=np.array([False] + [True] * len(tokens)),
        behaviour_logp_T=np.linspace(0.0, -1.1, len(tokens) + 1, dtype=np.float32),
        version_T=np.array([-1] + [version] * len(tokens)),
        stop_reason=StopReason.REPETITION,
    )


def group(entry, version):
    score = Score(0.1 + 0.2, True, {"answer": 1.0}, Verdict.CORRECT, "as it should be")
    return Group(entry.index, entry.prompt, (trajectory(version, 3, 4), trajectory(version + 1, 5)), (score, score))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4), st.integers(1, 4), st.integers(0, 2**32), st.floats(0.0, 0.9))
def test_whatever_finishes_first_no_group_is_ever_too_old_and_none_waits_without_need(staleness, per_step, seed, flat):
    """Groups finish in any order; a step waits only while it must, and takes `per_step` that are young enough."""
    chance = random.Random(seed)
    ledger = Ledger(Stream())
    for step in range(8):
        num_missing, oldest = per_step, step - staleness
        while num_missing:
            while ledger.num_under_way + ledger.num_ready < num_missing + per_step * staleness:
                ledger.draw(step)
            ready = ledger.oldest_ready()
            if ready and may_be_taken(
                ready.oldest_version,
                ledger.num_by_version,
                oldest_version=oldest,
                num_missing=num_missing,
                groups_per_step=per_step,
            ):
                assert ready.oldest_version >= oldest, "a group came too late"
                ledger.take(ready.index)
                num_missing -= chance.random() >= flat  # a flat one is dropped, and another drawn
            else:
                under_way = [entry for entry in ledger.untaken({}) if entry.group is None]
                assert under_way, "the step waits and nobody works"
                entry = chance.choice(under_way)
                begun = ledger._under_way[entry.index].version
                ledger.finish(group(entry, begun))
        assert not ledger.overdue(oldest + 1), "the next step could not take it"


def test_a_short_group_overtakes_a_long_one_until_that_is_about_to_be_lost():
    rule = {"oldest_version": 5, "groups_per_step": 2}
    assert may_be_taken(7, {5: 1, 7: 3}, num_missing=2, **rule), "one of version 5 must go, and there is room for two"
    assert not may_be_taken(7, {5: 1, 7: 3}, num_missing=1, **rule), "the last place is for the one of version 5"
    assert may_be_taken(5, {5: 1, 7: 3}, num_missing=1, **rule)
    assert not may_be_taken(7, {6: 4, 7: 1}, num_missing=2, **rule), "two of version 6 now, or one is lost next step"
    assert may_be_taken(7, {6: 3, 7: 1}, num_missing=2, **rule)


def same(left, right):
    assert type(left) is type(right)
    for name in {field.name for field in dataclasses.fields(left)} - {*STREAMS}:
        assert getattr(left, name) == getattr(right, name)
    for name in STREAMS:
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def test_everything_untaken_comes_back_from_its_files(tmp_path):
    ledger = Ledger(Stream())
    ready, begun, fresh = ledger.draw(3), ledger.draw(3), ledger.draw(4)
    ledger.finish(group(ready, 3))
    state = ModelState({"0/cache/kv": np.arange(6.0).reshape(2, 3), "prompt": np.array([1])}, {"fresh": [1], "n": 0.1})
    span = ObservationSpan(1, 2, "python", "OK")
    turn = EpisodeSoFar(*(getattr(trajectory(3, 8, 9), name) for name in STREAMS), (span,), 1, 2, {"files": {"a": "b"}})
    entries = ledger.untaken({begun.index: Begun({2: trajectory(3, 9)}, state, {1: turn})})
    write_ledger(tmp_path, {"prompts": {"at": 3}, "next_index": 3}, entries)
    cursor, again = read_ledger(tmp_path)
    assert cursor == {"prompts": {"at": 3}, "next_index": 3}
    assert [(e.index, e.prompt, e.version) for e in again] == [
        (0, ready.prompt, 3),
        (1, begun.prompt, 3),
        (2, fresh.prompt, None),
    ]
    assert again[0].group.scores == entries[0].group.scores
    for left, right in zip(again[0].group.trajectories, entries[0].group.trajectories, strict=True):
        same(left, right)
    same(again[1].begun.trajectories[2], trajectory(3, 9))
    same(again[1].begun.episodes[1], turn)
    assert again[1].begun.state.meta == state.meta
    assert again[1].begun.state.arrays.keys() == state.arrays.keys()
    assert np.array_equal(again[1].begun.state.arrays["0/cache/kv"], state.arrays["0/cache/kv"])
    assert again[2].begun is None


def test_what_was_begun_keeps_its_age_and_comes_first():
    ledger = Ledger(Stream())
    entries = [
        Entry(4, Prompt("a", "chain", "x", (1,), ""), 2, Begun({}, None)),
        Entry(6, Prompt("b", "", "", (2,), "")),
    ]
    ledger.restore(7, entries)
    assert [(e.index, e.version) for e in (ledger.draw(5), ledger.draw(5), ledger.draw(5))] == [(4, 2), (6, 5), (7, 5)]
    assert ledger.num_by_version == {2: 1, 5: 2}
    assert ledger.overdue(3) == [4]


def test_a_group_is_in_one_place_only():
    ledger = Ledger(Stream())
    entry = ledger.draw(0)
    with pytest.raises(KeyError):
        ledger.take(entry.index)
    ledger.finish(group(entry, 0))
    with pytest.raises(KeyError):
        ledger.finish(group(entry, 0))
    ledger.take(entry.index)
    assert ledger.untaken({}) == []
