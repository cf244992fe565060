"""A rollout worker: an engine that samples and the scorer that judges, in one process.

Scoring begins as each trajectory ends and runs beside the sampling of the others, so slow rewards cost little. The
worker is a plain class: launch/ makes a Ray actor of it, or calls it in its own process, and it does not know which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cispo.errors import ConfigError, InvalidRequest, faults_of
from cispo.protocols import ModelState, Scorer
from cispo.schedule import Schedule, check_schedule
from cispo.types import Group, Score, Trajectory
from rollout.engine import Engine, Request
from rollout.episode import response_text_ids
from rollout.episodes import EndedEpisode, Episodes, Setting
from rollout.receiver import Loaded, Package, Receiver
from rollout.requests import Begun, Finished, GroupRequest
from rollout.sampling import Sampling
from rollout.turnstile import Turnstile


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
        faults = faults_of(check_schedule, "sampling.max_new_tokens", self.max_new_tokens)
        windows = self.max_new_tokens
        shortest = min(value for _, value in windows) if isinstance(windows, tuple) and not faults else windows
        tokens = Sampling(think_open_id=0, think_close_id=1)  # a tokenizer has its own
        faults += [f"sampling: {fault}." for fault in self.at(tokens, 1).faults(vocab_size=1 << 31)]
        if isinstance(shortest, int | float) and shortest < 1:
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


REPORT_SECONDS = 0.1
"""How long a finished group may wait for others before the driver is told: a call costs a few milliseconds."""


class _GroupUnderWay:
    """A request with the trajectories and pending scores of its members so far."""

    def __init__(self, request: GroupRequest) -> None:
        self.request = request
        self.trajectories: dict[int, Trajectory] = {}
        self.scores: dict[int, Future[Score]] = {}

    @property
    def num_left(self) -> int:
        """Members that have not ended."""
        return self.request.num_samples - len(self.trajectories)

    @property
    def num_unscored(self) -> int:
        """Members that have ended and wait for their reward."""
        return sum(not score.done() for score in self.scores.values())

    @property
    def is_sampled(self) -> bool:
        """All members have ended, whether they are scored or not."""
        return self.num_left == 0

    @property
    def is_done(self) -> bool:
        return self.is_sampled and all(score.done() for score in self.scores.values())

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
    """Samples and scores groups.

    The calls come one at a time, but for `load_weights` and `cut`, which another thread may make meanwhile: they take
    effect between two decode steps.
    """

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        decode: Callable[[Sequence[int]], str],
        sampling: Sampling,
        setting: Setting | None = None,
        name: str = "rollout",
    ) -> None:
        self.engine = engine
        self.scorer = scorer
        self.decode = decode
        self.sampling = sampling
        self._episodes = Episodes(engine, decode, setting)
        self._under_way: dict[str, _GroupUnderWay] = {}
        self._refused: dict[int, str] = {}
        self._between_steps = Turnstile()
        self._receiver = Receiver(engine, name, self._between_steps)
        self._cut: list[ModelState] = []

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Queue groups; a request that the engine refuses is reported by the next `advance`."""
        with self._between_steps:
            for request in requests:
                group = _GroupUnderWay(request)
                try:
                    self._start(group)
                except InvalidRequest as error:
                    self._refused[request.index] = str(error)
                else:
                    self._under_way[str(request.index)] = group

    def advance(self, seconds: float) -> Finished:
        """Work until everything is finished or `seconds` are over, and return what was finished.

        Returns soon after something was finished. Raises RewardError when a user's reward function is at fault.
        """
        end, num_steps, busy_seconds = time.monotonic() + seconds, 0, 0.0
        groups: list[Group] = []
        failed, self._refused = self._refused, {}
        while self._under_way and time.monotonic() < end:
            begin = time.monotonic()
            with self._between_steps:
                has_work = self.engine.has_work
                turns = self.engine.step() if has_work else []
                ended = [episode for turn in turns for episode in self._episodes.after_turn(turn)]
                for episode in [*ended, *self._episodes.go_on()]:
                    self._begin_to_score(episode, failed)
            if has_work:
                num_steps += 1
                busy_seconds += time.monotonic() - begin
            elif not self.engine.has_work and not self._wait_for_others(end):
                break  # cut: there is nothing to do before the next weights
            done = self._take_done()
            groups += done
            if done:
                end = min(end, time.monotonic() + REPORT_SECONDS)
        under_way = self._under_way.values()
        num_left, num_unscored = sum(g.num_left for g in under_way), sum(g.num_unscored for g in under_way)
        return Finished(tuple(groups), failed, num_steps, busy_seconds, num_left, num_unscored)

    def load_weights(self, package: Package, version: int) -> Loaded:
        """Sample with `version` from the next token on; see `Receiver.load`, whose errors it raises.

        What was cut goes on.
        """
        loaded = self._receiver.load(package, version)
        with self._between_steps:
            states, self._cut = self._cut, []
            for state in states:
                self.engine.resume(state)
        return loaded

    def cut(self) -> None:
        """Put everything under way aside until the next weights, so that the engine's memory and time are free."""
        with self._between_steps:
            for turn in [turn for name in list(self._under_way) for turn in self._episodes.turns_of(name)]:
                with suppress(InvalidRequest):  # none of it is in the engine
                    self._cut.append(self.engine.snapshot(turn))
                    self.engine.cancel([turn])

    def cancel(self, indices: Sequence[int]) -> None:
        """Forget these groups; unknown ones are ignored."""
        with self._between_steps:
            self._forget({str(index) for index in indices})

    def _forget(self, names: set[str]) -> None:
        """These groups, what was cut of them included."""
        turns = {turn for name in names for turn in self._episodes.turns_of(name)}
        self._cut = [state for state in self._cut if state.meta["request"]["id"] not in turns]
        for name in names:
            self._episodes.forget(name)
        self._under_way = {name: group for name, group in self._under_way.items() if name not in names}

    def snapshot(self) -> dict[int, Begun]:
        """What there is of every group of the training stream (indices from 0); the work goes on."""
        with self._between_steps:
            return {
                group.request.index: Begun(dict(group.trajectories), self._state(name), self._episodes.under_way(name))
                for name, group in self._under_way.items()
                if group.request.index >= 0
            }

    def _state(self, name: str) -> ModelState | None:
        """The engine's of members in their first turn; None if there are none, or if the engine cannot save them."""
        for state in self._cut:
            if state.meta["request"]["id"] == name:
                return state
        try:
            return self.engine.snapshot(name)
        except InvalidRequest:
            return None

    def close(self) -> None:
        """End the environment and the scorer's helper processes."""
        self._receiver.close()
        self._episodes.close()
        self.scorer.close()

    def _start(self, group: _GroupUnderWay) -> None:
        """Hand a group to the engine, from where it stood if it was begun before."""
        request, begun = group.request, group.request.begun
        if begun is None or not begun.has_all(request.num_samples):
            self._episodes.begin(self._engine_request(request), request.prompt)
            return
        num_left = request.num_samples - len(begun.trajectories)
        if num_left:
            self._episodes.resume(self._engine_request(request), request.prompt, begun.episodes, num_left)
        if begun.state:
            self.engine.resume(begun.state)
        for member, trajectory in begun.trajectories.items():
            self._score(group, member, trajectory)

    def _engine_request(self, request: GroupRequest) -> Request:
        sampling = replace(self.sampling, max_new_tokens=request.max_new_tokens)
        if request.greedy:
            sampling = replace(sampling, temperature=0.0, top_p=1.0, top_k=0)
        return Request(str(request.index), request.prompt.token_ids, request.num_samples, request.seed, sampling)

    def _begin_to_score(self, episode: EndedEpisode, failed: dict[int, str]) -> None:
        group = self._under_way.get(episode.group)
        if group is None:
            return  # another member failed before
        if episode.trajectory is None:
            failed[group.request.index] = episode.failed
            self._forget({episode.group})
            return
        self._score(group, episode.member, episode.trajectory)

    def _score(self, group: _GroupUnderWay, member: int, trajectory: Trajectory) -> None:
        prompt = group.request.prompt
        group.trajectories[member] = trajectory
        text = self.decode(response_text_ids(trajectory, prompt))
        group.scores[member] = self.scorer.submit(prompt, trajectory, text)

    def _wait_for_others(self, end: float) -> bool:
        """Until a score or an environment's answer comes, or an episode is over its time; False if none can."""
        groups = list(self._under_way.values())
        if any(group.is_done for group in groups):
            return True
        scores = [score for group in groups for score in group.scores.values()]
        pending: list[Future[Any]] = [future for future in scores if not future.done()]
        pending += self._episodes.pending
        if pending:
            timeout = min(end, self._episodes.next_deadline) - time.monotonic()
            wait(pending, timeout=max(0.0, timeout), return_when=FIRST_COMPLETED)
        return bool(pending)

    def _take_done(self) -> list[Group]:
        done = [name for name, group in self._under_way.items() if group.is_done]
        return [self._under_way.pop(name).group() for name in done]
