"""Which part of some work is matrix products: what remains of it if everything else were free."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

PRODUCTS = {
    "aten::mm",
    "aten::addmm",
    "aten::addmm_",
    "aten::bmm",
    "aten::baddbmm",
    "aten::baddbmm_",
    "mkldnn::_linear_pointwise",
}


def cpu_shares(work: Callable[[], object]) -> dict[str, float]:
    """Operator -> its own share of the CPU time of `work`, by torch's profiler, the largest first.

    An operator's time excludes that of the operators which it calls, so the shares add up to 1.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(times.values())
    return {name: taken / total for name, taken in sorted(times.items(), key=lambda item: -item[1])}


def product_share(shares: dict[str, float]) -> float:
    """The part of it that is matrix products."""
    return sum(share for name, share in shares.items() if name in PRODUCTS)
