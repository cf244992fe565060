"""The stream of prompts: procedural tasks and prompt files, mixed by weight, endless, with a cursor.

    prompt_source(config, tokenizer, seed)        what training draws from
    demonstration_source(config, seed)            what the cold start learns from
    eval_sets(config, tokenizer, num, seed)       held-out prompts, never drawn by the other two
    read_file_sets(config, tokenizer)             the rows of the files, for both of the above; read once
    check_tasks(config, tokenizer, limit)         that the tasks' prompts are short enough
    task_words(config)                            strings that deserve a token of their own

Every draw is a function of (seed, count), so a cursor is a few numbers and going on from it is exact and immediate.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cispo.errors import ConfigError, DataError
from cispo.types import Prompt
from rollout.problem import Problem, Task
from rollout.prompt_files import FileConfig, PromptLimit, PromptTokenizer, ReferenceCheck, Row, read_rows
from rollout.prompt_sources import (
    DemonstrationSource,
    FileSource,
    MixtureSource,
    ProceduralSource,
    one_sided,
    over_long,
    problem_prompt,
    redraws,
    row_prompt,
)
from rollout.seeding import Split, stable_rng
from rollout.tasks import TASKS, TaskParameters, make_task, unknown_task

if TYPE_CHECKING:
    from cispo.protocols import PromptSource

log = logging.getLogger(__name__)

NUM_TRIALS = 256
"""Problems of each task whose length is checked at the start. A text that is rarer is met when it is drawn."""


class FileSet(NamedTuple):
    """The rows of one set of files; a text is never on both sides."""

    train: tuple[Row, ...]
    held: tuple[Row, ...]


@dataclass(frozen=True)
class TaskConfig:
    """What to train on.

    Attributes:
        mixture: weight of each task: a name of rollout.tasks.TASKS, gym/<dataset>, or a key of `files` or `own`.
            Weights are relative; 0 leaves a task out.
        demonstration_mixture: weights of the cold start; empty takes those of `mixture`. Files give no
            demonstrations.
        parameters: of the procedural tasks.
        files: sets of prompts on disk by name.
        own: tasks of one's own by name: `path/to/file.py:Class` or `package.module:Class`.
        eval_fraction: share of all prompts that only evaluation sees, decided by a hash of the text.
        split_seed: another seed holds out other prompts.
        max_prompt_tokens: a longer prompt is a bad row of a file, and an error of a task. In a run, so is one that
            leaves too little of engine.max_length for sampling.max_new_tokens.
        max_bad_rows: how many bad rows one file may have.
    """

    mixture: dict[str, float] = field(default_factory=lambda: {"chain": 1.5, "program": 1.0})
    demonstration_mixture: dict[str, float] = field(default_factory=dict)
    parameters: TaskParameters = field(default_factory=TaskParameters)
    files: dict[str, FileConfig] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    eval_fraction: float = 0.125
    split_seed: int = 0
    max_prompt_tokens: int = 1024
    max_bad_rows: int = 10

    def __post_init__(self) -> None:
        tasks = (*TASKS, *self.own)
        faults = [*_mixture_faults("mixture", self.mixture, (*tasks, *self.files))]
        if self.demonstration_mixture:
            faults += _mixture_faults("demonstration_mixture", self.demonstration_mixture, tasks)
        names = [*tasks, *self.files]
        for name in sorted({name for name in names if names.count(name) > 1}):
            faults.append(f"The name {name!r} is given twice among the tasks, task.files and task.own; change one.")
        if not 0 < self.eval_fraction < 1:
            faults.append(f"task.eval_fraction must be above 0 and below 1, got {self.eval_fraction}.")
        if self.max_prompt_tokens < 1:
            faults.append(f"task.max_prompt_tokens must be at least 1, got {self.max_prompt_tokens}.")
        if self.max_bad_rows < 0:
            faults.append(f"task.max_bad_rows must not be negative, got {self.max_bad_rows}.")
        if faults:
            raise ConfigError(*faults)

    @property
    def split(self) -> Split:
        """Training or evaluation, by the text of a prompt."""
        return Split(self.eval_fraction, self.split_seed)

    @property
    def prompt_limit(self) -> PromptLimit:
        """The limit that is set here; an engine may have a lower one."""
        return PromptLimit(self.max_prompt_tokens, f"task.max_prompt_tokens={self.max_prompt_tokens}")


def _mixture_faults(name: str, weights: Mapping[str, float], known: tuple[str, ...]) -> Iterator[str]:
    for task, weight in weights.items():
        unknown = unknown_task(task, known)
        if unknown:
            yield f"task.{name}: {unknown}"
        if not (math.isfinite(weight) and weight >= 0):
            yield f"task.{name}.{task} must be a weight of 0 or more, got {weight}."
    if not any(weight > 0 for weight in weights.values()):
        yield f"task.{name} needs at least one task with a weight above 0, got {weights}."


def prompt_source(
    config: TaskConfig,
    tokenizer: PromptTokenizer,
    seed: int,
    *,
    file_sets: Mapping[str, FileSet] | None = None,
    limit: PromptLimit | None = None,
) -> MixtureSource:
    """The training prompts of `config`, as a PromptSource. Raises ConfigError or DataError before the first draw.

    Args:
        config: the mixture.
        tokenizer: of the policy.
        seed: of all draws.
        file_sets: what `read_file_sets` gave; None reads the files now.
        limit: of the tasks' prompts; None is `config.prompt_limit`.
    """
    weights = {name: weight for name, weight in config.mixture.items() if weight > 0}
    sources: dict[str, PromptSource] = {
        name: ProceduralSource(task, config.split, tokenizer, seed, limit=limit or config.prompt_limit)
        for name, task in make_tasks(config, weights).items()
    }
    for name, rows in (read_file_sets(config, tokenizer) if file_sets is None else file_sets).items():
        sources[name] = FileSource(name, rows.train, tokenizer, seed)
    return MixtureSource({name: sources[name] for name in weights}, weights, seed)


def demonstration_source(config: TaskConfig, seed: int) -> DemonstrationSource:
    """The cold start's examples. Raises ConfigError if no procedural task is in its mixture."""
    weights = config.demonstration_mixture or config.mixture
    tasks = make_tasks(config, weights)
    if not tasks:
        raise ConfigError(
            f"The cold start needs a procedural task, but the mixture has only files ({', '.join(weights)}); "
            "start from a trained model instead."
        )
    return DemonstrationSource(tasks, {name: weights[name] for name in tasks}, config.split, seed)


