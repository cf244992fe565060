"""Metrics: whatever the parts, merged they are those of the whole; and of nothing they are NaN."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.metrics import Max, Mean, Pearson, Sum, merge_all, quantile

QUICK = settings(max_examples=40, deadline=None)

# Eighths, so that equal values have a spread of exactly 0.
VALUES = st.lists(st.integers(-800, 800).map(lambda eighths: eighths / 8), min_size=1, max_size=30)


def make(kind, values):
    values = torch.tensor(values, dtype=torch.float64)
    everywhere = torch.ones(len(values), dtype=torch.bool)
    if kind is Pearson:
        return Pearson.of(values, values**2, everywhere)
    return Sum(float(values.sum())) if kind is Sum else kind.of(values, everywhere)


@pytest.mark.parametrize("kind", [Mean, Max, Sum, Pearson])
@QUICK
@given(values=VALUES, cuts=st.lists(st.integers(0, 30), max_size=3))
def test_merged_parts_are_the_whole(kind, values, cuts):
    borders = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [{"x": make(kind, values[a:b])} for a, b in zip(borders, borders[1:], strict=False)]
    merged, whole = float(merge_all(parts)["x"]), float(make(kind, values))
    assert merged == pytest.approx(whole, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("kind, wanted", [(Mean, 2.0), (Max, 3.0)])
def test_only_what_the_mask_covers_counts(kind, wanted):
    values = torch.tensor([1.0, 3.0, math.nan, math.inf])
    assert float(kind.of(values, torch.tensor([True, True, False, False]))) == wanted


@pytest.mark.parametrize("kind", [Mean, Max])
def test_nothing_is_not_a_number_and_merges_as_nothing(kind):
    nothing = kind.of(torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    assert math.isnan(float(nothing)) and math.isnan(float(kind.of(torch.zeros(0), torch.zeros(0, dtype=torch.bool))))
    assert float(nothing.merge(make(kind, [4.0]))) == float(make(kind, [4.0]).merge(nothing)) == 4.0


def test_a_mean_is_weighted_by_its_counts():
    assert float(Mean(6.0, 3.0).merge(Mean(2.0, 1.0))) == 2.0


@pytest.mark.parametrize(
    "shift, spread", [(0.0, 1.0), (0.999, 1e-3), (1.0, 1e-7)], ids=["wide", "narrow", "all near 1"]
)
def test_pearson_equals_numpy_in_any_number_of_parts(shift, spread):
    rng = np.random.default_rng(0)
    x = shift - spread * rng.random(200)
    y = x + 0.1 * spread * rng.random(200)
    wanted = np.corrcoef(x, y)[0, 1]
    whole = torch.ones(200, dtype=torch.bool)
    parts = [Pearson.of(*map(torch.from_numpy, (x[i::7], y[i::7])), whole[i::7]) for i in range(7)]
    merged = merge_all({"p": part} for part in parts)["p"]
    assert float(Pearson.of(torch.from_numpy(x), torch.from_numpy(y), whole)) == pytest.approx(wanted, rel=1e-9)
    assert float(merged) == pytest.approx(wanted, rel=1e-7)


def test_pearson_of_a_constant_or_of_nothing_is_not_a_number():
    constant = Pearson.of(torch.ones(3), torch.arange(3.0), torch.ones(3, dtype=torch.bool))
    nothing = Pearson.of(torch.ones(3), torch.arange(3.0), torch.zeros(3, dtype=torch.bool))
    assert math.isnan(float(constant)) and math.isnan(float(nothing)) and math.isnan(float(nothing.merge(nothing)))
    assert float(nothing.merge(make(Pearson, [1.0, 2.0, 5.0]))) == float(make(Pearson, [1.0, 2.0, 5.0]))


def test_a_name_need_not_be_in_every_part():
    merged = merge_all([{"a": Sum(1.0), "b": Max(2.0)}, {"a": Sum(3.0)}, {}])
    assert {name: float(metric) for name, metric in merged.items()} == {"a": 4, "b": 2}


@QUICK
@given(VALUES, st.floats(0, 1))
def test_quantiles_equal_numpy(values, fraction):
    assert quantile(values, fraction) == pytest.approx(np.quantile(values, fraction), rel=1e-9, abs=1e-9)


def test_quantile_of_nothing_is_not_a_number():
    assert math.isnan(quantile([], 0.5))
