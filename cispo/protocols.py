"""What the parts ask of each other: every border in the house, as Protocols.

The loop knows nobody by class: the other side may be a Ray actor, an object in this process, or a small fake in a
test. A method that can wait says what it waits for and has a deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cispo.histogram import Histogram
from cispo.optimizer import OptimizerConfig
from cispo.types import (
    Floats,
    Group,
    Harvest,
    Ints,
    PackedBatch,
    Progress,
    Prompt,
    Score,
    Trajectory,
    UpdateResult,
    UpdateSettings,
)

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, Any]
"""JSON-like or numpy: what a part needs to go on exactly where it stopped."""

WeightStream = Iterator[tuple[str, "Tensor"]]
"""(name in the checkpoint's own naming, whole tensor in its own dtype and in the host's memory) one after the other, so
that nobody holds the model twice. Read each before the next, and all before the next update: they may be views."""


class PromptSource(Protocol):
    """An endless, seeded stream of prompts whose cursor can be saved."""

    def next(self) -> Prompt:
        """The next prompt of the mixture."""

    def state(self) -> State:
        """The cursor."""

    def restore(self, state: State) -> None:
        """Go on exactly after the prompt that was next when `state` was taken."""


class Scorer(Protocol):
    """Turns a finished trajectory into a Score, without ever blocking the engine."""

    def submit(self, prompt: Prompt, trajectory: Trajectory, text: str) -> Future[Score]:
        """Begin to score. `text` is the decoded action tokens. The future never raises for what the model wrote:
        wrong, hostile or unparseable text is a verdict; only a user's faulty reward function raises RewardError.
        """

    def close(self) -> None:
        """End helper processes."""


class RolloutSource(Protocol):
    """Prompts in, scored groups out."""

    def take(self, num_groups: int, *, oldest_version: int, keep: Callable[[Group], bool]) -> Harvest:
        """Draw prompts until `num_groups` groups pass `keep` and are no older than `oldest_version`.

        Waits for the workers; raises DeadlineExceeded when none answers in time. Returns fewer groups, perhaps none,
        when the draw limit is reached: the harvest says how many were flat, stale or failed.
        """

    def sample(self, prompts: Sequence[Prompt], *, num_samples: int, greedy: bool) -> list[Group]:
        """One scored group for each prompt, in order, outside the training stream. Seeds depend on the prompt alone."""

    def load_weights(self, package: Any, version: int) -> Sequence[Any]:
        """Give every worker the weights of `version`; returns, once all that are up sample with it, what each said.

        `package` is what the weight sync made: opaque here, because it may be a reference into an object store.
        """

    def metrics(self) -> Mapping[str, float]:
        """perf/*: how the workers spent the time since the last call."""

    def save(self, folder: Path) -> None:
        """Write the data cursor and all that was drawn and not taken: prompts, partial rollouts, finished groups."""

    def load(self, folder: Path) -> None:
        """Go on exactly where `save` was called: no prompt is lost, and none is trained on twice."""

    def close(self) -> None:
        """Ask nothing more of the workers."""


class Learner(Protocol):
    """Owns the trained weights and the optimizer."""

    def update(self, batch: PackedBatch, settings: UpdateSettings) -> UpdateResult:
        """Make one optimizer update, or say in the result why not."""

    def logp(self, batch: PackedBatch, temperature: float) -> tuple[Floats, ...]:
        """For each row float32 [T], the present weights' log-probabilities of its learnt tokens; NaN elsewhere."""

    def weights(self) -> WeightStream:
        """The present weights, in the checkpoint's names."""

    def text_logp(self, token_ids: Ints) -> Floats:
        """float32 [T]: log-probability, with the present weights and at temperature 1, of each token given those
        before it, computed as in an update; NaN for the first.
        """

    def probe(self, trajectory: Trajectory) -> Mapping[str, float]:
        """`mismatch/<kind>`: where training and sampling differ on these tokens with the present weights."""

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """Forget the moments and begin with these settings, as between cold start and RL."""

    def save(self, folder: Path) -> None:
        """Write everything that a restart needs into `folder`."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; raises CheckpointError."""

    def export(self, folder: Path, *, eos_token_id: int | None = None, pad_token_id: int | None = None) -> None:
        """Write the policy in Hugging Face layout; the ids tell others where a text ends."""


class WeightSync(Protocol):
    """Carries a version of the weights from the learner to the rollouts."""

    def publish(self, learner: Learner, *, version: int) -> Mapping[str, float]:
        """Returns, once every worker samples with `version`, metrics of it; raises WeightSyncError."""


class Checkpoints(Protocol):
    """Everything a restart needs, atomically."""

    def save(self, progress: Progress, learner: Learner, rollouts: RolloutSource) -> None:
        """Write checkpoints/step_N, complete or not at all."""

    def restore(self, learner: Learner, rollouts: RolloutSource) -> Progress:
        """Load the newest complete checkpoint, or return a fresh Progress if there is none."""


class Evaluator(Protocol):
    """Measures the current policy on held-out prompts."""

    def evaluate(self) -> Mapping[str, float]:
        """`eval/<set>/mean@k`, `eval/<set>/pass@k` and the greedy accuracies, with the weights of the workers."""


class Tracker(Protocol):
    """Somebody who is told what happened."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of one step."""

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """The trajectories trained on at one step, made by cispo.records; told before the step's numbers."""

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """The distributions of one step; told before its numbers."""

    def alarm(self, step: int, metric: str, text: str) -> None:
        """A warning that was logged: `metric` is what it is about."""

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None:
        """Progress inside something long that is not a step: "cold start" or "evaluation"."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over."""


@dataclass(frozen=True)
class ModelState:
    """A saved sampler state: what `Engine.snapshot` gives and `Engine.resume` takes. Arrays only, picklable."""

    arrays: Mapping[str, NDArray[np.generic]]
    meta: Mapping[str, Any]
