"""Histograms of a step, also of ratios that are nearly the same."""

import numpy as np
import pytest

from cispo.histogram import NUM_BINS, Histogram


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [1.3, 1.3000001], [-0.0, 2.0, 3.5]], ids=str)
def test_every_value_is_counted_however_close_they_are(values):
    histogram = Histogram.of(np.array(values, dtype=np.float32))
    assert sum(histogram.counts) == len(values)
    assert len(histogram.counts) == NUM_BINS == len(histogram.edges) - 1
    assert list(histogram.edges) == sorted(set(histogram.edges))
