"""Every error that this project raises on purpose.

One small tree, so that a caller can catch what it can mend and let the rest end the run. A message is one sentence
that says the rule, the reason and the values, and what to do. All of them survive pickling, because most are
raised in a worker process and read on the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class CispoError(Exception):
    """Base of every error that is a message to the user rather than a defect; the command line prints it bare."""


class ConfigError(CispoError):
    """The configuration cannot work. `faults` holds every fault found, so that the user mends them in one go."""

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return self.faults[0]
        return "\n".join(f"  {number}. {fault}" for number, fault in enumerate(self.faults, start=1))


def faults_of(check: Callable[..., Any], *arguments: Any, **named: Any) -> list[str]:
    """What `check(...)` refuses: the faults of the ConfigError that it raises, or none. So all can be told at once."""
    try:
        check(*arguments, **named)
    except ConfigError as error:
        return list(error.faults)
    return []


class DataError(CispoError):
    """A prompt file or data set is missing, unreadable or has more bad rows than allowed."""


class CheckpointError(CispoError):
    """A checkpoint or a model folder is missing, incomplete or does not fit the configuration."""


class RewardError(CispoError):
    """A reward function raised, or returned something that is not a finite number."""


class EpisodeError(CispoError):
    """An environment raised instead of answering what the policy wrote."""


class WeightSyncError(CispoError):
    """A stream of weights has a wrong checksum, version, name or shape; the receiver keeps its old weights."""


class NeedsWhole(CispoError):
    """A worker cannot take a version in the short form that it was offered, and asks for all of its bytes."""


class WorkerDied(CispoError):
    """A worker process ended or cannot be reached; its unfinished prompts are known and can be given to another."""


class DeadlineExceeded(CispoError):
    """Somebody waited too long; the message says who waited for whom, for what, and for how many seconds."""


class NoSignal(CispoError):
    """The draw limit was reached and every group was flat, stale or failed: there is nothing to learn from."""


class InvalidRequest(CispoError):
    """A request that the engine refuses at the border: an empty prompt, a token id out of range, a length limit."""
