"""The objective: CISPO and, as parameter values of one formula, the clipped kin it is compared with.

    loss = - sum_t  weight_t * sg(clip(r_t, ratio_floor, ratio_cap)) * M_t * advantage_t * logp_t * mask_t
    r_t  = exp(logp_t - behaviour_logp_t),  sg = stop-gradient

MiniMax-M1 (arXiv 2506.13585), equations 4-7: the clipped ratio is a *weight*, the gradient flows through logp alone,
so every token keeps its gradient. M_t, the unified mask of equation 7, is 1 unless asked for: it drops tokens with
advantage > 0 and r > mask_above, and tokens with advantage < 0 and r < mask_below.

| objective    | ratio_cap | ratio_floor | mask_below | mask_above |
|--------------|-----------|-------------|------------|------------|
| CISPO        | 3         | 0           | 0          | inf        |
| CISPO masked | 3         | 0           | 0.8        | 1.28       |
| PPO / GRPO   | inf       | 0           | 0.8        | 1.2        |
| DAPO         | inf       | 0           | 0.8        | 1.28       |
| REINFORCE    | 1         | 1           | 0          | inf        |
| likelihood   | 1         | 1           | 0          | inf        | (advantage 1: the cold start)

PPO's min(r A, clip(r) A) has the gradient r A grad(logp) where its clip is inactive and zero elsewhere, which is the
row above; a test compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cispo.errors import ConfigError
from cispo.metrics import Max, Mean, Metric, Pearson, Sum

MAX_LOG_RATIO = 20.0
"""exp(20) = 4.9e8: beyond any cap in use, and far from float32's overflow when no cap is set."""


@dataclass(frozen=True)
class LossOutput:
    """The loss of one packed row: a scalar with a graph, and what to log of it (float() reads each metric)."""

    loss: Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)


def check_band(ratio_cap: float, ratio_floor: float) -> None:
    """Refuse bands that cannot be meant; raises ConfigError.

    The numbers are the ratios themselves. Frameworks that name them epsilons make 0.2 mean a cap of 1.2 in one place
    and a cap of 0.2, a five times smaller loss, in another.
    """
    faults = []
    if not ratio_cap >= 1.0:
        faults.append(
            f"ratio_cap must be at least 1, because it is the largest importance ratio itself and not an epsilon; "
            f"got {ratio_cap:g}. For a clip range of 1 + {ratio_cap:g} write ratio_cap={1 + ratio_cap:g}."
        )
    if not 0.0 <= ratio_floor <= 1.0:
        faults.append(
            f"ratio_floor must lie in [0, 1], because it is the smallest importance ratio itself; got {ratio_floor:g}. "
            f"0 means no floor, which is the published setting."
        )
    if faults:
        raise ConfigError(*faults)


def check_mask(mask_above: float, mask_below: float) -> None:
    """Refuse a unified mask that cannot be meant; raises ConfigError. Its numbers are ratios too, not epsilons."""
    faults = []
    if not mask_above >= 1.0:
        faults.append(
            f"mask_above must be at least 1, because it is the importance ratio itself above which tokens are dropped "
            f"and not an epsilon; got {mask_above:g}. For 1 + {mask_above:g} write mask_above={1 + mask_above:g}; "
            f"inf is off."
        )
    if not 0.0 <= mask_below <= 1.0:
        faults.append(
            f"mask_below must lie in [0, 1], because it is the importance ratio itself below which tokens are dropped; "
            f"got {mask_below:g}. 0 is off."
        )
    if faults:
        raise ConfigError(*faults)


def cispo_loss(
    logp_T: Tensor,
    behaviour_logp_T: Tensor,
    advantage_T: Tensor,
    weight_T: Tensor,
    mask_T: Tensor,
    *,
    ratio_cap: float,
    ratio_floor: float = 0.0,
    mask_above: float = math.inf,
    mask_below: float = 0.0,
) -> LossOutput:
    """The CISPO loss of one packed row.

    Args:
        logp_T: float [T], log-probabilities of the tokens under the current policy; carries the gradient.
        behaviour_logp_T: float [T], under the policy and distribution that sampled them.
        advantage_T: float [T].
        weight_T: float [T], the aggregation (cispo/packing.py); it makes the sum over all rows the wanted mean.
        mask_T: bool [T], tokens that are learnt from. What the other streams hold elsewhere, NaN included, is ignored.
        ratio_cap, ratio_floor: the ratio is clipped into [ratio_floor, ratio_cap].
        mask_above, mask_below: the unified mask's ratios; the defaults switch it off.

    Returns:
        LossOutput; a token in the mask whose behaviour log-probability is not finite is dropped and counted
        (`ratio/nonfinite`).

    Raises:
        ConfigError: a cap or mask_above below 1, a floor or mask_below outside [0, 1].

    Source: MiniMax-M1 (arXiv 2506.13585), equations 4-7.
    """
    band = Band(ratio_cap, ratio_floor, mask_above, mask_below)
    credit = token_credit(logp_T, behaviour_logp_T, advantage_T, weight_T, mask_T, band)
    # `where` and not a product: 0 * NaN is NaN, in the value and in the gradient.
    loss = -(credit.coefficient_T * torch.where(credit.used_T, logp_T, 0.0)).sum()
    return LossOutput(loss, ratio_metrics(credit, mask_T, band))


