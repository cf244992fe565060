"""A rollout worker: an engine that samples and the scorer that judges, in one process.

Scoring begins as each trajectory ends and runs beside the sampling of the others, so slow rewards cost little. The
worker is a plain class: launch/ makes a Ray actor of it, or calls it in its own process, and it does not know which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace

from cispo.errors import ConfigError, InvalidRequest
from cispo.protocols import Scorer
from cispo.schedule import Schedule, check_schedule
from cispo.types import Group, Prompt, Score, Trajectory
from rollout.engine import Completion, Engine, Request
from rollout.episode import response_text_ids, single_turn
from rollout.receiver import Loaded, Package, Receiver
from rollout.sampling import Sampling


@dataclass(frozen=True)
class SamplingConfig:
    """How trajectories are sampled, in training and in sampled evaluation alike.

    Attributes:
        temperature: of the distribution that is sampled from; the learner uses the same.
        max_new_tokens: length limit (the window), a number or knots [[step, value], ...].
        thinking_budget: tokens allowed in the think block before it is closed by force; 0 is no limit.
        repetition_tokens: stop after so many consecutive tokens above repetition_probability; 0 is off. M1: 3000.
        repetition_probability: see above. M1: 0.99.
        top_p, top_k: truncated sampling; refused in training unless allow_biased_ratio is set.
        allow_biased_ratio: accept that truncated sampling makes the importance ratio that of another distribution.
    """

    temperature: float = 1.0
    max_new_tokens: Schedule = 256
    thinking_budget: int = 0
    repetition_tokens: int = 0
    repetition_probability: float = 0.99
    top_p: float = 1.0
    top_k: int = 0
    allow_biased_ratio: bool = False

    def __post_init__(self) -> None:
        check_schedule("sampling.max_new_tokens", self.max_new_tokens)
        faults = [f"sampling: {fault}." for fault in self.at(Sampling(), 1).faults(vocab_size=1 << 31)]
        windows = self.max_new_tokens
        shortest = min(value for _, value in windows) if isinstance(windows, tuple) else windows
        if shortest < 1:
            faults.append(f"sampling.max_new_tokens must be at least 1 at every step; got {shortest:g}.")
        if self.temperature <= 0.0:
            faults.append(f"sampling.temperature must be above 0 to explore; got {self.temperature:g}.")
        if (self.top_p < 1.0 or self.top_k > 0) and not self.allow_biased_ratio:
            faults.append(
                f"sampling.top_p={self.top_p:g} and top_k={self.top_k} cut the distribution that is sampled from but "
                f"not the one that is learnt, which biases every importance ratio; use 1 and 0, or set "
                f"sampling.allow_biased_ratio=true to accept it."
            )
        if faults:
            raise ConfigError(*faults)

    def at(self, tokens: Sampling, max_new_tokens: int) -> Sampling:
        """The engine's sampling: these settings, with the token ids that `tokens` carries."""
        return replace(
            tokens,
            temperature=self.temperature,
            max_new_tokens=max_new_tokens,
            thinking_budget=self.thinking_budget,
            repetition_tokens=self.repetition_tokens,
            repetition_probability=self.repetition_probability,
            top_p=self.top_p,
            top_k=self.top_k,
        )


@dataclass(frozen=True)
class GroupRequest:
    """One prompt to be sampled `num_samples` times and scored; `index` is its place in the run's sequence of draws."""

    index: int
    prompt: Prompt
    num_samples: int
    seed: int
    max_new_tokens: int
    greedy: bool = False


@dataclass(frozen=True)
class Finished:
    """What a worker got done in one `advance`.

    Attributes:
        groups: complete and scored.
        failed: index of each group that came to nothing, with the reason.
        num_steps: decode steps made: a worker that makes none and finishes none is stuck.
    """

    groups: tuple[Group, ...] = ()
    failed: dict[int, str] = field(default_factory=dict)
    num_steps: int = 0


