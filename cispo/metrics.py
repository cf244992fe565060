"""Numbers that know how they are merged: over rows of a batch, over ranks, over the updates of a step.

A metric carries its own reduction, so nobody guesses from its name whether to add, average or take the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class Metric(Protocol):
    """Something that can be merged with its like and read as a float."""

    def merge(self, other: Self) -> Self:
        """The metric over both parts."""

    def __float__(self) -> float: ...


@dataclass(frozen=True)
class Mean:
    """A mean over `count` items whose sum is `total`; NaN over none."""

    total: float
    count: float

    @classmethod
    def of(cls, values_T: Tensor, mask_T: Tensor) -> Mean:
        """Mean of values_T [T] where mask_T [T] is True."""
        return cls(float(torch.where(mask_T, values_T, 0.0).sum()), float(mask_T.sum()))

    def merge(self, other: Mean) -> Mean:
        """The mean over both sets of items."""
        return Mean(self.total + other.total, self.count + other.count)

    def __float__(self) -> float:
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True)
class Max:
    """The largest value; -inf (read as NaN) over none."""

    value: float

    @classmethod
    def of(cls, values_T: Tensor, mask_T: Tensor) -> Max:
        """Largest of values_T [T] where mask_T [T] is True."""
        return cls(float(torch.where(mask_T, values_T, -math.inf).max()) if mask_T.numel() else -math.inf)

    def merge(self, other: Max) -> Max:
        """The larger of both."""
        return Max(max(self.value, other.value))

    def __float__(self) -> float:
        return self.value if self.value > -math.inf else math.nan


@dataclass(frozen=True)
class Sum:
    """A count or an amount that adds up."""

    value: float

    def merge(self, other: Sum) -> Sum:
        """Both together."""
        return Sum(self.value + other.value)

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Pearson:
    """Correlation of two streams x and y, kept as shifted sums so that parts can be merged.

    Probabilities lie in [0, 1], so float64 sums lose nothing that matters.
    """

    count: float
    x: float
    y: float
    xx: float
    yy: float
    xy: float

    @classmethod
    def of(cls, x_T: Tensor, y_T: Tensor, mask_T: Tensor) -> Pearson:
        """Correlation of x_T and y_T [T] where mask_T [T] is True."""
        x, y = x_T[mask_T].double(), y_T[mask_T].double()
        sums = torch.stack([x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]).tolist()
        return cls(float(x.numel()), *sums)

    def merge(self, other: Pearson) -> Pearson:
        """The correlation over both sets."""
        mine, theirs = vars(self).values(), vars(other).values()
        return Pearson(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def __float__(self) -> float:
        covariance = self.count * self.xy - self.x * self.y
        variances = (self.count * self.xx - self.x**2) * (self.count * self.yy - self.y**2)
        return covariance / math.sqrt(variances) if variances > 0 else math.nan


M = TypeVar("M", bound=Metric)


def merge_all(parts: Iterable[Mapping[str, M]]) -> dict[str, M]:
    """Merge metrics of the same name over parts; a name need not be in every part."""
    merged: dict[str, M] = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name].merge(metric) if name in merged else metric
    return merged


def quantile(values: Iterable[float], fraction: float) -> float:
    """Linear-interpolation quantile of `values`; NaN of none."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return float(torch.quantile(tensor, fraction)) if tensor.numel() else math.nan
