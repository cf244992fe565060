"""`cispo rewards audit`: do the configured rewards pay what they should, before a run finds out that they do not?

Right answers, nonsense, other rows' answers and known tricks (rewards.probes) go through the same scorer as in a run.
A right answer that is not marked as correct is a false negative, anything else that is, a false positive. The table
(launch/audit_table.py) is for people, `--json` for machines, and the exit status for both.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cispo.errors import ConfigError, RewardError
from cispo.types import Prompt, Score, StopReason, Trajectory, Verdict
from configs.schema import RunConfig
from launch import build
from launch.compose import compose
from rewards.probes import GARBAGE, GOLD, Probe, gold_text, probes_of
from rewards.reward import Rewards
from rollout.prompt_files import PromptLimit, read_rows
from rollout.prompts import make_tasks
from rollout.seeding import stable_rng

_SET = "mine"
_NO_LIMIT = PromptLimit(1 << 40, "nothing")
_SOLUTION_COLUMNS = ("solution", "gold")
_NUM_OTHERS = 2  # other rows' answers that each prompt is tried with
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class AuditOptions:
    """How much is tried and what is put up with.

    Attributes:
        max_prompts: prompts that are tried, the first of a file; of a task, that many are drawn.
        max_false_negatives: share of right answers that may fail.
        max_false_positives: share of all other probes that may be marked as correct.
    """

    max_prompts: int = 200
    max_false_negatives: float = 0.0
    max_false_positives: float = 0.0

    def __post_init__(self) -> None:
        if self.max_prompts < 1:
            raise ConfigError(f"--max-prompts must be at least 1, got {self.max_prompts}.")
        for name in ("max_false_negatives", "max_false_positives"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} is a share from 0 to 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Subject:
    """A prompt, who verifies it, and a right text if its row has one."""

    prompt: Prompt
    verifier: str
    solution: str | None


@dataclass(frozen=True)
class Finding:
    """What one probe of one prompt came to. `verdict` is "raised" where the reward itself failed."""

    prompt_id: str
    task: str
    probe: Probe
    correct: bool
    verdict: str
    note: str
    milliseconds: float

    @property
    def is_unusable(self) -> bool:
        """It says nothing about the text: the machine or the reward failed."""
        return self.verdict in (Verdict.SYSTEM_ERROR, "raised")

    @property
    def is_fault(self) -> bool:
        """A right text that failed, or any other that passed."""
        return not self.is_unusable and self.correct is not self.probe.deserves


@dataclass(frozen=True)
class Audit:
    """All findings, and how many prompts had no right text to try."""

    findings: tuple[Finding, ...]
    num_prompts: int
    num_without_gold: int

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind of probe."""
        return [finding for finding in self.findings if finding.probe.kind == kind]

    @property
    def false_negative_share(self) -> float:
        """Of right texts."""
        return _share(self.of(GOLD))

    @property
    def false_positive_share(self) -> float:
        """Of all other texts."""
        return _share([finding for finding in self.findings if finding.probe.kind != GOLD])

    def passes(self, options: AuditOptions) -> bool:
        """No more faults than allowed, every probe judged, and something tried."""
        return (
            bool(self.findings)
            and not any(finding.is_unusable for finding in self.findings)
            and self.false_negative_share <= options.max_false_negatives
            and self.false_positive_share <= options.max_false_positives
        )


def _share(findings: Sequence[Finding]) -> float:
    judged = [finding for finding in findings if not finding.is_unusable]
    return sum(finding.is_fault for finding in judged) / len(judged) if judged else 0.0


def audit(prompts: str, overrides: Sequence[str], options: AuditOptions) -> Audit:
    """Try the rewards of a configuration on `prompts`: a file as in docs/data.md, or the name of a procedural task.

    Raises ConfigError, DataError, RewardError or IsolationError if the rewards cannot be built or the prompts not read.
    """
    config, subjects = _subjects(prompts, overrides, options)
    work = list(_work(subjects, config))
    rewards = build.make_rewards(config)
    try:
        _warm_up(rewards, work, config.rewards.num_threads)
        findings = tuple(_progress(_findings(rewards, work, config.rewards.num_threads), len(work)))
    finally:
        rewards.close()
    with_gold = {finding.prompt_id for finding in findings if finding.probe.kind == GOLD}
    return Audit(findings, len(subjects), len(subjects) - len(with_gold))


# --- what is tried ----------------------------------------------------------------------------------------------


def _subjects(prompts: str, overrides: Sequence[str], options: AuditOptions) -> tuple[RunConfig, list[Subject]]:
    if not Path(prompts).exists() and not prompts.endswith((".jsonl", ".parquet")):
        config = compose([f"task.mixture={{{prompts}: 1}}", *overrides])
        drawn = _drawn(config, prompts, options.max_prompts)
        config = _with_mixture(config, {prompts: 1.0})
        return config, [_subject(config, prompt, None) for prompt in drawn]
    config = compose(["task=files", f"task.files.{_SET}.path={json.dumps(prompts)}", "sft.steps=0", *overrides])
    config = _with_mixture(config, {_SET: 1.0})
    files = config.task.files[_SET]
    rows = read_rows(
        Path(files.path),
        files,
        build.make_tokenizer(config),
        split=files.split,
        task=files.task or _SET,
        limit=_NO_LIMIT,
        max_bad_rows=config.task.max_bad_rows,
        check_reference=build.make_reference_check(config),
    )[: options.max_prompts]
    solutions = _solutions(Path(files.path), files.columns.id)
    subjects = [
        _subject(config, Prompt(row.id, row.task, row.text, (0,), row.reference), solutions.get(row.id)) for row in rows
    ]
    return config, subjects


