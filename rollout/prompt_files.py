"""Prompts from files: JSONL, parquet, or a Hugging Face data set in a folder, checked row by row.

    {"prompt": "2+2=", "reference": "4"}
    {"messages": [{"role": "user", "content": "What is 2+2?"}], "task": "math", "reference": "4", "id": "q17"}

A row that cannot be used is logged with its file and line (JSONL, from 1) or row (the rest, from 1), counted, and
left out; more than `max_bad_rows` of them end the run, because then the file is not what it was taken for. What is
not found here would end the run later: at the first draw of the row.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cispo.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant", "tool")

ReferenceCheck = Callable[[str, Any], None]
"""check(task, reference) raises DataError or ValueError with the reason if the task's verifier has no use for it."""


class PromptTokenizer(Protocol):
    """What prompts need of a tokenizer; model.Tokenizer has it."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of `text`."""

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat template's text for `messages`, up to where the policy begins to write."""


@dataclass(frozen=True)
class ColumnsConfig:
    """What the columns of a file are called.

    Attributes:
        prompt: a string that the policy sees as it is.
        messages: a list of {role, content}, rendered with the chat template; a row has this or `prompt`.
        task: names the row's verifier; optional in a row.
        reference: what the verifier needs, any JSON value.
        id: a string or an integer, unique in the file; optional, the line or row number stands in for it.
    """

    prompt: str = "prompt"
    messages: str = "messages"
    task: str = "task"
    reference: str = "reference"
    id: str = "id"

    def __post_init__(self) -> None:
        names = (self.prompt, self.messages, self.task, self.reference, self.id)
        if "" in names or len(set(names)) < len(names):
            raise ConfigError(f"The columns of a prompt file need five different, non-empty names, got {names}.")


@dataclass(frozen=True)
class FileConfig:
    """One set of prompts on disk.

    Attributes:
        path: a .jsonl or .parquet file, a folder that `datasets` saved, or one with such files.
        eval_path: the held-out prompts, in the same form; "" holds out TaskConfig.eval_fraction of `path`.
        split: which split of a folder to train on.
        eval_split: which split of the `eval_path` folder to evaluate on.
        task: the task of rows that name none; "" gives them the name of the set.
        reference_is_json: references are JSON written in a string, as parquet needs where their types differ.
        columns: what the columns are called.
    """

    path: str
    eval_path: str = ""
    split: str = "train"
    eval_split: str = "test"
    task: str = ""
    reference_is_json: bool = False
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("A set of prompt files needs a path, but it is empty.")


@dataclass(frozen=True)
class PromptLimit:
    """How long a prompt may be.

    Attributes:
        num_tokens: of the longest prompt that is allowed.
        setting: what the user changes to allow more, with its value: "task.max_prompt_tokens=1024".
    """

    num_tokens: int
    setting: str

    def fault(self, num_tokens: int) -> str:
        """What is wrong with a prompt of so many tokens; "" if nothing."""
        if 0 < num_tokens <= self.num_tokens:
            return ""
        return f"has {num_tokens} tokens, and 1 to {self.num_tokens} are allowed by {self.setting}"


@dataclass(frozen=True)
class Row:
    """One usable row: a prompt that is tokenised when it is drawn. `id` is unique in its file."""

    id: str
    task: str
    text: str
    reference: Any


class _BadRow(ValueError):
    """Why one row cannot be used; never leaves this file."""


def read_rows(
    path: Path,
    config: FileConfig,
    tokenizer: PromptTokenizer,
    *,
    split: str,
    task: str,
    limit: PromptLimit,
    max_bad_rows: int,
    check_reference: ReferenceCheck | None = None,
) -> tuple[Row, ...]:
    """Every usable row of `path`, in order; without `check_reference` any reference will do.

    Raises DataError if the path is missing, cannot be read, has more than `max_bad_rows` bad rows or no good one.
    """
    rows: list[Row] = []
    bad: list[str] = []
    seen: set[str] = set()
    for place, record in _records(path, split):
        try:
            row = _row(_parsed(record), place, config, tokenizer, task)
            _check_length(row.text, tokenizer, limit)
            _check_reference(row, check_reference)
            if row.id in seen:
                raise _BadRow(f"the id {row.id!r} was used before in this file")
        except _BadRow as fault:
            bad.append(f"{path}:{place}: {fault}")
            log.warning("bad row skipped: %s", bad[-1])
            if len(bad) > max_bad_rows:
                raise DataError(_too_many_bad_rows(path, bad, max_bad_rows)) from None
            continue
        seen.add(row.id)
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no usable prompt ({len(bad)} bad rows); give a file with at least one.")
    if bad:
        log.warning("%s: %d rows used, %d bad rows skipped (max_bad_rows=%d)", path, len(rows), len(bad), max_bad_rows)
    return tuple(rows)


def _too_many_bad_rows(path: Path, bad: list[str], max_bad_rows: int) -> str:
    return (
        f"{path} has more than max_bad_rows={max_bad_rows} bad rows; mend them or raise the limit. "
        f"The first are: {'; '.join(bad[:3])}."
    )


# --- where records come from -----------------------------------------------------------------------------------


def _records(path: Path, split: str) -> Iterator[tuple[int, bytes | Mapping[str, Any]]]:
    """(line or row number from 1, raw line or mapping) for every record that is not a blank line."""
    if not path.exists():
        raise DataError(_missing(path))
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    elif path.suffix == ".parquet" or path.is_dir():
        yield from enumerate(_hugging_face_records(path, split), start=1)
    else:
        raise DataError(f"{path} is neither .jsonl, nor .parquet, nor a folder with a data set; convert it to one.")


