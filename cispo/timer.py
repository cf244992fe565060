"""Where the seconds of a step went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cispo.types import Harvest, PackedBatch


class Timer:
    """Measures the named phases of one step; `with timer("rollout"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._begin = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to `phase`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin

    def metrics(self, harvest: Harvest, batches: Sequence[PackedBatch]) -> dict[str, float]:
        """`timing_s/<phase>` and the step's rates; evaluation is not part of the step's own seconds."""
        step_seconds = time.perf_counter() - self._begin - self.seconds["evaluate"]
        rollout, update = self.seconds["rollout"], self.seconds["update"]
        trained = sum(batch.num_learnt for batch in batches)
        return {f"timing_s/{phase}": seconds for phase, seconds in self.seconds.items() if seconds} | {
            "perf/step_seconds": step_seconds,
            "perf/generated_tokens_per_second": harvest.num_generated / rollout if rollout else 0.0,
            "perf/trained_tokens_per_second": trained / update if update else 0.0,
        }
