"""Rewards of a group -> advantages -> samples with the credit of each token.

Equation 2 of the MiniMax-M1 report: A_i = (R_i - mean_j R_j) / std_j R_j, the same for every token of trajectory i.
A group whose rewards are all equal says nothing and gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cispo.errors import ConfigError
from cispo.types import Floats, Group, Sample, Trajectory

NORMALISATIONS: tuple[str, ...] = ("std", "mean", "batch")

FLAT = 1e-6
"""Rewards closer together than this, relative to their size, are equal: their spread is rounding."""


def group_advantages(rewards_G: ArrayLike, *, normalise: str = "std") -> Floats:
    """Advantages of one group.

    Args:
        rewards_G: float [G]; NaN marks a trajectory that could not be scored: it is left out of mean and standard
            deviation and gets 0.
        normalise: "std" divides by the group's population standard deviation (the report), "mean" only centres.

    Returns:
        float32 [G]; zeros for a flat group, for one reward and for none.

    Raises:
        ConfigError: another word than "std" or "mean".

    Source: MiniMax-M1 (arXiv 2506.13585), equation 2.
    """
    if normalise not in ("std", "mean"):
        raise ConfigError(f"the advantages of one group can be normalised by 'std' or 'mean', not by {normalise!r}.")
    rewards = np.asarray(rewards_G, dtype=np.float64)
    usable = ~np.isnan(rewards)
    advantages = np.zeros_like(rewards)
    if is_flat(rewards):
        return advantages.astype(np.float32)
    centred = rewards[usable] - rewards[usable].mean()
    advantages[usable] = centred / centred.std() if normalise == "std" else centred
    return advantages.astype(np.float32)


def is_flat(rewards_G: ArrayLike) -> bool:
    """True when fewer than two rewards are usable, or all usable ones are equal."""
    rewards = np.asarray(rewards_G, dtype=np.float64)
    rewards = rewards[~np.isnan(rewards)]
    if len(rewards) < 2:
        return True
    return bool(np.ptp(rewards) <= FLAT * max(1.0, float(np.abs(rewards).max())))


def has_signal(group: Group) -> bool:
    """True when the group's advantages are not all zero; what dynamic sampling keeps."""
    return not is_flat(group.rewards_G)


def assign_credit(groups: Sequence[Group], *, normalise: str = "std") -> list[Sample]:
    """One Sample for every usable trajectory of every group.

    normalise="batch" centres by the group and divides by the standard deviation over all centred rewards of the
    step (ScaleRL, arXiv 2510.13786). Trajectories that could not be scored are left out: they count for nothing.
    """
    advantages = [
        group_advantages(g.rewards_G, normalise="mean" if normalise == "batch" else normalise) for g in groups
    ]
    if normalise == "batch" and groups:
        usable = np.concatenate([a[[s.usable for s in g.scores]] for a, g in zip(advantages, groups, strict=True)])
        spread = float(usable.std())
        advantages = [a / spread if spread > 0 else a for a in advantages]
    return [
        _sample(group.index, member, trajectory, float(advantage))
        for group, advantages_G in zip(groups, advantages, strict=True)
        for member, (trajectory, score, advantage) in enumerate(
            zip(group.trajectories, group.scores, advantages_G, strict=True)
        )
        if score.usable and trajectory.num_actions
    ]


def _sample(group: int, member: int, trajectory: Trajectory, advantage: float) -> Sample:
    mask_T = trajectory.action_mask_T & np.isfinite(trajectory.behaviour_logp_T)
    return Sample(
        group=group,
        member=member,
        tokens_T=trajectory.token_ids_T,
        mask_T=mask_T,
        behaviour_logp_T=np.where(mask_T, trajectory.behaviour_logp_T, 0.0).astype(np.float32),
        advantage_T=np.where(mask_T, advantage, 0.0).astype(np.float32),
        version_T=trajectory.version_T,
        experts_TLk=trajectory.experts_TLk,
    )