def _hugging_face_records(path: Path, split: str) -> Iterator[Mapping[str, Any]]:
    """Rows through `datasets`, streamed, so that nothing is written to its cache."""
    from datasets import load_dataset, load_from_disk  # seconds to import, and JSONL needs none of it

    try:
        if path.is_file():
            yield from load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        elif (path / "dataset_dict.json").exists():
            yield from load_from_disk(str(path))[split]
        elif (path / "state.json").exists():
            yield from load_from_disk(str(path))
        else:
            yield from load_dataset(str(path), split=split, streaming=True)
    except Exception as error:  # whatever a stranger's file makes of a stranger's library
        raise DataError(f"{path} cannot be read as a data set with split {split!r}: {error}") from error


def _missing(path: Path) -> str:
    """Says which part of the path does not exist and what stands there under the most similar name."""
    parent, name = path.absolute().parent, path.name
    while not parent.is_dir():
        parent, name = parent.parent, parent.name
    there = sorted(entry.name for entry in parent.iterdir())
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    hint = f"did you mean {parent / near[0]}?" if near else f"nothing in {parent} has a name like {name!r}."
    return f"The prompt file {path} does not exist; {hint}"


# --- from a record to a row ------------------------------------------------------------------------------------


def _parsed(record: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(record, bytes):
        return record
    value = _json(record, "the line")
    if not isinstance(value, dict):
        raise _BadRow(f"a row must be a JSON object, got {_shown(value)}")
    return value


def _row(
    record: Mapping[str, Any], place: int, config: FileConfig, tokenizer: PromptTokenizer, default_task: str
) -> Row:
    columns = config.columns
    task = _optional_name(record, columns.task) or config.task or default_task
    row_id = _optional_name(record, columns.id) or str(place)
    return Row(row_id, task, _text(record, columns, tokenizer), _reference(record, config))


def _text(record: Mapping[str, Any], columns: ColumnsConfig, tokenizer: PromptTokenizer) -> str:
    """The prompt as it is, or the messages rendered."""
    prompt, messages = record.get(columns.prompt), record.get(columns.messages)
    if (prompt is None) == (messages is None):
        raise _BadRow(f"a row has either {columns.prompt!r} or {columns.messages!r}, this one has {_which(prompt)}")
    if messages is not None:
        return _rendered(_checked_messages(messages, columns.messages), tokenizer)
    if not isinstance(prompt, str) or not prompt.strip():
        raise _BadRow(f"{columns.prompt!r} must be a non-empty string, got {_shown(prompt)}")
    return prompt


def _which(prompt: object) -> str:
    return "neither" if prompt is None else "both"


def _rendered(messages: list[dict[str, str]], tokenizer: PromptTokenizer) -> str:
    try:
        return tokenizer.render(messages)
    except ValueError as error:
        raise _BadRow(f"the chat template refuses the messages: {error}") from error


def _checked_messages(messages: object, column: str) -> list[dict[str, str]]:
    """Messages that end where the policy's turn begins."""
    if not isinstance(messages, list) or not messages:
        raise _BadRow(f"{column!r} must be a non-empty list of {{role, content}}, got {_shown(messages)}")
    checked = [_checked_message(message, f"{column}[{at}]") for at, message in enumerate(messages)]
    if checked[-1]["role"] not in ("user", "tool"):
        raise _BadRow(f"the last of {column!r} must be the user's or a tool's, got role {checked[-1]['role']!r}")
    return checked


def _checked_message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise _BadRow(f"{where} must be {{role, content}}, got {_shown(message)}")
    # Arrow fills the keys that other rows have with None.
    present = {key: value for key, value in message.items() if value is not None}
    if set(present) != {"role", "content"}:
        raise _BadRow(f"{where} must have role and content and nothing else, got {sorted(map(str, present))}")
    if present["role"] not in ROLES:
        raise _BadRow(f"{where} must have a role of {', '.join(ROLES)}, got {_shown(present['role'])}")
    if not isinstance(present["content"], str) or not present["content"].strip():
        raise _BadRow(f"{where} must have a non-empty string as content, got {_shown(present['content'])}")
    return present


def _reference(record: Mapping[str, Any], config: FileConfig) -> Any:
    column = config.columns.reference
    value = record.get(column)
    if config.reference_is_json and isinstance(value, str):
        value = _json(value.encode(), repr(column))
    if value is None or value == "" or value == [] or value == {}:
        raise _BadRow(f"{column!r} is missing or empty, and a verifier needs it")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _BadRow(f"{column!r} must be a JSON value: {error}") from error
    return value


def _optional_name(record: Mapping[str, Any], column: str) -> str:
    """A string or an integer as string; "" if the row has none."""
    value = record.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _BadRow(f"{column!r} must be a non-empty string or an integer, got {_shown(value)}")
    return str(value)


def _check_length(text: str, tokenizer: PromptTokenizer, limit: PromptLimit) -> None:
    try:
        num_tokens = len(tokenizer.encode(text))
    except ValueError as error:  # a character that the vocabulary lacks, or a lone surrogate
        raise _BadRow(f"the prompt cannot be tokenised: {error}") from error
    fault = limit.fault(num_tokens)
    if fault:
        raise _BadRow(f"the prompt {fault}")


def _check_reference(row: Row, check: ReferenceCheck | None) -> None:
    if check is None:
        return
    try:
        check(row.task, row.reference)
    except (DataError, ValueError) as error:
        raise _BadRow(f"the verifier of task {row.task!r} cannot use the reference: {error}") from error


def _json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8 and bad JSON
        raise _BadRow(f"{what} is not JSON: {error}") from error


def _shown(value: object) -> str:
    """A value short enough for one line of a log."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
