"""What a policy acts in when an episode has several turns: it writes, the environment answers, it writes on.

An environment knows neither engine nor learner, and keeps nothing of an episode: what it wants to remember goes into
`Observation.memory` and comes back with the next turn. So an episode is plain data, which survives a checkpoint, and
members of a group can take their turns in any order. `rollout/episodes.py` runs the episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from cispo.types import Prompt


@dataclass(frozen=True)
class Observation:
    """An environment's answer to one turn. What the policy is shown is before + text + after, or `token_ids`.

    Attributes:
        text: what anybody may have written, a hostile program too: no part of it becomes a control token, and it is
            cut to the limit of an observation.
        before, after: the environment's own words around it, such as "<result>"; control tokens where the tokenizer
            has them.
        token_ids: ids instead of all three, taken as they are.
        done: the episode is over; nothing is shown.
        memory: JSON-like, what `observe` gets with the next turn.
        tool: what was called, for records and metrics; "" if nothing was.
        verdict: how it ended, one word.
        is_error: it did not do what the policy asked for.
        note: one line for people who read traces.
        system_error: why this says nothing about the policy, so that the episode must not be learnt from; or "".
    """

    text: str = ""
    before: str = ""
    after: str = ""
    token_ids: Sequence[int] = ()
    done: bool = False
    memory: Any = None
    tool: str = ""
    verdict: str = ""
    is_error: bool = False
    note: str = ""
    system_error: str = ""


@dataclass(frozen=True)
class Turn:
    """What the policy did in one turn.

    Attributes:
        prompt: the episode's.
        number: counts from 0.
        text: the turn's tokens as text, without the special ones.
        token_ids: the ids that were sampled, the stop token included.
        memory: of the observation before; None in the first turn.
        seed: the same for the same turn of the same episode, for an environment that has chance in it.
    """

    prompt: Prompt
    number: int
    text: str
    token_ids: Sequence[int]
    memory: Any = None
    seed: int = 0


class Environment(Protocol):
    """Answers turns. Called from one thread; slow work belongs behind the future, for the engine samples meanwhile."""

    @property
    def words(self) -> tuple[str, ...]:
        """Strings that deserve a token of their own in a new tokenizer."""

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Those after which a turn ends, where the tokenizer has them as tokens. The end-of-text token always does."""

    def observe(self, turn: Turn) -> Future[Observation | None]:
        """Begin to answer; None if the turn asked for nothing, so that the episode is over with it.

        What the policy wrote is never an error: it is answered. An exception, now or in the future, ends the run.
        """

    def close(self) -> None:
        """End what it started."""


def answered(observation: Observation | None) -> Future[Observation | None]:
    """A future that is done, for environments that are quick."""
    future: Future[Observation | None] = Future()
    future.set_result(observation)
    return future


class ObservationTokenizer(Protocol):
    """The part of model.Tokenizer that shows observations to a policy."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text that is trusted."""

    def encode_untrusted(self, text: str) -> list[int]:
        """Ids of a text that is not: no added token among them."""


MAX_CHARACTERS_PER_TOKEN = 64
"""Of a text that is far too long only this much is encoded, from either end."""


@dataclass(frozen=True)
class ObservationEncoder:
    """Observations to token ids, the one way for sampling and for demonstrations.

    Attributes:
        tokenizer: of the policy.
        max_tokens: of `Observation.text`; a longer one loses its middle.
    """

    tokenizer: ObservationTokenizer
    max_tokens: int = field(default=256)

    def __call__(self, observation: Observation) -> list[int]:
        """The ids that the policy is shown."""
        if observation.token_ids:
            return list(observation.token_ids)
        before, after = self.tokenizer.encode(observation.before), self.tokenizer.encode(observation.after)
        return [*before, *self._cut(observation.text), *after]

    def _cut(self, text: str) -> list[int]:
        """Both ends of a text that is too long, with a mark between them; the end often says what went wrong."""
        longest = self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        if len(text) <= 2 * longest:
            ids = self.tokenizer.encode_untrusted(text)
            if len(ids) <= self.max_tokens:
                return ids
            head, tail = ids, ids
        else:
            head = self.tokenizer.encode_untrusted(text[:longest])
            tail = self.tokenizer.encode_untrusted(text[-longest:])
        mark = self.tokenizer.encode_untrusted(f"\n[cut: {len(text)} characters]\n")[: self.max_tokens]
        room = self.max_tokens - len(mark)
        num_tail = room // 2
        return [*head[: room - num_tail], *mark, *tail[len(tail) - num_tail :]]
