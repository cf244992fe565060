"""The scorer of a run: a finished trajectory in, the weighted sum of its parts out.

    value = weight["answer"] * answer + weight["format"] * format + weight["length"] * length + custom parts

The answer comes from the task's verifier, the format from rewards.answer_format, the length from rewards.length, and
custom parts from a user's function. Scoring runs in a few threads that only wait for processes, so the engine goes on
sampling. A system error says nothing about the model: it is retried, then the score is NaN and masked, never 0.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from cispo.errors import ConfigError, RewardError
from cispo.types import Prompt, Score, Trajectory, Verdict
from rewards.answer_format import OPEN, well_formed
from rewards.code_tests import CodeTestsConfig
from rewards.custom import CustomReward
from rewards.daemon_threads import DaemonThreads
from rewards.length import SoftOverlongConfig, overlong_penalty
from rewards.logic import LogicAnswerConfig
from rewards.logic_scorers import SCORERS
from rewards.math_answer import MathAnswerConfig
from rewards.repository_tests import RepositoryTestsConfig

CUSTOM = "custom"
"""As the verifier of a task: the custom reward's own "answer" part decides whether it is solved."""

_log = logging.getLogger(__name__)
_BUILT_IN_PARTS = ("answer", "format", "length")
_TRICKS = "tricks"
"""What the code verifier counts of a program's source: a part to be looked at, which no weight may pay or punish."""


class Verifier(Protocol):
    """Says whether a text solves a task; wrong or hostile text is a verdict, never an exception. Thread-safe."""

    def score(self, text: str, reference: Any) -> Score:
        """`value` from 0.0 to 1.0 is the answer part, `correct` means fully solved; NaN with SYSTEM_ERROR."""


@runtime_checkable
class Closable(Protocol):
    """Something that owns processes or threads."""

    def close(self) -> None:
        """End them."""


@runtime_checkable
class Startable(Protocol):
    """A verifier that can tell before its first score whether it will work."""

    def start(self) -> None:
        """Bring up what scores need; raises RewardError if that fails. Harmless after `close`."""


@dataclass(frozen=True)
class RewardsConfig:
    """What a trajectory is paid for, and by whom it is judged.

    Attributes:
        verifiers: verifier of each task by name: "math", "code", "logic", "repository" or "custom".
        default_verifier: verifier of a task that `verifiers` does not name, but for those that only "logic" knows.
        weights: weight of each part in the sum; a custom part that is not named here weighs 1. An omitted built-in
            part weighs 0: it is logged and not learnt from.
        soft_overlong: the length part; without a limit there is none.
        math: the math verifier.
        code: the code verifier.
        logic: the verifier of procedural tasks.
        repository: the verifier of patches.
        custom: "path/to/file.py:function", or "" for none.
        retries: how often a trajectory is scored again after a system error before it is masked.
        num_threads: trajectories scored at once; threads wait, the work is done in other processes.
    """

    verifiers: dict[str, str] = field(default_factory=dict)
    default_verifier: str = "math"
    weights: dict[str, float] = field(default_factory=lambda: {"answer": 1.0, "format": 0.0, "length": 1.0})
    soft_overlong: SoftOverlongConfig = field(default_factory=SoftOverlongConfig)
    math: MathAnswerConfig = field(default_factory=MathAnswerConfig)
    code: CodeTestsConfig = field(default_factory=CodeTestsConfig)
    logic: LogicAnswerConfig = field(default_factory=LogicAnswerConfig)
    repository: RepositoryTestsConfig = field(default_factory=RepositoryTestsConfig)
    custom: str = ""
    retries: int = 2
    num_threads: int = 4

    def __post_init__(self) -> None:
        faults = [
            f"rewards.weights.{name} must be a finite number, because values are sums, but is {weight}; correct it."
            for name, weight in self.weights.items()
            if not math.isfinite(weight)
        ]
        if _TRICKS in self.weights:
            faults.append(
                f"rewards.weights.{_TRICKS} must not be set, because honest programs have such lines too, and a policy "
                "that is paid for hiding them learns to hide them; remove it."
            )
        unknown = sorted(set(self.weights) - {*_BUILT_IN_PARTS, _TRICKS})
        if unknown and not self.custom:
            faults.append(
                f"rewards.weights names {', '.join(unknown)}, but without a custom reward the parts are "
                f"{', '.join(_BUILT_IN_PARTS)}; correct the name or set rewards.custom."
            )
        if self.retries < 0 or self.num_threads < 1:
            faults.append(
                f"rewards needs retries >= 0 and num_threads >= 1, but got {self.retries} and {self.num_threads}; "
                "raise them."
            )
        if CUSTOM in (self.default_verifier, *self.verifiers.values()) and not self.custom:
            faults.append('A task has the verifier "custom", but rewards.custom is empty; name file.py:function.')
        if faults:
            raise ConfigError(*faults)

    def verifier_of(self, task: str) -> str:
        """The name of the verifier of a task."""
        return self.verifiers.get(task, "logic" if task in SCORERS else self.default_verifier)