def eval_sets(
    config: TaskConfig,
    tokenizer: PromptTokenizer,
    num: int,
    seed: int,
    *,
    file_sets: Mapping[str, FileSet] | None = None,
    limit: PromptLimit | None = None,
) -> dict[str, tuple[Prompt, ...]]:
    """Up to `num` distinct held-out prompts for each task of the mixture, the same for the same seed.

    A set is smaller where a task or a file has no more than that; raises DataError where it has none. `file_sets` and
    `limit` are as in `prompt_source`.
    """
    sets = {
        name: eval_prompts(task, num, seed, split=config.split, tokenizer=tokenizer, limit=limit or config.prompt_limit)
        for name, task in make_tasks(config, config.mixture).items()
    }
    for name, rows in (read_file_sets(config, tokenizer) if file_sets is None else file_sets).items():
        chosen = stable_rng("eval", name, seed).sample(rows.held, min(num, len(rows.held)))
        sets[name] = tuple(row_prompt(f"{name}/eval/{row.id}", row, tokenizer) for row in chosen)
    return sets


def eval_prompts(
    task: Task, num: int, seed: int, *, split: Split, tokenizer: PromptTokenizer, limit: PromptLimit
) -> tuple[Prompt, ...]:
    """Up to `num` distinct held-out prompts of one task."""
    rng = stable_rng("eval", task.name, seed)
    problems: dict[str, Problem] = {}
    while len(problems) < num:
        fresh = (p for p in redraws(task, rng) if p.text not in problems and split.holds_out(p.text))
        problem = next(fresh, None)
        if problem is None:
            break
        problems[problem.text] = problem
    if not problems:
        raise DataError(one_sided(task, split, "evaluation"))
    return tuple(
        problem_prompt(f"{task.name}/eval/{at:06d}", task.name, problem, tokenizer, limit)
        for at, problem in enumerate(problems.values())
    )