def _with_mixture(config: RunConfig, mixture: dict[str, float]) -> RunConfig:
    return dataclasses.replace(config, task=dataclasses.replace(config.task, mixture=mixture))


def _subject(config: RunConfig, prompt: Prompt, solution: str | None) -> Subject:
    return Subject(prompt, config.rewards.verifier_of(prompt.task), solution)


def _drawn(config: RunConfig, name: str, num: int) -> list[Prompt]:
    """Problems of a procedural task, none twice."""
    task, rng = make_tasks(config.task, {name: 1.0})[name], stable_rng("audit", name)
    problems = {problem.text: problem for problem in (task.problem(rng) for _ in range(4 * num))}
    return [
        Prompt(f"{name}/{number}", name, problem.text, (0,), problem.reference)
        for number, problem in enumerate(itertools.islice(problems.values(), num))
    ]


def _solutions(path: Path, id_column: str) -> dict[str, str]:
    """The column `solution` or `gold` by row id, of a .jsonl file; other formats have none here."""
    if path.suffix != ".jsonl" or not path.is_file():
        return {}
    solutions = {}
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:  # a blank or a bad row, of which read_rows has told
                continue
            text = next((row[name] for name in _SOLUTION_COLUMNS if isinstance(row.get(name), str)), None)
            if text is not None:
                solutions[str(row.get(id_column) or number)] = text
    return solutions


def _work(subjects: list[Subject], config: RunConfig) -> Iterator[tuple[Prompt, Probe]]:
    boxed = config.rewards.math.answer_is_boxed
    golds = [
        gold_text(subject.prompt.reference, verifier=subject.verifier, boxed=boxed, solution=subject.solution)
        for subject in subjects
    ]
    for at, subject in enumerate(subjects):
        others = [
            text
            for other, text in zip(subjects[at + 1 :] + subjects[:at], golds[at + 1 :] + golds[:at], strict=True)
            if text is not None and other.verifier == subject.verifier and _differs(other.prompt, subject.prompt)
        ]
        probes = probes_of(
            subject.prompt,
            verifier=subject.verifier,
            boxed=boxed,
            others=others[:_NUM_OTHERS],
            solution=subject.solution,
        )
        yield from ((subject.prompt, probe) for probe in probes)


def _differs(ours: Prompt, theirs: Prompt) -> bool:
    return ours.text != theirs.text and str(ours.reference).strip() != str(theirs.reference).strip()


# --- trying it --------------------------------------------------------------------------------------------------


def _findings(rewards: Rewards, work: Iterable[tuple[Prompt, Probe]], num_threads: int) -> Iterator[Finding]:
    """As many at once as the scorer has threads, so that no time is spent in its queue."""
    running: dict[Future[Score], tuple[Prompt, Probe, float, list[float]]] = {}
    queue = iter(work)
    while True:
        for prompt, probe in itertools.islice(queue, num_threads - len(running)):
            ended: list[float] = []
            future = rewards.submit(prompt, _trajectory(probe.text), probe.text)
            running[future] = (prompt, probe, time.perf_counter(), ended)
            future.add_done_callback(functools.partial(_note_time, ended))
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            prompt, probe, began, ended = running.pop(future)
            yield _finding(prompt, probe, future, 1000 * ((ended or [time.perf_counter()])[0] - began))


def _note_time(ended: list[float], future: Future[Score]) -> None:
    ended.append(time.perf_counter())


def _warm_up(rewards: Rewards, work: Sequence[tuple[Prompt, Probe]], num_threads: int) -> None:
    """Nonsense for the first prompt of every task, so that no verdict's time counts the start of a process."""
    first = {prompt.task: prompt.id for prompt, _ in reversed(work)}
    nonsense = [(prompt, probe) for prompt, probe in work if first[prompt.task] == prompt.id and probe.kind == GARBAGE]
    for _ in _findings(rewards, nonsense, num_threads):
        pass


def _finding(prompt: Prompt, probe: Probe, future: Future[Score], milliseconds: float) -> Finding:
    try:
        score = future.result()
    except RewardError as error:  # it would end a run: here it is a finding
        return Finding(prompt.id, prompt.task, probe, False, "raised", str(error), milliseconds)
    return Finding(prompt.id, prompt.task, probe, score.correct, score.verdict, score.note, milliseconds)


def _trajectory(text: str) -> Trajectory:
    """A finished episode with one token for each character, which only the length part looks at."""
    num = max(1, len(text))
    return Trajectory(
        token_ids_T=np.zeros(num, dtype=np.int64),
        action_mask_T=np.ones(num, dtype=np.bool_),
        behaviour_logp_T=np.zeros(num, dtype=np.float32),
        version_T=np.zeros(num, dtype=np.int64),
        stop_reason=StopReason.STOP,
    )


def _progress(findings: Iterable[Finding], total: int) -> Iterator[Finding]:
    """The same, with a line on standard error every few seconds."""
    told = time.monotonic()
    for number, finding in enumerate(findings, start=1):
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"audit: {number} of {total} probes", file=sys.stderr, flush=True)
        yield finding
