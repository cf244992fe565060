"""Forward and loss of one packed row: the part of an update that every learner shares.

The log-probability of token t comes from the hidden state at t - 1, so it is computed only where a token is learnt
from: the head, the largest matrix product of a small model, never sees prompt tokens. The head asks for the credit of
each chunk of tokens as it goes, and has the gradient of the chunk's logits before the next one (model/head.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cispo.loss import Band, TokenCredit, mismatch_metrics, ratio_metrics, token_credit
from cispo.metrics import Mean, Metric
from cispo.types import Bools, Floats, PackedRow, UpdateSettings
from model import HybridLM, Routing


@dataclass(frozen=True)
class RowOutput:
    """What one row gives: the scalar to differentiate, metrics, and the log-probabilities (float32 [T], NaN gaps)."""

    loss: Tensor
    metrics: dict[str, Metric]
    logp_T: Floats


def row_loss(lm: HybridLM, row: PackedRow, settings: UpdateSettings, *, share: float, fresh_weights: bool) -> RowOutput:
    """The loss of `row` under `lm`, with a graph.

    Args:
        lm: the policy.
        row: one packed row.
        settings: ratio band, mask, temperature and router coefficient.
        share: the row's part of the update's tokens. It weighs the router's balancing loss, which is taken over each
            row by itself: the one term that depends on how an update is split.
        fresh_weights: the weights are those that were last published, so tokens of age 0 show the mismatch.
    """
    device = next(lm.parameters()).device
    tokens_T = torch.from_numpy(row.tokens_T).to(device)
    learnt_A = torch.from_numpy(np.flatnonzero(row.mask_T)).to(device)

    routing = Routing()
    hidden_TD = lm(
        tokens_T, torch.from_numpy(row.positions_T).to(device), torch.from_numpy(row.cu_seqlens).to(device), routing
    )

    def learnt(stream_T: np.ndarray) -> Tensor:
        return torch.from_numpy(stream_T).to(device)[learnt_A]

    band = Band(settings.ratio_cap, settings.ratio_floor, settings.mask_above, settings.mask_below)
    behaviour_A, advantage_A, weight_A = map(learnt, (row.behaviour_logp_T, row.advantage_T, row.weight_T))
    everything_A = torch.ones_like(learnt_A, dtype=torch.bool)

    def credit(logp_a: Tensor, a: slice) -> TokenCredit:
        return token_credit(logp_a, behaviour_A[a], advantage_A[a], weight_A[a], everything_A[a], band)

    objective, logp_A, entropy_A = lm.weighted_logp(
        hidden_TD[learnt_A - 1],
        tokens_T[learnt_A],
        lambda logp_a, a: credit(logp_a, a).coefficient_T,
        settings.temperature,
    )
    loss = -objective
    metrics = ratio_metrics(credit(logp_A, slice(None)), everything_A, band)
    metrics["actor/entropy"] = Mean.of(entropy_A, everything_A)
    if routing.counts:
        auxiliary = routing.aux_loss()
        metrics["moe/aux_loss"] = Mean(float(auxiliary.detach()) * share, share)
        metrics["moe/load_imbalance"] = Mean(routing.load_imbalance() * share, share)
        loss = loss + settings.router_aux_coef * share * auxiliary
    if fresh_weights:
        metrics |= mismatch_metrics(logp_A, behaviour_A, learnt(wholly_fresh(row)))
    logp_T = np.full(row.num_tokens, np.nan, dtype=np.float32)
    logp_T[row.mask_T] = logp_A.cpu().numpy()
    return RowOutput(loss, metrics, logp_T)


def wholly_fresh(row: PackedRow) -> Bools:
    """bool [T]: the token belongs to a sequence that the present weights sampled from its first action to its last.

    A sequence that got new weights under way went on over states of the old ones: its later tokens have age 0 and
    differ all the same.
    """
    oldest_N = np.maximum.reduceat(row.age_T, row.cu_seqlens[:-1])
    return np.repeat(oldest_N == 0, np.diff(row.cu_seqlens))