def make_tasks(config: TaskConfig, weights: Mapping[str, float]) -> dict[str, Task]:
    """The procedural tasks among `weights`, by name. Raises ConfigError if one of `own` cannot be built."""
    names = [name for name, weight in weights.items() if weight > 0 and name not in config.files]
    return {name: make_task(name, config.parameters, config.own) for name in names}


def check_tasks(config: TaskConfig, tokenizer: PromptTokenizer, limit: PromptLimit) -> None:
    """Raise ConfigError if one of the tasks of the mixture draws a prompt beyond `limit` in its first trials."""
    faults = []
    for name, task in make_tasks(config, config.mixture).items():
        rng = stable_rng("trial", name)
        trials = [task.problem(rng) for _ in range(NUM_TRIALS)]
        lengths = [len(tokenizer.encode(trial.text)) for trial in trials]
        longest = max(range(NUM_TRIALS), key=lengths.__getitem__)
        fault = limit.fault(lengths[longest])
        if fault:
            faults.append(over_long(name, trials[longest], fault))
    if faults:
        raise ConfigError(*faults)


def task_words(config: TaskConfig) -> tuple[str, ...]:
    """The strings that deserve a token of their own, over all procedural tasks, in a fixed order."""
    tasks = {**make_tasks(config, config.mixture), **make_tasks(config, config.demonstration_mixture)}
    return tuple(dict.fromkeys(word for task in tasks.values() for word in task.words()))


FEW_HELD_OUT = 20
"""Below so many, an accuracy says next to nothing."""


def _held_out(rows: Sequence[Row], split: Split) -> tuple[Row, ...]:
    """The rows of the split; of a file so small that it has none there, the prompt that stands nearest to it."""
    held = tuple(row for row in rows if split.holds_out(row.text))
    if held or len({row.text for row in rows}) < 2:
        return held
    nearest = min((row.text for row in rows), key=split.place)
    return tuple(row for row in rows if row.text == nearest)


def read_file_sets(
    config: TaskConfig,
    tokenizer: PromptTokenizer,
    *,
    limit: PromptLimit | None = None,
    check_reference: ReferenceCheck | None = None,
) -> dict[str, FileSet]:
    """The sets of files in the mixture, by name.

    Args:
        config: the mixture and its files.
        tokenizer: measures the prompts.
        limit: a longer prompt is a bad row; None is `config.prompt_limit`.
        check_reference: a reference that it refuses is a bad row; None takes any.

    Raises:
        DataError: as read_rows does, and where a side of a set is empty; of all sets at once.
    """
    sets: dict[str, FileSet] = {}
    faults: list[str] = []
    for name in [name for name, weight in config.mixture.items() if weight > 0 and name in config.files]:
        try:
            sets[name] = read_file_set(name, config, tokenizer, limit=limit, check_reference=check_reference)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return sets


def read_file_set(
    name: str,
    config: TaskConfig,
    tokenizer: PromptTokenizer,
    *,
    limit: PromptLimit | None = None,
    check_reference: ReferenceCheck | None = None,
) -> FileSet:
    """One set of files; arguments and errors are those of `read_file_sets`."""
    files = config.files[name]
    read = functools.partial(
        read_rows,
        config=files,
        tokenizer=tokenizer,
        task=name,
        limit=limit or config.prompt_limit,
        max_bad_rows=config.max_bad_rows,
        check_reference=check_reference,
    )
    rows = read(Path(files.path), split=files.split)
    if files.eval_path:
        held = read(Path(files.eval_path), split=files.eval_split)
    else:
        held = _held_out(rows, config.split)
        if 0 < len(held) < FEW_HELD_OUT:
            log.warning(
                "%s: %d of %d rows are held out, so one answer moves the accuracy by %.2g; name a larger set by "
                "task.files.%s.eval_path",
                files.path, len(held), len(rows), 1 / len(held), name,
            )  # fmt: skip
    held_texts = {row.text for row in held}
    train = tuple(row for row in rows if row.text not in held_texts)
    if files.eval_path and len(train) < len(rows):
        log.warning(
            "%s: %d rows are prompts of %s and not trained on", files.path, len(rows) - len(train), files.eval_path
        )
    if not train or not held:
        raise DataError(
            f"The prompts {name!r} leave {len(train)} rows for training and {len(held)} for evaluation, and both need "
            f"some; change task.eval_fraction={config.eval_fraction} or task.files.{name}.eval_path."
        )
    return FileSet(train, held)
