"""The trajectories of a run as a report embeds them: within bounds, token texts once each, numbers in two bytes.

    rollouts/step_N.jsonl -> records without their tokens, a table of tokens, and streams of bytes

A stream holds an entry for each token of each kept trajectory, one trajectory after the other: the token's place in the
table (4 bytes), its log-probability and its ratio (2 bytes each). The bytes of equal rank stand together, which
compresses better. page/unpack.js reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launch.run_files import json_ready, read_jsonl_leniently, rollout_files

Record = dict[str, Any]

MAX_TOKEN_CHARACTERS, MAX_TEXT_CHARACTERS = 2_000, 100_000
"""What is shown of one token, and of a prompt or a response that its tokens do not give; a longer one is cut."""
KEPT_FIELDS = (
    "group", "member", "task", "reward", "parts", "verdict", "note", "correct", "advantage", "version", "versions",
    "stop_reason", "num_tokens", "mean_ratio", "observations",
)  # fmt: skip
"""Of cispo.records: what is embedded of a trajectory as it is."""
OPTIONAL = {"observations": [], "versions": [], "note": ""}
"""Fields that older runs did not write."""
KINDS: dict[type, tuple[str, ...]] = {
    str: ("task", "verdict", "note", "stop_reason"), dict: ("parts",), list: ("observations", "versions"),
    int: ("group", "member", "version", "num_tokens"), bool: ("correct",),
}  # fmt: skip
LOGP_UNKNOWN, RATIO_UNKNOWN, RATIO_ONE = 65_535, 0, 32_768
UNITS = 1_000
"""Units of a log-probability, and of the logarithm of a ratio: a thousandth of a nat."""


@dataclass(frozen=True)
class Traces:
    """The trajectories of a run as the page needs them.

    Attributes:
        kept: a record for each, with `step`, the place of its `prompt` and the `length` of its part of the streams.
        prompts: [id, text] of each.
        vocabulary: [id, text] of each token; the id is None where the run did not write it.
        streams: see the head of this file.
        num_traces: how many the run wrote.
        lengths: (step, action tokens of each trajectory) of the first and the last step.
        faults: what could not be read, one sentence each.
    """

    kept: list[Record]
    prompts: list[tuple[str, str]]
    vocabulary: list[tuple[int | None, str]]
    streams: bytes
    num_traces: int
    lengths: list[tuple[int, list[int]]]
    faults: list[str]


@dataclass
class Embedded:
    """What has been taken into the page so far."""

    kept: list[Record] = field(default_factory=list)
    prompts: dict[tuple[str, str], int] = field(default_factory=dict)
    vocabulary: dict[tuple[int | None, str], int] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    logps: list[np.ndarray[Any, Any]] = field(default_factory=list)
    ratios: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def add(self, step: int, record: Record) -> None:
        """Take a trajectory. Raises KeyError, TypeError or ValueError, and takes nothing, if it is no record."""
        texts = [_cut(text, MAX_TOKEN_CHARACTERS) for text in record["tokens"]]
        ids: list[int | None] = record.get("ids") or [None] * len(texts)
        logp_T = np.array(record["logp"], dtype=np.float64)
        ratio_T = np.array(record["ratio"] or [None] * len(texts), dtype=np.float64)
        if not len(texts) == len(ids) == len(logp_T) == len(ratio_T):
            raise ValueError("the streams of a record differ in length")
        tokens = [self.vocabulary.setdefault(token, len(self.vocabulary)) for token in zip(ids, texts, strict=True)]
        slim = _checked({name: record[name] if name not in OPTIONAL else record.get(name, OPTIONAL[name])
                         for name in KEPT_FIELDS})  # fmt: skip
        prompt = (str(record["prompt_id"]), _cut(record["prompt"], MAX_TEXT_CHARACTERS))
        if "".join(record["tokens"]) != record["text"]:
            slim["text"] = _cut(record["text"], MAX_TEXT_CHARACTERS)
        slim |= {"step": step, "length": len(texts), "prompt": self.prompts.setdefault(prompt, len(self.prompts))}
        slim |= {"lowest_logp": _extreme(logp_T, np.nanmin), "highest_ratio": _extreme(ratio_T, np.nanmax)}
        self.kept.append(slim)
        self.tokens += tokens
        self.logps.append(logp_codes(logp_T))
        self.ratios.append(ratio_codes(ratio_T))

    def streams(self) -> bytes:
        """All of them, one behind the other."""
        none = np.array([], dtype="<u2")
        streams = (
            np.array(self.tokens, dtype="<u4"),
            np.concatenate([none, *self.logps]),
            np.concatenate([none, *self.ratios]),
        )
        return b"".join(by_rank(stream) for stream in streams)


def read_traces(run_folder: Path, *, max_traces: int, max_tokens: int) -> Traces:
    """Read rollouts/, keeping of each step no more than its share of the bounds.

    Where not even one trace of every step fits, some steps are left out, evenly.
    """
    files = rollout_files(run_folder)
    chosen = _chosen(files, max_traces, max_tokens)
    embedded, lengths, faults, num_traces = Embedded(), [], [], 0
    for position, (step, path) in enumerate(files):
        if position not in chosen:
            num_traces += path.read_bytes().count(b"\n")
            continue
        records, bad_lines = read_jsonl_leniently(path)
        num_traces += len(records)
        share, room = max_tokens // len(chosen), max_tokens - len(embedded.tokens)
        bad = _embed_share(embedded, step, records, max(max_traces // len(chosen), 1), share, room)
        faults += [f"rollouts/{fault}" for fault in bad_lines]
        if bad:
            faults.append(f"rollouts/{path.name} has {bad} lines that are no trajectories, which are left out.")
        if position in (0, len(files) - 1):
            counts = [record.get("num_tokens") for record in records]
            lengths.append((step, [count for count in counts if isinstance(count, int)]))
    return Traces(
        embedded.kept,
        list(embedded.prompts),
        list(embedded.vocabulary),
        embedded.streams(),
        num_traces,
        lengths,
        faults,
    )


def _chosen(files: Sequence[tuple[int, Path]], max_traces: int, max_tokens: int) -> set[int]:
    """Which files are shown: all, or as many as have room for one trace each, the first and the last included."""
    if not files:
        return set()
    looked_at = {0, len(files) // 2, len(files) - 1}
    longest = max(_longest(read_jsonl_leniently(files[position][1])[0]) for position in looked_at)
    number = max(1, min(len(files), max_traces, max_tokens // max(longest, 1)))
    return {round(position) for position in np.linspace(0, len(files) - 1, number)}


def _longest(records: Sequence[Record]) -> int:
    return max(map(_num_tokens, records), default=0)


def _embed_share(
    embedded: Embedded, step: int, records: Sequence[Record], max_traces: int, share: int, room: int
) -> int:
    """Returns how many records could not be taken. The first may be longer than its step's share if there is room."""
    first, first_token, bad = len(embedded.kept), len(embedded.tokens), 0
    for record in records:
        num_kept = len(embedded.kept) - first
        limit = share if num_kept else room
        if num_kept >= max_traces or (
            embedded.kept and len(embedded.tokens) - first_token + _num_tokens(record) > limit
        ):
            break
        try:
            embedded.add(step, record)
        except (KeyError, TypeError, ValueError, AttributeError):
            bad += 1
    return bad