class _GroupUnderWay:
    """A request with the trajectories and pending scores of its members so far."""

    def __init__(self, request: GroupRequest) -> None:
        self.request = request
        self.trajectories: dict[int, Trajectory] = {}
        self.scores: dict[int, Future[Score]] = {}

    @property
    def is_done(self) -> bool:
        return len(self.scores) == self.request.num_samples and all(score.done() for score in self.scores.values())

    def group(self) -> Group:
        """The finished group; raises what a faulty reward function raised."""
        members = range(self.request.num_samples)
        return Group(
            index=self.request.index,
            prompt=self.request.prompt,
            trajectories=tuple(self.trajectories[member] for member in members),
            scores=tuple(self.scores[member].result() for member in members),
        )


class RolloutWorker:
    """Samples and scores groups; the calls come one at a time."""

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        decode: Callable[[Sequence[int]], str],
        sampling: Sampling,
        name: str = "rollout",
    ) -> None:
        self.engine = engine
        self.scorer = scorer
        self.decode = decode
        self.sampling = sampling
        self._receiver = Receiver(engine, name)
        self._under_way: dict[str, _GroupUnderWay] = {}
        self._refused: dict[int, str] = {}

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Queue groups; a request that the engine refuses is reported by the next `advance`."""
        for request in requests:
            try:
                self.engine.submit([self._engine_request(request)])
            except InvalidRequest as error:
                self._refused[request.index] = str(error)
            else:
                self._under_way[str(request.index)] = _GroupUnderWay(request)

    def advance(self, seconds: float) -> Finished:
        """Work until everything is finished or `seconds` are over, and return what was finished.

        Raises RewardError when a user's reward function is at fault.
        """
        end, num_steps = time.monotonic() + seconds, 0
        groups: list[Group] = []
        failed, self._refused = self._refused, {}
        while self._under_way and time.monotonic() < end:
            if self.engine.has_work:
                num_steps += 1
                for completion in self.engine.step():
                    self._begin_to_score(completion, failed)
            else:
                self._wait_for_a_score(end)
            groups += self._take_done()
        return Finished(tuple(groups), failed, num_steps)

    def load_weights(self, package: Package, version: int) -> Loaded:
        """Sample with `version` from the next token on; see `Receiver.load`, whose errors it raises."""
        return self._receiver.load(package, version)

    def close(self) -> None:
        """End the scorer's helper processes."""
        self._receiver.close()
        self.scorer.close()

    def _engine_request(self, request: GroupRequest) -> Request:
        sampling = replace(self.sampling, max_new_tokens=request.max_new_tokens)
        if request.greedy:
            sampling = replace(sampling, temperature=0.0, top_p=1.0, top_k=0)
        return Request(str(request.index), request.prompt.token_ids, request.num_samples, request.seed, sampling)

    def _begin_to_score(self, completion: Completion, failed: dict[int, str]) -> None:
        group = self._under_way.get(completion.request_id)
        if group is None:
            return  # another member failed before
        if completion.failed:
            failed[group.request.index] = completion.failed
            self.engine.cancel([completion.request_id])
            del self._under_way[completion.request_id]
            return
        prompt = group.request.prompt
        trajectory = single_turn(prompt, completion)
        group.trajectories[completion.member] = trajectory
        text = self.decode(response_text_ids(trajectory, prompt))
        group.scores[completion.member] = self.scorer.submit(prompt, trajectory, text)

    def _wait_for_a_score(self, end: float) -> None:
        pending = [score for group in self._under_way.values() for score in group.scores.values() if not score.done()]
        if pending:
            wait(pending, timeout=max(0.0, end - time.monotonic()), return_when=FIRST_COMPLETED)

    def _take_done(self) -> list[Group]:
        done = [name for name, group in self._under_way.items() if group.is_done]
        return [self._under_way.pop(name).group() for name in done]
