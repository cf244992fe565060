"""Schedules: a number, straight lines between knots, flat ends, staircases; and what is no schedule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.errors import ConfigError
from cispo.schedule import check_schedule, largest, value_at

QUICK = settings(max_examples=40, deadline=None)

WARM_UP_HOLD_DECAY = ((0, 0.0), (3, 3e-4), (20, 3e-4), (40, 3e-5))


@pytest.mark.parametrize(
    "step, wanted", [(0, 0), (1, 1e-4), (3, 3e-4), (10, 3e-4), (20, 3e-4), (30, 1.65e-4), (40, 3e-5), (99, 3e-5)]
)
def test_warm_up_hold_and_decay(step, wanted):
    assert value_at(WARM_UP_HOLD_DECAY, step) == pytest.approx(wanted, rel=1e-12)


def test_a_number_is_constant():
    assert value_at(3e-4, 0) == value_at(3e-4, 10**6) == 3e-4


def test_a_staircase_is_two_knots_one_step_apart():
    window = ((0, 40960), (999, 40960), (1000, 49152))
    assert [value_at(window, step) for step in (0, 999, 1000, 5000)] == [40960, 40960, 49152, 49152]


def test_one_knot_is_flat_on_both_sides():
    assert [value_at(((5, 2.0),), step) for step in (0, 5, 9)] == [2.0] * 3


KNOTS = st.lists(st.integers(0, 100), min_size=1, max_size=5, unique=True).flatmap(
    lambda steps: st.tuples(*(st.tuples(st.just(step), st.floats(-1e3, 1e3)) for step in sorted(steps)))
)


@QUICK
@given(KNOTS, st.floats(-10, 110))
def test_values_stay_between_the_knots_and_meet_them(knots, step):
    check_schedule("lr", knots)
    values = [value for _, value in knots]
    assert min(values) - 1e-9 <= value_at(knots, step) <= max(values) + 1e-9
    assert [value_at(knots, at) for at, _ in knots] == pytest.approx(values, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    "schedule", [(), ((3, 1.0), (3, 2.0)), ((3, 1.0), (1, 2.0)), ((0, 1.0, 2.0),), ((0, 1.0), (1,))]
)
def test_what_is_no_schedule_is_refused_with_its_name_and_value(schedule):
    with pytest.raises(ConfigError, match=r"learner\.lr must be a number or knots .* got \["):
        check_schedule("learner.lr", schedule)


@pytest.mark.parametrize("schedule", [-1e-4, ((0, 1e-4), (9, -1e-4))])
def test_values_below_the_least_are_refused(schedule):
    with pytest.raises(ConfigError, match=r"lr must be at least 0 throughout; got -0\.0001"):
        check_schedule("lr", schedule, least=0.0)


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(-5, 5)), min_size=1, max_size=5, unique_by=lambda knot: knot[0]),
    st.integers(0, 80),
)
def test_the_largest_value_is_that_of_all_steps(knots, last_step):
    schedule = tuple(sorted(knots))
    assert largest(schedule, last_step) == max(value_at(schedule, step) for step in range(last_step + 1))
    assert largest(2.5, 10**12) == 2.5