def _checked(record: Record) -> Record:
    """The record with null for numbers that are not finite. Raises TypeError if a field is not what it should be."""
    for kind, names in KINDS.items():
        for name in names:
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} should be of type {kind.__name__}; got {record[name]!r:.80}")
    ready: Record = json_ready(record)
    return ready


def logp_codes(logp_T: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities as uint16 [T]: thousandths of a nat below 0, at most 65.534; LOGP_UNKNOWN where not known."""
    known = np.isfinite(logp_T)
    codes = np.clip(np.round(np.where(known, -logp_T, 0.0) * UNITS), 0, LOGP_UNKNOWN - 1)
    return np.where(known, codes, LOGP_UNKNOWN).astype("<u2")


def ratio_codes(ratio_T: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ratios as uint16 [T]: thousandths of a nat of their logarithm around RATIO_ONE; RATIO_UNKNOWN where not known."""
    known = np.isfinite(ratio_T) & (ratio_T >= 0)
    logarithms = np.log(np.where(known, np.maximum(ratio_T, 1e-20), 1.0))
    codes = np.clip(np.round(logarithms * UNITS) + RATIO_ONE, RATIO_UNKNOWN + 1, 65_535)
    return np.where(known, codes, RATIO_UNKNOWN).astype("<u2")


def by_rank(values: np.ndarray[Any, Any]) -> bytes:
    """The lowest bytes of all values, then the next ones, and so on."""
    return values.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()


def _num_tokens(record: Record) -> int:
    tokens = record.get("tokens")
    return len(tokens) if isinstance(tokens, list) else 0


def _extreme(values_T: np.ndarray[Any, Any], extreme: Any) -> float | None:
    return round(float(extreme(values_T)), 3) if np.isfinite(values_T).any() else None


def _cut(text: str, limit: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a text is expected; got {type(text).__name__}")
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"
