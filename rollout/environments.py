"""The environment that a configuration names: none, the tools, or a user's own; and the budgets of its episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cispo.errors import ConfigError
from rollout.environment import Environment
from rollout.own_module import load_module
from rollout.tool_calls import tool_words
from rollout.tool_environment import TOOLS, ToolEnvironment
from rollout.tool_folder import FolderLimits

if TYPE_CHECKING:
    from sandbox import ProgramPool

WITH_TOOLS = "tools"
PARTS = ("words", "stop_words", "observe", "close")


@dataclass(frozen=True)
class EpisodeConfig:
    """Episodes of several turns.

    Attributes:
        environment: "" for one turn, as ever; "tools"; or an environment of one's own, `path/to/file.py:make` or
            `package.module:make`.
        tools: what "tools" offers: python, shell.
        max_turns: turns of the policy; one that asks for more ends with stop reason "turns".
        max_tokens: of a whole trajectory, prompt and observations included; 0 is engine.max_length. The policy's own
            tokens, of all turns together, are bounded by sampling.max_new_tokens.
        seconds: wall-clock time of an episode from the end of its first turn; what is running in an environment then
            is ended, a turn that is being sampled is not.
        max_observation_tokens: of one observation; the middle of a longer one is cut out.
        folder_bytes: what the working folder of an episode with tools may hold.
    """

    environment: str = ""
    tools: tuple[str, ...] = TOOLS
    max_turns: int = 4
    max_tokens: int = 0
    seconds: float = 120.0
    max_observation_tokens: int = 256
    folder_bytes: int = 65536

    def __post_init__(self) -> None:
        faults = []
        unknown = sorted(set(self.tools) - set(TOOLS))
        if unknown or not self.tools:
            faults.append(f"episode.tools are some of {', '.join(TOOLS)}; got {', '.join(unknown) or 'none'}.")
        if self.environment not in ("", WITH_TOOLS) and ":" not in self.environment:
            faults.append(
                f'episode.environment is "", "{WITH_TOOLS}", path/to/file.py:make or package.module:make; got '
                f"{self.environment!r}."
            )
        for name, least in (("max_turns", 1), ("max_tokens", 0), ("max_observation_tokens", 16), ("folder_bytes", 0)):
            if getattr(self, name) < least:
                faults.append(f"episode.{name} must be at least {least}, got {getattr(self, name)}.")
        if not self.seconds > 0:
            faults.append(f"episode.seconds must be above 0, got {self.seconds}.")
        if faults:
            raise ConfigError(*faults)

    @property
    def needs_sandbox(self) -> bool:
        """Its environment runs programs. One of one's own opens a pool when it wants one."""
        return self.environment == WITH_TOOLS


def make_environment(config: EpisodeConfig, open_pool: Callable[[], ProgramPool]) -> Environment | None:
    """The environment of a worker; None for episodes of one turn.

    Args:
        config: which one.
        open_pool: gives the worker's sandbox; called at most once, and only if the environment wants it.

    Raises:
        ConfigError: the user's own cannot be made.
    """
    if not config.environment:
        return None
    if config.environment == WITH_TOOLS:
        return ToolEnvironment(open_pool(), config.tools, FolderLimits(config.folder_bytes))
    return _own_environment(config.environment, open_pool)


def environment_words(config: EpisodeConfig) -> tuple[str, ...]:
    """The strings that deserve a token of their own in a new tokenizer."""
    if not config.environment:
        return ()
    if config.environment == WITH_TOOLS:
        return tool_words(config.tools)
    environment = _own_environment(config.environment, _no_pool)
    words = tuple(environment.words)
    environment.close()
    return words


def _no_pool() -> ProgramPool:
    raise ConfigError("An environment may open its pool when it first observes, not when it is made.")


def _own_environment(place: str, open_pool: Callable[[], ProgramPool]) -> Environment:
    """An environment from `path/to/file.py:make` or `package.module:make`, called as make(open_pool)."""
    module_name, _, name = place.rpartition(":")
    try:
        environment: Environment = getattr(load_module(module_name), name)(open_pool)
    except Exception as error:  # a stranger's file may raise anything while it is imported
        raise ConfigError(
            f"The environment episode.environment={place} cannot be made ({type(error).__name__}: {error}); it must be "
            "path/to/file.py:make or package.module:make, and is called as make(open_pool)."
        ) from error
    missing = [part for part in PARTS if not hasattr(environment, part)]
    if missing:
        raise ConfigError(
            f"The environment {place} has no {', '.join(missing)}; docs/episodes.md shows a whole environment."
        )
    return environment
