"""The path of the data: one frozen dataclass per stage, in the order of travel.

    Prompt -> Trajectory -> Score -> Group -> Harvest -> Sample -> PackedRow -> PackedBatch -> UpdateResult

Shape suffixes: T tokens (of one sequence, or of one packed row), G trajectories of a group, N sequences in a row.
Arrays are numpy because they cross process borders without a copy; the learner makes tensors of them.
All per-token streams of a sequence are aligned with its tokens: entry t belongs to token t, and a log-probability
at t is that of token t given the tokens before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # metrics need torch; prompts, rewards and their helper processes do not
    from cispo.metrics import Metric

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Choices = NDArray[np.uint8] | NDArray[np.int16]
"""Experts that routers chose, [T, L, k]; the largest number of the dtype where nothing was recorded."""


class StopReason(StrEnum):
    """Why a trajectory ended."""

    STOP = "stop"  # the model emitted a stop token
    LENGTH = "length"  # the token limit was reached: the trajectory is truncated
    REPETITION = "repetition"  # the repetition rule fired: it was looping with confidence
    TURNS = "turns"  # the model asked for another turn than the episode has: truncated
    TIME = "time"  # the episode's seconds were over: truncated

    @property
    def is_truncated(self) -> bool:
        """A budget ended it, and not the model."""
        return self in (StopReason.LENGTH, StopReason.TURNS, StopReason.TIME)


class Verdict(StrEnum):
    """What a verifier found. Only SYSTEM_ERROR says nothing about the model: it is retried, then masked."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"  # no answer in the required form
    GRADER_TIMEOUT = "grader_timeout"  # the verifier gave up on a hostile or very hard answer
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    RUNTIME_ERROR = "runtime_error"
    COMPILE_ERROR = "compile_error"
    SYSTEM_ERROR = "system_error"


@dataclass(frozen=True)
class Prompt:
    """One task for the policy, tokenised once.

    Attributes:
        id: unique in its stream and stable over restarts, e.g. "chain/train/000417".
        task: names the verifier and the metrics, e.g. "chain".
        text: what the model sees, after the chat template if there was one, e.g. "0-2+2-1=".
        token_ids: the ids of `text`, never empty.
        reference: whatever the task's verifier needs, JSON-like, e.g. "9" or {"tests": [...]}.
    """

    id: str
    task: str
    text: str
    token_ids: tuple[int, ...]
    reference: Any


@dataclass(frozen=True)
class ObservationSpan:
    """What an environment answered to one turn of an episode.

    Attributes:
        start, stop: where its tokens stand in the trajectory; empty if the policy was not shown it.
        tool: what was called, e.g. "python", or "".
        verdict: how that ended, in the environment's words, e.g. "OK" or "TLE".
        is_error: it did not do what the policy asked for.
        note: one line for the person who reads traces.
    """

    start: int
    stop: int
    tool: str = ""
    verdict: str = ""
    is_error: bool = False
    note: str = ""


@dataclass(frozen=True)
class Trajectory:
    """One sampled episode, prompt included; a multi-turn one has several runs of action tokens.

    Attributes:
        token_ids_T: int64, prompt, actions and (multi-turn) observations in order.
        action_mask_T: True where the policy chose the token.
        behaviour_logp_T: float32, log-probability under the distribution sampled from; 0 where not an action.
        version_T: int64, version of the policy that sampled each token; -1 where not an action.
        stop_reason: why it ended.
        observations: what the environment answered, in order; the turns are what stands between them.
        experts_TLk: the experts that each token visited while it was sampled from, if the engine recorded them.
    """

    token_ids_T: Ints
    action_mask_T: Bools
    behaviour_logp_T: Floats
    version_T: Ints
    stop_reason: StopReason
    observations: tuple[ObservationSpan, ...] = ()
    experts_TLk: Choices | None = None

    @cached_property
    def num_actions(self) -> int:
        """Number of tokens that the policy chose."""
        return int(self.action_mask_T.sum())

    @property
    def num_turns(self) -> int:
        """How often the policy wrote: once, and again after each observation that it was shown."""
        return 1 + sum(span.stop > span.start for span in self.observations)

    @cached_property
    def oldest_version(self) -> int:
        """The oldest policy that sampled one of its tokens; -1 if it has no action."""
        return int(self.version_T[self.action_mask_T].min()) if self.num_actions else -1


