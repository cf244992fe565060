"""Distributions of a step in a few numbers: lengths of the answers, and how far each token's probability had moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cispo.records import LearntStream
from cispo.types import Floats, Group, Ints

NUM_BINS = 64
LOG2_LIMIT = 16.0
"""Ratios beyond 2 ** 16 count in the outermost bin: how far beyond is what ratio/max says."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges.

    Attributes:
        counts: how many values each of the B bins holds.
        edges: B + 1 borders, rising; the last bin holds its right border, too.
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...]

    @classmethod
    def of(cls, values_N: Floats | Ints) -> Histogram:
        """Of at least one finite value: NUM_BINS bins between the smallest and the largest."""
        # In float64, where values a rounding of float32 apart still have room for that many edges between them.
        counts, edges = np.histogram(np.asarray(values_N, dtype=np.float64), bins=NUM_BINS)
        return cls(tuple(counts.tolist()), tuple(edges.tolist()))


def step_histograms(groups: Sequence[Group], learnt: Mapping[tuple[int, int], LearntStream]) -> dict[str, Histogram]:
    """The documented histograms of one step; one of nothing is left out.

    Args:
        groups: every finished group of the step, as for response_length/*.
        learnt: by (group index, member), the ratios before the update that used them.
    """
    lengths = np.array([t.num_actions for group in groups for t in group.trajectories], dtype=np.int64)
    streams = [stream.ratio_T for stream in learnt.values() if stream.ratio_T is not None]
    ratio_N = np.concatenate(streams) if streams else np.empty(0, dtype=np.float32)
    ratio_N = ratio_N[np.isfinite(ratio_N) & (ratio_N > 0)]
    found = {
        "response_length/histogram": lengths,
        "ratio/log2_histogram": np.log2(ratio_N).clip(-LOG2_LIMIT, LOG2_LIMIT),
    }
    return {name: Histogram.of(values_N) for name, values_N in found.items() if len(values_N)}
