"""Runs the episodes of a worker: a turn that ended goes to the environment, its answer back to the engine.

Members of a group take their turns independently, and while an environment works the engine samples the others. The
numbers of a member are a function of its seed and of the answers that it got: each turn has a seed of its own, made of
the group's seed, the member and the turn. What else is in the batch changes only how sums are rounded; `lockstep`
takes that away too (docs/episodes.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from cispo.errors import EpisodeError, InvalidRequest
from cispo.types import ObservationSpan, Prompt, StopReason, Trajectory
from rollout.engine import Completion, Engine, Request
from rollout.environment import Environment, Observation, ObservationEncoder, Turn
from rollout.environments import EpisodeConfig
from rollout.episode import EpisodeSoFar
from rollout.seeding import stable_rng


@dataclass(frozen=True)
class Setting:
    """What episodes of several turns are played in.

    Attributes:
        environment: answers the turns.
        config: budgets; `max_tokens` is at least 1.
        encode: observations to token ids.
        stop_token_ids: those that end a turn.
        lockstep: go on only when all answers are there and the engine has nothing else to do, in order of the groups.
    """

    environment: Environment
    config: EpisodeConfig
    encode: ObservationEncoder
    stop_token_ids: tuple[int, ...]
    lockstep: bool = False


@dataclass(frozen=True)
class EndedEpisode:
    """A member that is through, or that came to nothing.

    Attributes:
        group: id of the request that began it.
        trajectory: None if `failed`.
        failed: why it must not be learnt from.
    """

    group: str
    member: int
    trajectory: Trajectory | None = None
    failed: str = ""


@dataclass
class _Group:
    """A group with members under way.

    Attributes:
        place: orders the groups by when they began.
        episodes: of the members that took a turn and are in the next one.
        deadlines: when each member's seconds are over, from its first turn on.
    """

    request: Request
    prompt: Prompt
    place: int
    num_left: int
    episodes: dict[int, EpisodeSoFar] = field(default_factory=dict)
    deadlines: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """A turn that the environment has not answered, or whose answer has not been taken up."""

    episode: EpisodeSoFar
    answer: Future[Observation | None]
    state: Any  # the engine's, after the turn


class Episodes:
    """The episodes under way in one engine. All calls come from one thread.

    Args:
        engine: samples the turns.
        decode: token ids to text, without special tokens.
        setting: None makes every episode one turn.
        clock: seconds, for the time budget.
    """

    def __init__(
        self,
        engine: Engine,
        decode: Callable[[Sequence[int]], str],
        setting: Setting | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._decode = decode
        self._setting = setting
        self._clock = clock
        self._groups: dict[str, _Group] = {}
        self._turns: dict[str, tuple[str, int]] = {}  # later turns in the engine: whose they are
        self._asked: dict[tuple[str, int], _Asked] = {}
        self._num_begun = 0

    @property
    def pending(self) -> list[Future[Observation | None]]:
        """Answers that are still to come: what a worker with nothing else to do waits for."""
        return [asked.answer for asked in self._asked.values() if not asked.answer.done()]

    @property
    def next_deadline(self) -> float:
        """When, by the clock, the first of them is over its time; infinity if none is pending."""
        waiting = [key for key, asked in self._asked.items() if not asked.answer.done()]
        return min((self._groups[name].deadlines[member] for name, member in waiting), default=float("inf"))

    def begin(self, request: Request, prompt: Prompt) -> None:
        """Submit the first turn of all members of a group. Raises InvalidRequest as the engine does."""
        first = request
        if self._setting is not None:
            room = self._setting.config.max_tokens - len(prompt.token_ids)
            if room < 1:
                raise InvalidRequest(
                    f"An episode needs room for an answer, but the prompt {prompt.id} has {len(prompt.token_ids)} "
                    f"tokens and a whole episode {self._setting.config.max_tokens}; raise episode.max_tokens."
                )
            first = replace(
                request,
                sampling=replace(request.sampling, max_new_tokens=min(request.sampling.max_new_tokens, room)),
                keep_state_after=self._setting.stop_token_ids,
            )
        self._engine.submit([first])
        self._groups[request.id] = _Group(request, prompt, self._num_begun, request.num_samples)
        self._num_begun += 1

    def after_turn(self, completion: Completion) -> list[EndedEpisode]:
        """Take a turn; the episode in a list if that was its end. Completions of groups that were forgotten are not."""
        name, member = self._turns.pop(completion.request_id, (completion.request_id, completion.member))
        group = self._groups.get(name)
        if group is None:
            return []
        if completion.failed:
            return [EndedEpisode(name, member, failed=completion.failed)]
        episode = group.episodes.pop(member, None) or EpisodeSoFar.of(group.prompt)
        episode = episode.after_turn(completion)
        if self._setting is None or completion.stop_reason is not StopReason.STOP:
            return [self._end(name, member, episode, completion.stop_reason)]
        if self._clock() >= group.deadlines.setdefault(member, self._clock() + self._setting.config.seconds):
            return [self._end(name, member, episode, StopReason.TIME)]
        answer = self._ask(group, member, episode)
        if answer.done() and self._result(group, answer) is None:
            return [self._end(name, member, episode, StopReason.STOP)]
        self._asked[name, member] = _Asked(episode, answer, completion.state)
        return []

    def go_on(self) -> list[EndedEpisode]:
        """Submit the next turn of every episode that may go on; returns those that ended instead."""
        if self._setting is None or not self._asked:
            return []
        ended = self._out_of_time()
        done = [key for key, asked in self._asked.items() if asked.answer.done()]
        if self._setting.lockstep and (self._engine.has_work or len(done) < len(self._asked)):
            return ended
        for name, member in sorted(done, key=lambda key: (self._groups[key[0]].place, key[1])):
            ended += self._take_up(name, member, self._asked.pop((name, member)))
        return ended

    def turns_of(self, name: str) -> list[str]:
        """Ids of the requests by which a group may be in the engine."""
        return [name, *(turn for turn, (group, _) in self._turns.items() if group == name)]

    def forget(self, name: str) -> None:
        """Drop a group: what of it is in the engine is cancelled, and what its environment does is ended."""
        later = [turn for turn, (group, _) in self._turns.items() if group == name]
        self._engine.cancel([name, *later])
        for turn in later:
            del self._turns[turn]
        for key in [key for key in self._asked if key[0] == name]:
            self._asked.pop(key).answer.cancel()
        self._groups.pop(name, None)

    def close(self) -> None:
        """End the environment."""
        for asked in self._asked.values():
            asked.answer.cancel()
        if self._setting is not None:
            self._setting.environment.close()

    def under_way(self, name: str) -> dict[int, EpisodeSoFar]:
        """The members of a group that wait for an answer or are in a later turn, as plain data for `resume`."""
        waiting = {member: asked.episode for (group, member), asked in self._asked.items() if group == name}
        return waiting | (self._groups[name].episodes if name in self._groups else {})

    def resume(self, request: Request, prompt: Prompt, members: Mapping[int, EpisodeSoFar], num_left: int) -> None:
        """Go on with members that `under_way` gave, in this process or another.

        A turn that was half sampled begins anew, with the same seed, and the environment is asked again what it had
        not answered, with the same memory. Seconds count from now. Raises InvalidRequest as the engine does.

        Args:
            request, prompt: as given to `begin`.
            members: those to go on with.
            num_left: how many members of the group have not ended: these and those that the engine resumes itself.
        """
        group = self._groups[request.id] = _Group(request, prompt, self._num_begun, num_left)
        self._num_begun += 1
        for member, episode in sorted(members.items()):
            assert self._setting is not None, "only episodes of several turns can be between two of them"
            group.deadlines[member] = self._clock() + self._setting.config.seconds
            if episode.waits_for_an_answer:
                self._asked[request.id, member] = _Asked(episode, self._ask(group, member, episode), None)
                continue
            group.episodes[member] = episode
            room = self._setting.config.max_tokens - len(episode.token_ids_T)
            left = min(room, request.sampling.max_new_tokens - episode.num_new)
            for refused in self._submit(group, member, left, None):
                raise InvalidRequest(refused.failed)

    def _ask(self, group: _Group, member: int, episode: EpisodeSoFar) -> Future[Observation | None]:
        assert self._setting is not None, "an environment is asked, but there is none"
        number = episode.num_turns - 1
        start = episode.observations[-1].stop if episode.observations else len(group.prompt.token_ids)
        token_ids = episode.token_ids_T[start:].tolist()
        turn = Turn(
            prompt=group.prompt,
            number=number,
            text=self._decode(token_ids),
            token_ids=token_ids,
            memory=episode.memory,
            seed=stable_rng("environment", group.request.seed, member, number).getrandbits(63),
        )
        try:
            return self._setting.environment.observe(turn)
        except Exception as error:
            raise _fault(group.prompt, error) from error

    def _out_of_time(self) -> list[EndedEpisode]:
        ended = []
        now = self._clock()
        for (name, member), asked in list(self._asked.items()):
            if not asked.answer.done() and now >= self._groups[name].deadlines[member]:
                asked.answer.cancel()
                del self._asked[name, member]
                ended.append(self._end(name, member, asked.episode, StopReason.TIME))
        return ended

    def _take_up(self, name: str, member: int, asked: _Asked) -> list[EndedEpisode]:
        """What an answer makes of an episode: the next turn in the engine, or its end."""
        assert self._setting is not None, "an answer came, but nobody was asked"
        group, episode, config = self._groups[name], asked.episode, self._setting.config
        answer = self._result(group, asked.answer)
        if answer is None:
            return [self._end(name, member, episode, StopReason.STOP)]
        if answer.system_error:
            return [EndedEpisode(name, member, failed=answer.system_error)]
        span = ObservationSpan(0, 0, answer.tool, answer.verdict, answer.is_error, answer.note)
        token_ids = self._setting.encode(answer)
        room = config.max_tokens - len(episode.token_ids_T) - len(token_ids)
        left = min(room, group.request.sampling.max_new_tokens - episode.num_new)
        reason = _end_of(answer, episode.num_turns >= config.max_turns, left < 1)
        if reason is not None:  # nothing follows that an observation could be read for
            return [self._end(name, member, episode.after_observation([], span, answer.memory), reason)]
        group.episodes[member] = episode.after_observation(token_ids, span, answer.memory)
        return self._submit(group, member, left, asked.state)

    def _submit(self, group: _Group, member: int, max_new_tokens: int, state: Any) -> list[EndedEpisode]:
        """The next turn into the engine; the episode as failed if it is refused."""
        assert self._setting is not None, "an episode of one turn has no second"
        episode, name = group.episodes[member], group.request.id
        request = Request(
            id=f"{name}/{member}/{episode.num_turns}",
            token_ids=episode.token_ids_T,
            seed=turn_seed(group.request.seed, member, episode.num_turns),
            sampling=replace(group.request.sampling, max_new_tokens=max_new_tokens),
            keep_state_after=self._setting.stop_token_ids,
            state=state,
        )
        try:
            self._engine.submit([request])
        except InvalidRequest as error:
            return [EndedEpisode(name, member, failed=str(error))]
        self._turns[request.id] = name, member
        return []

    def _end(self, name: str, member: int, episode: EpisodeSoFar, reason: StopReason) -> EndedEpisode:
        group = self._groups[name]
        group.num_left -= 1
        if not group.num_left:
            del self._groups[name]
        return EndedEpisode(name, member, episode.trajectory(reason))

    def _result(self, group: _Group, answer: Future[Observation | None]) -> Observation | None:
        try:
            return answer.result()
        except Exception as error:
            raise _fault(group.prompt, error) from error


def turn_seed(seed: int, member: int, turn: int) -> int:
    """The seed of a later turn of one member; the first has the group's own, and the engine tells members apart."""
    return stable_rng("turn", seed, member, turn).getrandbits(63)


def _end_of(answer: Observation, turns_are_spent: bool, tokens_are_spent: bool) -> StopReason | None:
    if answer.done:
        return StopReason.STOP
    if turns_are_spent:
        return StopReason.TURNS
    return StopReason.LENGTH if tokens_are_spent else None


def _fault(prompt: Prompt, error: Exception) -> EpisodeError:
    said = " ".join(str(error).split())
    return EpisodeError(
        f"The environment raised {type(error).__name__} on prompt {prompt.id}: {said}; it has to answer whatever the "
        "policy writes."
    )
