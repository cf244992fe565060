"""Samples -> packed batches: which tokens make one update, how they lie in rows, and what each token weighs.

The weight of a token carries the aggregation over the *whole update*, computed once here. So no row, micro-batch or
rank needs a count, and however an update is split, its gradient is the same (tests/cispo/test_invariance.py).

    prompt            token mean within the prompt's group, then mean over prompts (the report's equation 4)
    token             mean over all tokens of the update
    sample            mean over the tokens of a sample, then mean over samples
    sample_and_token  half `sample`, half `token` (the report names the combination as a remedy for collapse and
                      gives no formula; this is ours)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from cispo.errors import ConfigError
from cispo.types import Choices, Floats, PackedBatch, PackedRow, Sample

AGGREGATIONS: tuple[str, ...] = ("prompt", "token", "sample", "sample_and_token")


def pack(
    samples: Sequence[Sample],
    *,
    num_batches: int,
    aggregation: str = "prompt",
    max_row_tokens: int = 8192,
    num_ranks: int = 1,
    version: int = 0,
) -> list[PackedBatch]:
    """Split samples into the batches of `num_batches` updates and lay each out in rows.

    Whole groups stay in one batch, since the advantage and the `prompt` weights are relations within a group. There
    are fewer batches when there are fewer groups. `version` is that of the weights that will learn.
    """
    return [
        PackedBatch(tuple(_rows(batch, aggregation, max_row_tokens, num_ranks, version)))
        for batch in _split_by_group(samples, num_batches)
    ]


def aggregation_weights(samples: Sequence[Sample], aggregation: str) -> list[float]:
    """The weight of each learnt token of each sample of one update; over the update they add up to 1."""
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"aggregation must be one of {', '.join(AGGREGATIONS)}; got {aggregation!r}.")
    tokens_of_group: Counter[int] = Counter()
    for sample in samples:
        tokens_of_group[sample.group] += sample.num_learnt
    num_groups = sum(1 for tokens in tokens_of_group.values() if tokens)
    num_samples = sum(1 for sample in samples if sample.num_learnt)
    num_tokens = sum(tokens_of_group.values())

    def weight(sample: Sample) -> float:
        if not sample.num_learnt:
            return 0.0
        per_sample, per_token = 1.0 / (num_samples * sample.num_learnt), 1.0 / num_tokens
        return {
            "prompt": 1.0 / (num_groups * tokens_of_group[sample.group]),
            "token": per_token,
            "sample": per_sample,
            "sample_and_token": 0.5 * (per_sample + per_token),
        }[aggregation]

    return [weight(sample) for sample in samples]


def pack_rows(
    samples: Sequence[Sample],
    weights: Sequence[float],
    *,
    max_row_tokens: int,
    num_ranks: int = 1,
    version: int = 0,
) -> list[PackedRow]:
    """Lay samples end to end in rows of at most `max_row_tokens` (a longer sample has a row of its own).

    Rows are balanced by tokens and their number is a multiple of `num_ranks` where there are samples enough.
    """
    lengths = [len(sample.tokens_T) for sample in samples]
    members = _balance(lengths, max_row_tokens, num_ranks)
    total = sum(lengths)
    return [_row([samples[i] for i in row], [weights[i] for i in row], version, total) for row in members]


def _split_by_group(samples: Sequence[Sample], num_batches: int) -> list[list[Sample]]:
    """Deal groups to batches, the longest first, each to the shortest batch among those with fewest groups."""
    by_group: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_group[sample.group].append(sample)
    tokens = {group: sum(len(s.tokens_T) for s in members) for group, members in by_group.items()}
    batches: list[list[int]] = [[] for _ in range(min(num_batches, len(by_group)))]
    loads = [0] * len(batches)
    for group in sorted(by_group, key=lambda g: (-tokens[g], g)):
        target = min(range(len(batches)), key=lambda b: (len(batches[b]), loads[b], b))
        batches[target].append(group)
        loads[target] += tokens[group]
    return [[sample for group in sorted(batch) for sample in by_group[group]] for batch in batches]


def _rows(
    samples: Sequence[Sample], aggregation: str, max_row_tokens: int, num_ranks: int, version: int
) -> list[PackedRow]:
    weights = aggregation_weights(samples, aggregation)
    return pack_rows(samples, weights, max_row_tokens=max_row_tokens, num_ranks=num_ranks, version=version)


def _balance(lengths: Sequence[int], max_row_tokens: int, num_ranks: int) -> list[list[int]]:
    """Longest first, each to the emptiest row; one row more (per rank) until all fit."""
    if not lengths:
        return []
    num_rows = max(1, -(-sum(lengths) // max_row_tokens))
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while True:
        num_rows = min(-(-num_rows // num_ranks) * num_ranks, len(lengths))
        rows: list[list[int]] = [[] for _ in range(num_rows)]
        loads = [0] * num_rows
        for i in order:
            target = min(range(num_rows), key=lambda row: (loads[row], row))
            rows[target].append(i)
            loads[target] += lengths[i]
        fits = all(load <= max_row_tokens or len(row) == 1 for row, load in zip(rows, loads, strict=True))
        if fits or num_rows == len(lengths):
            return [sorted(row) for row in rows]
        num_rows += 1


def _row(samples: Sequence[Sample], weights: Sequence[float], version: int, total_tokens: int) -> PackedRow:
    lengths = [len(sample.tokens_T) for sample in samples]
    mask_T = np.concatenate([sample.mask_T for sample in samples])
    weight_T: Floats = np.repeat(np.asarray(weights, dtype=np.float32), lengths)
    version_T = np.concatenate([sample.version_T for sample in samples])
    return PackedRow(
        tokens_T=np.concatenate([sample.tokens_T for sample in samples]).astype(np.int64, copy=False),
        positions_T=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int64),
        mask_T=mask_T,
        behaviour_logp_T=np.concatenate([sample.behaviour_logp_T for sample in samples]),
        advantage_T=np.concatenate([sample.advantage_T for sample in samples]),
        weight_T=np.where(mask_T, weight_T, np.float32(0.0)),
        age_T=np.where(version_T >= 0, version - version_T, -1).astype(np.int64, copy=False),
        members=tuple((sample.group, sample.member) for sample in samples),
        share=sum(lengths) / total_tokens,
        experts_TLk=_experts(samples),
    )


def _experts(samples: Sequence[Sample]) -> Choices | None:
    """The records end to end; a sample without one among others that have theirs gets an empty one."""
    recorded = next((sample.experts_TLk for sample in samples if sample.experts_TLk is not None), None)
    if recorded is None:
        return None
    nothing = np.iinfo(recorded.dtype).max
    parts = [
        np.full((len(sample.tokens_T), *recorded.shape[1:]), nothing, recorded.dtype)
        if sample.experts_TLk is None
        else sample.experts_TLk
        for sample in samples
    ]
    return np.concatenate(parts)