@dataclass(frozen=True)
class Score:
    """What the rewards say of one trajectory.

    Attributes:
        value: the reward that is learnt from: the weighted sum of `parts`. NaN only with SYSTEM_ERROR.
        correct: the task itself was solved, whatever length or format add or take away; what accuracy counts.
        parts: every part before weighting, by name, e.g. {"answer": 1.0, "format": 1.0, "length": -0.2}.
        verdict: what the task's verifier found.
        note: one line for the person who reads traces, e.g. "expected 9, got 7".
    """

    value: float
    correct: bool
    parts: Mapping[str, float]
    verdict: Verdict
    note: str = ""

    @property
    def usable(self) -> bool:
        """False when the score says nothing about the model and must not be learnt from."""
        return self.verdict is not Verdict.SYSTEM_ERROR


@dataclass(frozen=True)
class Group:
    """One prompt with its G trajectories and their scores.

    `index` is the position in the run's sequence of draws: it orders groups whatever worker finished first.
    """

    index: int
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    scores: tuple[Score, ...]

    @property
    def rewards_G(self) -> Floats:
        """float32 [G]; NaN where the score is unusable."""
        return np.array([s.value if s.usable else np.nan for s in self.scores], dtype=np.float32)

    @property
    def oldest_version(self) -> int:
        """The oldest policy version in the group."""
        return min(t.oldest_version for t in self.trajectories)


@dataclass(frozen=True)
class Harvest:
    """One step's intake.

    Attributes:
        groups: kept groups in the order of their index.
        dropped: how many drawn groups were not kept, by reason: "flat", "stale", "failed".
        drawn: all groups drawn for this step; len(groups) + sum(dropped) == drawn.
        seen: every finished group of the step, flat ones included: what reward statistics are computed on.
    """

    groups: tuple[Group, ...]
    dropped: Mapping[str, int]
    drawn: int
    seen: tuple[Group, ...]

    @property
    def num_generated(self) -> int:
        """Action tokens that the workers sampled for it."""
        return sum(t.num_actions for group in self.seen for t in group.trajectories)


@dataclass(frozen=True)
class Sample:
    """One trajectory with the credit of each token; what packing consumes.

    Attributes:
        group, member: index of its group and its place in it: who it is, and whose weights it shares.
        tokens_T: int64.
        mask_T: True where the token is learnt from (an action with a finite behaviour log-probability).
        behaviour_logp_T: float32, 0 outside the mask.
        advantage_T: float32, 0 outside the mask.
        version_T: int64, as in Trajectory.
        experts_TLk: as in Trajectory: what the learner's routers are told to choose.
    """

    group: int
    member: int
    tokens_T: Ints
    mask_T: Bools
    behaviour_logp_T: Floats
    advantage_T: Floats
    version_T: Ints
    experts_TLk: Choices | None = None

    @cached_property
    def num_learnt(self) -> int:
        """Number of tokens in the mask."""
        return int(self.mask_T.sum())


