"""Forward and loss of one packed row: the part of an update that every learner shares.

The log-probability of token t comes from the hidden state at t - 1, so it is computed only where a token is learnt
from: the head, the largest matrix product of a small model, never sees prompt tokens. The head asks for the credit of
each chunk of tokens as it goes, and has the gradient of the chunk's logits before the next one (model/head.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cispo.loss import (
    Band,
    TokenCredit,
    drift_metrics,
    in_flight_metrics,
    mismatch_metrics,
    ratio_metrics,
    token_credit,
)
from cispo.metrics import Mean, Metric
from cispo.types import Bools, Floats, Ints, PackedRow, UpdateSettings
from model import HybridLM, Routing
from model.head import Coefficients
from model.replay import Replay

WeightedLogp = Callable[[Tensor, Tensor, Coefficients, float], tuple[Tensor, Tensor, Tensor]]
"""`HybridLM.weighted_logp`, or that of a head which lies over several ranks."""

LogpAndEntropy = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""`HybridLM.logp_and_entropy`, or that of a head which lies over several ranks."""


@dataclass(frozen=True)
class RowOutput:
    """What one row gives: the scalar to differentiate, metrics, and the log-probabilities (float32 [T], NaN gaps)."""

    loss: Tensor
    metrics: dict[str, Metric]
    logp_T: Floats


def row_loss(lm: HybridLM, row: PackedRow, settings: UpdateSettings, *, fresh_weights: bool) -> RowOutput:
    """The loss of `row` under `lm`, with a graph.

    Args:
        lm: the policy.
        row: one packed row.
        settings: ratio band, mask, temperature and router coefficient.
        fresh_weights: the weights are those that were last published, so tokens of age 0 show the mismatch.
    """
    hidden_AD, routing = _forward(lm, row)
    learnt_A = np.flatnonzero(row.mask_T)
    output = objective(lm.weighted_logp, hidden_AD, row, learnt_A, settings, fresh_weights=fresh_weights)
    return with_balance(output, routing, row.share, settings.router_aux_coef)


def row_logp(lm: HybridLM, row: PackedRow, temperature: float) -> Floats:
    """float32 [T]: log-probabilities of the learnt tokens of `row` under `lm`, NaN elsewhere; without a graph."""
    with torch.no_grad():
        hidden_AD, _ = _forward(lm, row)
        return learnt_logp(lm.logp_and_entropy, hidden_AD, row, np.flatnonzero(row.mask_T), temperature)


def _forward(lm: HybridLM, row: PackedRow) -> tuple[Tensor, Routing]:
    """Hidden states [A, D] before the learnt tokens, and what the routers decided."""
    device = lm.device
    routing = Routing()
    if row.experts_TLk is not None:
        routing.replay = Replay(torch.from_numpy(row.experts_TLk).to(device))
    hidden_TD = lm(*(torch.from_numpy(x).to(device) for x in (row.tokens_T, row.positions_T, row.cu_seqlens)), routing)
    before_A = torch.from_numpy(np.flatnonzero(row.mask_T) - 1).to(device)
    return hidden_TD[before_A], routing


def learnt_logp(
    logp_and_entropy: LogpAndEntropy, hidden_AD: Tensor, row: PackedRow, learnt_A: Ints, temperature: float
) -> Floats:
    """float32 [T]: log-probabilities of the tokens `learnt_A` of `row` from the hidden states before them, else NaN."""
    targets_A = torch.from_numpy(row.tokens_T[learnt_A]).to(hidden_AD.device)
    return _spread(logp_and_entropy(hidden_AD, targets_A, temperature)[0], row, learnt_A)


def _spread(logp_A: Tensor, row: PackedRow, learnt_A: Ints) -> Floats:
    logp_T = np.full(row.num_tokens, np.nan, dtype=np.float32)
    logp_T[learnt_A] = logp_A.cpu().numpy()
    return logp_T


def objective(
    weighted_logp: WeightedLogp,
    hidden_AD: Tensor,
    row: PackedRow,
    learnt_A: Ints,
    settings: UpdateSettings,
    *,
    fresh_weights: bool,
) -> RowOutput:
    """Minus the objective on the tokens `learnt_A` of `row`, with a graph to the hidden states before each of them.

    All learnt tokens of the row, or those of one rank's share of it: no token needs another.
    """
    device = hidden_AD.device
    index_A = torch.from_numpy(learnt_A).to(device)

    def learnt(stream_T: np.ndarray) -> Tensor:
        return torch.from_numpy(stream_T).to(device)[index_A]

    band = Band(settings.ratio_cap, settings.ratio_floor, settings.mask_above, settings.mask_below)
    behaviour_A, advantage_A, weight_A = map(learnt, (row.behaviour_logp_T, row.advantage_T, row.weight_T))
    against_A = behaviour_A if row.proximal_logp_T is None else learnt(row.proximal_logp_T)
    everything_A = torch.ones_like(index_A, dtype=torch.bool)

    def credit(logp_a: Tensor, a: slice) -> TokenCredit:
        return token_credit(logp_a, against_A[a], advantage_A[a], weight_A[a], everything_A[a], band)

    total, logp_A, entropy_A = weighted_logp(
        hidden_AD, learnt(row.tokens_T), lambda logp_a, a: credit(logp_a, a).coefficient_T, settings.temperature
    )
    metrics = ratio_metrics(credit(logp_A, slice(None)), everything_A, band)
    metrics["actor/entropy"] = Mean.of(entropy_A, everything_A)
    if row.proximal_logp_T is not None:
        metrics |= drift_metrics(logp_A, behaviour_A, everything_A)
    if fresh_weights:
        fresh_T = wholly_fresh(row)
        metrics |= mismatch_metrics(logp_A, behaviour_A, learnt(fresh_T))
        in_flight_T = (row.age_T == 0) & ~fresh_T
        if in_flight_T.any():
            metrics |= in_flight_metrics(logp_A, behaviour_A, learnt(in_flight_T))
    return RowOutput(-total, metrics, _spread(logp_A, row, learnt_A))


def with_balance(
    output: RowOutput, routing: Routing, share: float, coefficient: float, *, num_parts: int = 1
) -> RowOutput:
    """`output` with the routers' balancing loss and its metrics, or with one rank's of `num_parts` parts of the loss.

    The loss is taken over each row by itself and weighed by the row's share of the update: the one term that depends
    on how an update is split (docs/decisions/balancing-loss.md).
    """
    routing.close()
    if not routing.counts:
        return output
    auxiliary = routing.aux_loss()
    metrics = output.metrics | {
        "moe/aux_loss": Mean(float(auxiliary.detach()) * share, share / num_parts),
        "moe/load_imbalance": Mean(routing.load_imbalance() * share, share),
    }
    if routing.replay is not None:
        metrics |= replay_metrics(routing.replay)
    return RowOutput(output.loss + coefficient * share * auxiliary, metrics, output.logp_T)


def replay_metrics(replay: Replay) -> dict[str, Metric]:
    """What the routers would have chosen themselves, compared with what they were told to."""
    return {"moe/replay_changed_fraction": Mean(*replay.counts)}


def wholly_fresh(row: PackedRow) -> Bools:
    """bool [T]: the token belongs to a sequence that the present weights sampled from its first action to its last.

    A sequence that got new weights under way went on over states of the old ones: its later tokens have age 0 and
    differ all the same.
    """
    oldest_N = np.maximum.reduceat(row.age_T, row.cu_seqlens[:-1])
    return np.repeat(oldest_N == 0, np.diff(row.cu_seqlens))