class Rewards:
    """The `Scorer` of a rollout worker (cispo.protocols)."""

    def __init__(
        self, config: RewardsConfig, verifiers: Mapping[str, Verifier], *, owned: Sequence[Closable] = ()
    ) -> None:
        """Put the parts together.

        Args:
            config: the weights.
            verifiers: by name, e.g. {"math": MathAnswer(config.math), "code": CodeTests(pool, config.code)}.
            owned: what else is closed with the scorer, e.g. the sandbox pool that no other verifier uses.

        Raises:
            ConfigError: a task names a verifier that is not among them, or the custom reward cannot be loaded.
        """
        self._config = config
        self._verifiers = dict(verifiers)
        self._owned = tuple(owned)
        missing = {config.default_verifier, *config.verifiers.values()} - {*verifiers, CUSTOM}
        if missing:
            raise ConfigError(
                f"rewards.verifiers names {', '.join(sorted(missing))}, but the verifiers are "
                f"{', '.join(sorted({*verifiers, CUSTOM}))}; correct the name."
            )
        self._custom = CustomReward(config.custom) if config.custom else None
        self._threads = DaemonThreads(config.num_threads, "rewards")
        self._start_fault: Exception | None = None
        self._logged: set[str] = set()

    def start(self) -> None:
        """Bring up the verifiers that the configuration names, in the background; returns at once.

        If one cannot start, scores that begin after that raise RewardError with the reason.
        """
        threading.Thread(target=self._start_verifiers, name="rewards-start", daemon=True).start()

    def submit(self, prompt: Prompt, trajectory: Trajectory, text: str) -> Future[Score]:
        """Begin to score; `text` is the decoded action tokens.

        The future raises RewardError for a faulty custom reward, verifier or reference, never for the model's text.
        """
        return self._threads.submit(self._score, prompt, trajectory, text)

    def close(self) -> None:
        """End the verifiers' processes and cancel what was not begun. A thread that hangs is not waited for."""
        self._threads.close()
        for verifier in self._verifiers.values():
            if isinstance(verifier, Closable):
                verifier.close()
        for resource in self._owned:
            resource.close()

    def _start_verifiers(self) -> None:
        for name in {self._config.default_verifier, *self._config.verifiers.values()} - {CUSTOM}:
            verifier = self._verifiers[name]
            try:
                if isinstance(verifier, Startable):
                    verifier.start()
            except Exception as error:  # nobody waits for this thread: the next score tells
                self._start_fault = error
                return

    def _score(self, prompt: Prompt, trajectory: Trajectory, text: str) -> Score:
        if self._start_fault is not None:
            raise RewardError(str(self._start_fault)) from self._start_fault
        # A chat template may have opened the think block already; put back, the text says so by itself.
        whole = OPEN + text if prompt.text.rstrip().endswith(OPEN) else text
        name = self._config.verifier_of(prompt.task)
        form = self._form_parts(trajectory, whole, name)
        if name == CUSTOM:
            return self._sum(form | self._custom_parts(prompt, trajectory, text, None), None)
        verified = self._verify(self._verifiers[name], prompt, whole)
        if not verified.usable:
            self._log_once(f"A score ended in a system error and is masked: {verified.note}")
            return Score(float("nan"), correct=False, parts=form, verdict=verified.verdict, note=verified.note)
        custom = self._custom_parts(prompt, trajectory, text, verified)
        seen = {_TRICKS: verified.parts[_TRICKS]} if _TRICKS in verified.parts else {}
        return self._sum({"answer": verified.value} | form | seen | custom, verified)

    def _log_once(self, message: str) -> None:
        # What close cut off is no news. A race of two threads writes a line twice, no more.
        if message not in self._logged and not self._threads.closed:
            self._logged.add(message)
            _log.warning(message)

    def _form_parts(self, trajectory: Trajectory, whole: str, verifier: str) -> dict[str, float]:
        boxed = verifier == "math" and self._config.math.answer_is_boxed
        parts = {"format": well_formed(whole, boxed=boxed, marked=verifier == "logic")}
        overlong = self._config.soft_overlong
        if overlong.limit_tokens:
            parts["length"] = overlong_penalty(trajectory.num_actions, trajectory.stop_reason, overlong)
        return parts

    def _custom_parts(
        self, prompt: Prompt, trajectory: Trajectory, text: str, verified: Score | None
    ) -> dict[str, float]:
        return self._custom.parts(prompt, trajectory, text, verified) if self._custom is not None else {}

    def _sum(self, parts: dict[str, float], verified: Score | None) -> Score:
        """The weighted sum. Without a verifier's score the answer part itself says whether the task is solved."""
        correct = parts["answer"] >= 1.0 if verified is None else verified.correct
        return Score(
            value=sum(self._weight(name) * part for name, part in parts.items()),
            correct=correct,
            parts=parts,
            verdict=verified.verdict if verified else Verdict.CORRECT if correct else Verdict.WRONG,
            note=verified.note if verified else "",
        )

    def _weight(self, part: str) -> float:
        if part in self._config.weights:
            return self._config.weights[part]
        return 0.0 if part in (*_BUILT_IN_PARTS, _TRICKS) else 1.0

    def _verify(self, verifier: Verifier, prompt: Prompt, whole: str) -> Score:
        """The verifier's score, tried again after a system error."""
        for _ in range(1 + self._config.retries):
            try:
                score = verifier.score(whole, prompt.reference)
            except OSError as error:  # no process, descriptor or disk left: the machine's fault, and it may pass
                score = Score(float("nan"), False, {}, Verdict.SYSTEM_ERROR, note=f"verifier: {error}")
            except Exception as error:
                raise RewardError(
                    f"The verifier of task {prompt.task} raised {type(error).__name__} on prompt {prompt.id}: {error}"
                ) from error
            if score.usable:
                break
        return score