@dataclass(frozen=True)
class PackedRow:
    """Several samples end to end in one row: what one forward pass sees.

    Attributes:
        tokens_T, positions_T: int64; positions restart at 0 with each sequence.
        cu_seqlens: int64 [N + 1], the borders of the sequences: 0, len_0, len_0 + len_1, ..., T.
        mask_T, behaviour_logp_T, advantage_T: as in Sample.
        weight_T: float32, the aggregation over the *whole update*; a sum of weight * x is the wanted mean of x.
        members: for each of the N sequences the (group, member) that it is.
        age_T: int64, versions between the policy that sampled the token and the one that learns; -1 if not an action.
        share: its tokens over those of the update.
        proximal_logp_T: float32, under the weights at the start of the step: what the ratio is against, if given
            (cispo/correction.py). NaN where not learnt from.
        experts_TLk: as in Sample.
    """

    tokens_T: Ints
    positions_T: Ints
    cu_seqlens: Ints
    mask_T: Bools
    behaviour_logp_T: Floats
    advantage_T: Floats
    weight_T: Floats
    age_T: Ints
    members: tuple[tuple[int, int], ...]
    share: float
    proximal_logp_T: Floats | None = None
    experts_TLk: Choices | None = None

    @property
    def num_tokens(self) -> int:
        """All tokens, prompts included."""
        return len(self.tokens_T)


@dataclass(frozen=True)
class PackedBatch:
    """The samples of one optimizer update, as rows. How they are split into rows does not change the gradient."""

    rows: tuple[PackedRow, ...]

    @property
    def num_tokens(self) -> int:
        """All tokens, prompts included."""
        return sum(row.num_tokens for row in self.rows)

    @property
    def num_learnt(self) -> int:
        """Tokens that carry a gradient."""
        return sum(int(row.mask_T.sum()) for row in self.rows)


@dataclass(frozen=True)
class UpdateSettings:
    """What one update is made with: the schedules' values at this step, plus the guards.

    Attributes:
        lr: learning rate.
        ratio_cap, ratio_floor: the importance ratio is clipped into [ratio_floor, ratio_cap].
        mask_above, mask_below: drop tokens with advantage > 0 and ratio > mask_above, or < 0 and ratio < mask_below.
        max_grad_norm: global norm to which the gradient is clipped.
        temperature: of the distribution that was sampled from.
        router_aux_coef: weight of the router's load-balancing loss.
        kl_stop: skip this update and the rest of the step's when k3 KL(behaviour || current) exceeds it; 0 is off.
        kl_step: scale the learning rate by min(1, kl_step / KL); 0 is off.
    """

    lr: float
    ratio_cap: float
    ratio_floor: float = 0.0
    mask_above: float = float("inf")
    mask_below: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    router_aux_coef: float = 0.0
    kl_stop: float = 0.0
    kl_step: float = 0.0


@dataclass(frozen=True)
class UpdateResult:
    """What one optimizer update did.

    Attributes:
        loss: the objective's value over the whole batch.
        grad_norm: global norm before clipping.
        lr: the learning rate that was used, after the kl_step guard.
        kl: k3 estimate of KL(behaviour || current) before the update, mean over learnt tokens.
        skipped: why no step was made ("kl_stop", "nonfinite"), or "" if one was.
        metrics: over the batch, by documented name; they merge with those of the step's other updates.
        logp_rows: for each row float32 [T], the log-probabilities before the update; NaN where not learnt from.
    """

    loss: float
    grad_norm: float
    lr: float
    kl: float
    skipped: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    logp_rows: tuple[Floats, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Where a run stands; all that the loop itself must remember between two steps.

    Attributes:
        step: steps finished; also the version of the weights.
        generated_tokens, trained_tokens: action tokens sampled for training, and tokens learnt from, since the start.
        barren_steps: steps in a row that found no group with a signal.
        nonfinite_updates: updates in a row, up to now, that were skipped for a NaN or an infinity.
    """

    step: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    barren_steps: int = 0
    nonfinite_updates: int = 0

    def after(self, harvest: Harvest, updates: Sequence[UpdateResult], trained_tokens: int) -> Progress:
        """Where the run stands after a step with this intake and these updates."""
        finite = [n for n, update in enumerate(reversed(updates)) if update.skipped != "nonfinite"]
        return Progress(
            step=self.step + 1,
            generated_tokens=self.generated_tokens + harvest.num_generated,
            trained_tokens=self.trained_tokens + trained_tokens,
            barren_steps=0 if harvest.groups else self.barren_steps + 1,
            nonfinite_updates=finite[0] if finite else self.nonfinite_updates + len(updates),
        )
