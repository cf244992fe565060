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
    """Correlation of two streams x and y; NaN when either is constant.

    Kept as means and centred sums, which parts can be merged by (Chan, Golub and LeVeque 1983): the probabilities of
    a confident policy are all close to 1, and of plain sums of squares only rounding would be left.
    """

    count: float
    mean_x: float
    mean_y: float
    xx: float
    yy: float
    xy: float

    @classmethod
    def of(cls, x_T: Tensor, y_T: Tensor, mask_T: Tensor) -> Pearson:
        """Correlation of x_T and y_T [T] where mask_T [T] is True."""
        x, y = x_T[mask_T].double(), y_T[mask_T].double()
        if not x.numel():
            return cls(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        mean_x, mean_y = x.mean(), y.mean()
        x, y = x - mean_x, y - mean_y
        sums = torch.stack([mean_x, mean_y, (x * x).sum(), (y * y).sum(), (x * y).sum()]).tolist()
        return cls(float(x.numel()), *sums)

    def merge(self, other: Pearson) -> Pearson:
        """The correlation over both sets."""
        count = self.count + other.count
        if not count:
            return self
        share = other.count / count
        apart_x, apart_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        between = self.count * share
        return Pearson(
            count,
            self.mean_x + share * apart_x,
            self.mean_y + share * apart_y,
            self.xx + other.xx + between * apart_x**2,
            self.yy + other.yy + between * apart_y**2,
            self.xy + other.xy + between * apart_x * apart_y,
        )

    def __float__(self) -> float:
        spread = math.sqrt(self.xx) * math.sqrt(self.yy)
        return self.xy / spread if spread > 0 else math.nan


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
