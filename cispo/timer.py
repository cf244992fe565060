"""Where the seconds of a step went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Timer:
    """Measures the named phases of one step; `with timer("rollout"): ...`."""

    def __init__(self, **seconds: float) -> None:
        """`seconds` by phase that were spent before, such as those of a checkpoint saved after its step was logged."""
        self.seconds: dict[str, float] = defaultdict(float, seconds)
        self._begin = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to `phase`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin

    def metrics(self, *, generated_tokens: int, trained_tokens: int, is_overlapped: bool = False) -> dict[str, float]:
        """`timing_s/<phase>` and the step's rates; evaluation and saving are not part of the step's own seconds.

        With `is_overlapped` the workers sample all the time, and not in the phase "rollout" alone.
        """
        step_seconds = time.perf_counter() - self._begin - self.seconds["evaluate"]
        rollout, update = step_seconds if is_overlapped else self.seconds["rollout"], self.seconds["update"]
        return {f"timing_s/{phase}": seconds for phase, seconds in self.seconds.items() if seconds} | {
            "perf/step_seconds": step_seconds,
            "perf/generated_tokens_per_second": generated_tokens / rollout if rollout else 0.0,
            "perf/trained_tokens_per_second": trained_tokens / update if update else 0.0,
        }
