"""A user's own reward: a function in a file, named as `rewards.custom=path/to/file.py:function`.

    def reward(prompt, text, reference, **info) -> float | dict[str, float]

It is loaded and its signature checked before any process starts (ConfigError). At run time an exception, or a value
that is not a finite number, ends the run with one sentence (RewardError): a reward that is silently wrong is worse
than a run that stops.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cispo.errors import ConfigError, RewardError
from cispo.types import Prompt, Score, Trajectory

_FORM = "def {name}(prompt, text, reference, **info)"
_INFO = ("prompt_id", "task", "num_actions", "stop_reason", "correct", "verdict")


class CustomReward:
    """The loaded function. Called from several threads at once, so it must not keep state between calls."""

    def __init__(self, path: str) -> None:
        file, _, self._name = path.rpartition(":")
        if not file or not self._name:
            raise ConfigError(
                f'rewards.custom must read "path/to/file.py:function", but is "{path}"; add the missing half.'
            )
        self._file = Path(file).expanduser().resolve()
        self._function = self._load()
        self._check_signature()
        self._first_line = inspect.unwrap(self._function).__code__.co_firstlineno

    def parts(self, prompt: Prompt, trajectory: Trajectory, text: str, score: Score | None) -> dict[str, float]:
        """Call the function; its parts by name. A plain number is the part "custom", or "answer" for a verifier.

        Args:
            prompt, trajectory, text: as given to the scorer.
            score: what the verifier of the task found; None if this function is the verifier.

        Raises:
            RewardError: the function raised, returned something that is not a finite number, or a wrong part name.
        """
        info = {
            "prompt_id": prompt.id,
            "task": prompt.task,
            "num_actions": trajectory.num_actions,
            "stop_reason": str(trajectory.stop_reason),
            "correct": None if score is None else score.correct,
            "verdict": None if score is None else str(score.verdict),
        }
        try:
            returned = self._function(prompt.text, text, prompt.reference, **info)
        except Exception as error:
            raise RewardError(
                f"The reward function {self._name} in {self._file}, line {_line_in(self._file, error)}, raised "
                f"{_sentence(error)} on prompt {prompt.id}; mend it, or let it return a number there."
            ) from error
        if not isinstance(returned, Mapping):
            returned = {"answer" if score is None else "custom": returned}
        self._check_parts(returned, prompt, is_verifier=score is None)
        return {name: float(value) for name, value in returned.items()}

    def _check_parts(self, parts: Mapping[Any, Any], prompt: Prompt, *, is_verifier: bool) -> None:
        who = f"The reward function {self._name} in {self._file}, line {self._first_line},"
        for name, value in parts.items():
            if not _is_finite_number(value):
                raise RewardError(
                    f"{who} returned {repr(value)[:80]} for the part {name!r} on prompt {prompt.id}, but a reward must "
                    "be a finite number; mend it, or let it return a number there."
                )
            if not isinstance(name, str) or name in ("format", "length") or (name == "answer") > is_verifier:
                raise RewardError(
                    f"{who} returned a part named {name!r} on prompt {prompt.id}, but a part needs a name of its own, "
                    "not that of a built-in one; rename it."
                )
        if is_verifier and "answer" not in parts:
            raise RewardError(
                f"{who} is the verifier of task {prompt.task} but returned the parts {sorted(parts)} on prompt "
                f'{prompt.id} without "answer"; add it: 1.0 means solved.'
            )

    def _load(self) -> Callable[..., Any]:
        if not self._file.is_file():
            raise ConfigError(
                f"rewards.custom names {self._file}:{self._name}, but there is no such file; correct the path."
            )
        spec = importlib.util.spec_from_file_location(f"custom_reward_{self._file.stem}", self._file)
        if spec is None or spec.loader is None:
            raise ConfigError(
                f"rewards.custom names {self._file}:{self._name}, which is not a Python file; give it the ending .py."
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses with postponed annotations look their module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ConfigError(
                f"The file {self._file} with the reward function {self._name} cannot be imported: line "
                f"{_line_in(self._file, error)} raised {_sentence(error)}; mend the file."
            ) from error
        if not inspect.isfunction(module.__dict__.get(self._name)):
            raise ConfigError(
                f"rewards.custom names {self._file}:{self._name}, but the file has no function of that name; "
                f"write {_FORM.format(name=self._name)}."
            )
        function: Callable[..., Any] = module.__dict__[self._name]
        return function

    def _check_signature(self) -> None:
        fits = not inspect.iscoroutinefunction(self._function)
        signature = inspect.signature(self._function)
        try:
            signature.bind("prompt", "text", "reference", **dict.fromkeys(_INFO))
        except TypeError:
            fits = False
        if not fits:
            raise ConfigError(
                f"The reward function in {self._file} must read {_FORM.format(name=self._name)}, because it is called "
                f"that way with {', '.join(_INFO)} as info, but it reads def {self._name}{signature}; change it."
            )


def _is_finite_number(value: Any) -> bool:
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _sentence(error: Exception) -> str:
    """The error in one line, however many it has."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _line_in(file: Path, error: Exception) -> int | str:
    """The innermost line of the user's file that the error passed through, or that of a syntax error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return next((line for line in reversed(lines) if line), "unknown")
