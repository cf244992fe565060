"""What is kept of a trajectory for people to read: the lines of rollouts/step_N.jsonl.

A record is plain JSON and stands alone: it needs neither the tokenizer nor the prompt file to be read. The loop
makes the records because only it knows the advantages; the trackers in launch/ write them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cispo.types import Floats, Group, Ints, PackedBatch, Trajectory, UpdateResult

Decode = Callable[[Sequence[int]], str]
"""Token ids to text. It should show special tokens, or a stop token is invisible to the reader."""


@dataclass(frozen=True)
class LearntStream:
    """What the updates of a step made of one trajectory.

    `ratio_T` float32 [T] is the importance ratio before the update that used it, NaN where not learnt from.
    """

    advantage: float | None
    ratio_T: Floats | None


def learnt_streams(
    batches: Sequence[PackedBatch], updates: Sequence[UpdateResult]
) -> dict[tuple[int, int], LearntStream]:
    """Take the rows of a step's updates apart again, by (group index, member)."""
    streams = {}
    for batch, update in zip(batches, updates, strict=False):  # kl_stop leaves batches without an update
        for row, logp_T in zip(batch.rows, update.logp_rows, strict=True):
            ratio_T = np.exp(logp_T - row.behaviour_logp_T)
            for n, member in enumerate(row.members):
                span = slice(row.cu_seqlens[n], row.cu_seqlens[n + 1])
                advantage_A = row.advantage_T[span][row.mask_T[span]]
                advantage = float(advantage_A.mean()) if len(advantage_A) else None
                streams[member] = LearntStream(advantage, ratio_T[span])
    return streams


LOGP_DECIMALS = 5
"""Digits kept of a log-probability or a ratio: enough to see a mismatch of 1e-5, a third of the bytes."""


def rollout_record(
    group: Group,
    member: int,
    decode: Decode,
    *,
    advantage: float | None = None,
    ratio_T: Floats | None = None,
) -> dict[str, Any]:
    """One trajectory as a line of rollouts/step_N.jsonl.

    `tokens`, `ids`, `logp` and `ratio` run over all that follows the prompt and are aligned; an observation
    (multi-turn) has null for `logp` and `ratio`, and so has a token whose number is not finite. `observations` says
    where in `tokens` each stands, and what the environment made of the turn before it. `versions` is the policies that
    sampled the tokens, as spans: an entry for each change and not for each token.

    Args:
        group: the prompt with its trajectories and scores.
        member: which trajectory of the group, 0 to G - 1.
        decode: token ids to text.
        advantage: what the trajectory was credited with; None or a number that is not finite is written as null.
        ratio_T: float32 [T] over the whole trajectory, current over behaviour probability; None if not known.
    """
    trajectory, score = group.trajectories[member], group.scores[member]
    response = slice(len(group.prompt.token_ids), None)
    response_ids = trajectory.token_ids_T[response].tolist()
    ratios = None if ratio_T is None else _action_numbers(ratio_T, trajectory, response)
    return {
        "group": group.index,
        "member": member,
        "prompt_id": group.prompt.id,
        "task": group.prompt.task,
        "prompt": group.prompt.text,
        "text": decode(response_ids),
        "tokens": token_strings(response_ids, decode),
        "ids": response_ids,
        "logp": _action_numbers(trajectory.behaviour_logp_T, trajectory, response),
        "ratio": ratios,
        "mean_ratio": _mean(ratios),
        "reward": _finite(score.value),
        "parts": {name: _finite(value) for name, value in score.parts.items()},
        "verdict": str(score.verdict),
        "note": score.note,
        "correct": score.correct,
        "advantage": _finite(advantage),
        "version": trajectory.oldest_version,
        "versions": version_spans(trajectory.version_T[response]),
        "stop_reason": str(trajectory.stop_reason),
        "num_tokens": trajectory.num_actions,
        "observations": [
            vars(span) | {"start": span.start - response.start, "stop": span.stop - response.start}
            for span in trajectory.observations
        ],
    }


def rollout_records(
    groups: Sequence[Group], learnt: Mapping[tuple[int, int], LearntStream], decode: Decode, *, limit: int = 0
) -> list[dict[str, Any]]:
    """The records of one step, group by group.

    With a `limit` the groups are chosen evenly over the step and kept whole while they fit, because a trajectory is
    best read beside the others of its prompt.

    Args:
        groups: the groups trained on.
        learnt: by (group index, member), what the updates made of a trajectory; one may be missing.
        decode: token ids to text.
        limit: the most records to make; 0 is all.
    """
    records: list[dict[str, Any]] = []
    for group in _evenly_chosen(groups, limit):
        for member in range(len(group.trajectories)):
            stream = learnt.get((group.index, member), LearntStream(None, None))
            records.append(rollout_record(group, member, decode, advantage=stream.advantage, ratio_T=stream.ratio_T))
    return records[:limit] if limit else records


def token_strings(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """The text of each token, so that joined they give the whole text.

    A byte-level token may hold a part of a character, which decodes to U+FFFD alone: such tokens get "" and the last
    of them the whole character. A character has at most 4 bytes, so a lone broken byte does not swallow the rest.
    """
    strings: list[str] = []
    pending: list[int] = []
    for token_id in token_ids:
        pending.append(int(token_id))
        piece = decode(pending)
        if piece.endswith("\ufffd") and len(pending) < 4:
            strings.append("")
            continue
        strings.append(piece)
        pending = []
    if pending:
        strings[-1] = decode(pending)
    return strings


def version_spans(version_T: Ints) -> list[list[int]]:
    """[first token, version] of each stretch that one policy sampled; tokens that none sampled (-1) end nothing."""
    sampled = np.flatnonzero(version_T >= 0)
    versions = version_T[sampled]
    changes = np.flatnonzero(np.diff(versions, prepend=-1))
    return [[int(sampled[i]), int(versions[i])] for i in changes]


def _evenly_chosen(groups: Sequence[Group], limit: int) -> Sequence[Group]:
    if not (limit and groups):
        return groups
    num_chosen = min(len(groups), math.ceil(limit / max(len(group.trajectories) for group in groups)))
    return [groups[i] for i in np.linspace(0, len(groups) - 1, num_chosen).round().astype(int)]


def _action_numbers(values_T: Floats, trajectory: Trajectory, response: slice) -> list[float | None]:
    """The numbers of the response as JSON: null where the policy did not choose the token or it is not finite."""
    known = trajectory.action_mask_T[response] & np.isfinite(values_T[response])
    rounded = np.round(values_T[response].astype(np.float64), LOGP_DECIMALS).tolist()
    return [value if is_known else None for value, is_known in zip(rounded, known.tolist(), strict=True)]


def _mean(values: Sequence[float | None] | None) -> float | None:
    numbers = [value for value in values or () if value is not None]
    return round(float(np.mean(numbers)), LOGP_DECIMALS) if numbers else None


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
