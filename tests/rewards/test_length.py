"""DAPO's equation 13 by hand: limit 100, buffer 40, so the slope runs from 60 to 100."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispo.errors import ConfigError
from cispo.types import StopReason
from rewards.length import SoftOverlongConfig, overlong_penalty

CONFIG = SoftOverlongConfig(limit_tokens=100, buffer_tokens=40)


@pytest.mark.parametrize(
    ("num_actions", "penalty"),
    [(0, 0.0), (60, 0.0), (61, -1 / 40), (70, -0.25), (80, -0.5), (100, -1.0), (130, -1.0)],
)
def test_slope(num_actions, penalty):
    assert overlong_penalty(num_actions, StopReason.STOP, CONFIG) == pytest.approx(penalty)


def test_what_was_cut_off_pays_in_full_however_short():
    assert overlong_penalty(3, StopReason.LENGTH, CONFIG) == -1.0


def test_repetition_is_cut_off_by_setting():
    lenient = SoftOverlongConfig(limit_tokens=100, buffer_tokens=40, repetition_counts_as_truncated=False)
    assert overlong_penalty(70, StopReason.REPETITION, CONFIG) == -1.0
    assert overlong_penalty(70, StopReason.REPETITION, lenient) == -0.25


def test_no_buffer_is_a_cliff():
    cliff = SoftOverlongConfig(limit_tokens=100)
    assert [overlong_penalty(n, StopReason.STOP, cliff) for n in (99, 100, 101)] == [0.0, 0.0, -1.0]


@given(st.integers(0, 300), st.integers(1, 200), st.data())
def test_penalty_falls_and_stays_within_its_bounds(num_actions, limit, data):
    config = SoftOverlongConfig(limit_tokens=limit, buffer_tokens=data.draw(st.integers(0, limit)))
    shorter, longer = (overlong_penalty(n, StopReason.STOP, config) for n in (num_actions, num_actions + 1))
    assert -1.0 <= longer <= shorter <= 0.0


@pytest.mark.parametrize(("limit", "buffer"), [(10, 11), (10, -1), (0, 1), (-5, 0)])
def test_impossible_buffer_is_refused(limit, buffer):
    with pytest.raises(ConfigError, match="buffer_tokens"):
        SoftOverlongConfig(limit_tokens=limit, buffer_tokens=buffer)