@dataclass(frozen=True)
class Band:
    """Which importance ratios count, and how; raises ConfigError for one that cannot be meant.

    Attributes:
        ratio_cap, ratio_floor: the ratio is clipped into [ratio_floor, ratio_cap].
        mask_above, mask_below: the unified mask's ratios; the defaults switch it off.
    """

    ratio_cap: float
    ratio_floor: float = 0.0
    mask_above: float = math.inf
    mask_below: float = 0.0

    def __post_init__(self) -> None:
        check_band(self.ratio_cap, self.ratio_floor)
        check_mask(self.mask_above, self.mask_below)


@dataclass(frozen=True)
class TokenCredit:
    """What the objective makes of each token; constants to the gradient, all [T].

    Attributes:
        coefficient_T: weight * clipped ratio * advantage, 0 where dropped; the loss is minus the sum of it times logp.
        log_ratio_T: logp - behaviour_logp, at most MAX_LOG_RATIO; 0 where not used.
        used_T: bool, in the mask and with a finite behaviour log-probability.
        outward_T: bool, dropped by the unified mask.
    """

    coefficient_T: Tensor
    log_ratio_T: Tensor
    used_T: Tensor
    outward_T: Tensor


@torch.no_grad()
def token_credit(
    logp_T: Tensor, behaviour_logp_T: Tensor, advantage_T: Tensor, weight_T: Tensor, mask_T: Tensor, band: Band
) -> TokenCredit:
    """What each token's log-probability is multiplied with; arguments as in `cispo_loss`.

    No token needs another, so any piece of a row can be asked for as soon as its log-probabilities are known: a head
    that works in chunks has the whole gradient of a chunk there and then.
    """
    used_T = mask_T.bool() & torch.isfinite(behaviour_logp_T)
    log_ratio_T = torch.where(used_T, logp_T - behaviour_logp_T, 0.0).clamp(max=MAX_LOG_RATIO)
    ratio_T = log_ratio_T.exp()
    advantage_T = torch.where(used_T, advantage_T, 0.0)
    outward_T = ((advantage_T > 0) & (ratio_T > band.mask_above)) | ((advantage_T < 0) & (ratio_T < band.mask_below))
    clipped_T = ratio_T.clamp(band.ratio_floor, band.ratio_cap)
    coefficient_T = torch.where(used_T & ~outward_T, weight_T * clipped_T * advantage_T, 0.0)
    return TokenCredit(coefficient_T, log_ratio_T, used_T, outward_T)


def ratio_metrics(credit: TokenCredit, mask_T: Tensor, band: Band) -> dict[str, Metric]:
    """What to log of the ratios of the tokens in `mask_T`, bool [T]."""
    ratio_T, used_T = credit.log_ratio_T.exp(), credit.used_T
    return {
        "ratio/mean": Mean.of(ratio_T, used_T),
        "ratio/max": Max.of(ratio_T, used_T),
        "ratio/capped_fraction": Mean.of((ratio_T > band.ratio_cap).float(), used_T),
        "ratio/masked_fraction": Mean.of(credit.outward_T.float(), used_T),
        "ratio/nonfinite": Sum(float((mask_T.bool() & ~used_T).sum())),
        "drift/kl": Mean.of(_k3(credit.log_ratio_T), used_T),
    }


def mismatch_metrics(logp_T: Tensor, behaviour_logp_T: Tensor, fresh_T: Tensor) -> dict[str, Metric]:
    """How far sampler and learner are apart on tokens that the very same weights sampled.

    Only meaningful before the first update of a step, on the tokens of sequences that are wholly of age 0 (fresh_T,
    bool [T]): there the true difference is zero, so all that is seen is numerics or a fault in the weight sync.
    """
    logp_T, behaviour_logp_T = logp_T.detach(), behaviour_logp_T.detach()
    log_ratio_T = logp_T - behaviour_logp_T
    difference_T = log_ratio_T.abs()
    return {
        "mismatch/kl": Mean.of(_k3(log_ratio_T), fresh_T),
        "mismatch/logp_abs_diff_mean": Mean.of(difference_T, fresh_T),
        "mismatch/logp_abs_diff_max": Max.of(difference_T, fresh_T),
        "mismatch/prob_pearson": Pearson.of(logp_T.exp(), behaviour_logp_T.exp(), fresh_T),
    }


def in_flight_metrics(logp_T: Tensor, behaviour_logp_T: Tensor, in_flight_T: Tensor) -> dict[str, Metric]:
    """The same on tokens that these weights sampled in sequences that older ones began (in_flight_T, bool [T]).

    They went on over states and keys of the older weights, so this difference is not zero: it is what new weights in
    flight cost.
    """
    log_ratio_T = logp_T.detach() - behaviour_logp_T.detach()
    return {
        "mismatch/in_flight_kl": Mean.of(_k3(log_ratio_T), in_flight_T),
        "mismatch/in_flight_logp_abs_diff_mean": Mean.of(log_ratio_T.abs(), in_flight_T),
    }


def drift_metrics(logp_T: Tensor, behaviour_logp_T: Tensor, mask_T: Tensor) -> dict[str, Metric]:
    """`drift/kl` where the objective's ratio is against another policy: KL(behaviour || current) all the same."""
    return {"drift/kl": Mean.of(_k3((logp_T.detach() - behaviour_logp_T).clamp(max=MAX_LOG_RATIO)), mask_T)}


def _k3(log_ratio_T: Tensor) -> Tensor:
    """r - 1 - log r, float64: of log-ratios around 1e-6 the plain float32 form is nothing but rounding."""
    log_ratio_T = log_ratio_T.double()
    return torch.expm1(log_ratio_T) - log_ratio_T
