"""Which policy the importance ratio is against, and what becomes of tokens whose sampler was another policy.

Four policies are never mixed up: behaviour (sampled the token), proximal (the weights at the start of the step),
current (those being updated) and reference (there is none). A token's off-policyness is corrected once:

    ratio_against=behaviour   ratio current/behaviour, clipped
    ratio_against=proximal    ratio current/proximal, clipped, times min(proximal/behaviour, tis_cap), a constant

The second is truncated importance sampling (TIS, fengyao.notion.site/off-policy-rl; AReaL, arXiv 2505.24298): the clip
then bounds what the step's own updates do, and the cap what staleness and numerics did before. Masks may drop what is
too far off: tokens outside a band of proximal/behaviour (IcePop, ringtech.notion.site), and sequences whose geometric
mean of it is outside another. Whatever it does it does to `weight_T`, here on the driver, from log-probabilities that
every learner returns the same way: so a learner knows nothing of it, and no sequence has to lie on one rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cispo.errors import ConfigError
from cispo.loss import MAX_LOG_RATIO
from cispo.metrics import Mean, Metric, merge_all
from cispo.protocols import Learner
from cispo.types import Bools, Floats, PackedBatch, PackedRow

RATIOS = ("behaviour", "proximal")

TIS_CAP = 2.0
"""What verl and slime use."""


@dataclass(frozen=True)
class CorrectionConfig:
    """How the difference between the policy that sampled and the one that learns is corrected.

    Attributes:
        ratio_against: what the clipped ratio has below the line: the behaviour policy, or the proximal one, which is
            recomputed at the start of each step.
        tis_cap: with the proximal ratio, the largest weight proximal/behaviour of a token; null is 2.
        token_mask_below, token_mask_above: tokens whose proximal/behaviour is outside are rejected; 0 and inf are off.
            IcePop has 0.5 and 5.
        sequence_mask_below, sequence_mask_above: the same of whole sequences, by the geometric mean of their tokens.
        replay_experts: the routers visit the experts in learning that were visited in sampling (R3).
    """

    ratio_against: str = "behaviour"
    tis_cap: float | None = None
    token_mask_below: float = 0.0
    token_mask_above: float = math.inf
    sequence_mask_below: float = 0.0
    sequence_mask_above: float = math.inf
    replay_experts: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.ratio_against not in RATIOS:
            faults.append(f"correction.ratio_against must be one of {', '.join(RATIOS)}; got {self.ratio_against!r}.")
        if self.tis_cap is not None and self.ratio_against == "behaviour":
            faults.append(
                f"correction.tis_cap={self.tis_cap:g} belongs to correction.ratio_against=proximal, because the ratio "
                f"against the behaviour policy corrects the same difference already; leave one of them out."
            )
        if not self.cap >= 1.0:
            faults.append(
                f"correction.tis_cap must be at least 1, because it is the largest weight itself; got {self.cap:g}."
            )
        for kind in ("token", "sequence"):
            below, above = getattr(self, f"{kind}_mask_below"), getattr(self, f"{kind}_mask_above")
            if not 0.0 <= below < 1.0 < above:
                faults.append(
                    f"correction.{kind}_mask_below and {kind}_mask_above must lie on either side of 1, because they "
                    f"are ratios and 1 is no difference at all; got {below:g} and {above:g}, where 0 and inf are off."
                )
        if faults:
            raise ConfigError(*faults)

    @property
    def cap(self) -> float:
        """The largest weight of a token with the proximal ratio."""
        return TIS_CAP if self.tis_cap is None else self.tis_cap

    @property
    def masks_tokens(self) -> bool:
        """Some token may be rejected for itself."""
        return self.token_mask_below > 0.0 or math.isfinite(self.token_mask_above)

    @property
    def masks_sequences(self) -> bool:
        """Some sequence may be rejected as a whole."""
        return self.sequence_mask_below > 0.0 or math.isfinite(self.sequence_mask_above)

    @property
    def needs_proximal(self) -> bool:
        """The learner has to recompute log-probabilities at the start of a step."""
        return self.ratio_against == "proximal" or self.masks_tokens or self.masks_sequences


def correct(
    learner: Learner, batches: Sequence[PackedBatch], config: CorrectionConfig, temperature: float
) -> tuple[list[PackedBatch], dict[str, float]]:
    """A step's batches with the learner's present weights as the proximal policy, and what was done to them."""
    corrected, parts = [], []
    for batch in batches:
        proximal_rows = learner.logp(batch, temperature)
        rows = [correct_row(row, logp_T, config) for row, logp_T in zip(batch.rows, proximal_rows, strict=True)]
        corrected.append(PackedBatch(tuple(row for row, _ in rows)))
        parts += [metrics for _, metrics in rows]
    metrics = {name: float(metric) for name, metric in merge_all(parts).items()}
    return corrected, {name: value for name, value in metrics.items() if not math.isnan(value)}


def correct_row(
    row: PackedRow, proximal_logp_T: Floats, config: CorrectionConfig
) -> tuple[PackedRow, dict[str, Metric]]:
    """One row with corrected weights.

    Weights were means over all learnt tokens before anything was rejected, and stay so: what is rejected keeps its
    place below the line, and the others weigh no more for it.

    Args:
        row: as packed.
        proximal_logp_T: float32 [T], NaN where not learnt from.
        config: what to do.
    """
    learnt_T = row.mask_T
    log_ratio_T = np.where(learnt_T, proximal_logp_T.astype(np.float64) - row.behaviour_logp_T, 0.0)
    ratio_T = np.exp(np.minimum(log_ratio_T, MAX_LOG_RATIO))
    mean_N = _geometric_means(row, log_ratio_T)
    is_learnt_N = np.logical_or.reduceat(learnt_T, row.cu_seqlens[:-1])
    in_token_band_T = _within(ratio_T, config.token_mask_below, config.token_mask_above)
    in_sequence_band_N = _within(mean_N, config.sequence_mask_below, config.sequence_mask_above)
    factor_T = (in_token_band_T & np.repeat(in_sequence_band_N, np.diff(row.cu_seqlens))).astype(np.float64)
    metrics: dict[str, Metric] = {
        "drift/proximal_kl": _mean(np.expm1(np.minimum(log_ratio_T, MAX_LOG_RATIO)) - log_ratio_T, learnt_T)
    }
    if config.masks_tokens:
        metrics["correction/masked_token_fraction"] = _mean(~in_token_band_T, learnt_T)
    if config.masks_sequences:
        metrics["correction/masked_sequence_fraction"] = _mean(~in_sequence_band_N, is_learnt_N)
    if config.ratio_against == "behaviour":
        return dataclasses.replace(row, weight_T=(row.weight_T * factor_T).astype(np.float32)), metrics
    metrics["correction/weight_mean"] = _mean(np.minimum(ratio_T, config.cap), learnt_T)
    metrics["correction/capped_fraction"] = _mean(ratio_T > config.cap, learnt_T)
    factor_T *= np.minimum(ratio_T, config.cap)
    weight_T = (row.weight_T * factor_T).astype(np.float32)
    return dataclasses.replace(row, weight_T=weight_T, proximal_logp_T=proximal_logp_T), metrics


def _geometric_means(row: PackedRow, log_ratio_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each sequence's ratios, [N]; 1 for one with nothing to learn."""
    first_N = row.cu_seqlens[:-1]
    num_learnt_N = np.add.reduceat(row.mask_T.astype(np.int64), first_N)
    return np.exp(np.minimum(np.add.reduceat(log_ratio_T, first_N) / np.maximum(num_learnt_N, 1), MAX_LOG_RATIO))


def _within(ratio: NDArray[np.float64], below: float, above: float) -> Bools:
    return (ratio >= below) & (ratio <= above)


def _mean(values: NDArray[np.generic], mask: Bools) -> Mean:
    return Mean(float(values[mask].sum()), float(mask.sum()))
