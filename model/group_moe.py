"""Experts in groups with a shared one beside them, and the dense layers before them: Ring-linear's channel mixers.

Scores are sigmoids, not a distribution. Which experts a token visits is decided by score plus a bias of each expert,
which the pretraining moved to balance loads; how much they count is decided by the scores alone:

    score = sigmoid(W x)        choice = score + bias
    kept groups: the `topk_group` of `n_group` whose two best choices have the greatest sum
    experts: the k best choices within the kept groups        weight = factor * score / (sum of the k scores)

Sources: github.com/inclusionAI/Ring-V2.5, models/modeling_bailing_moe_v2_5.py; DeepSeek-V3, arXiv 2412.19437,
equations 12-16, whose router this is. The bias is a constant here: no gradient reaches it, and the balancing loss of
`Routing` takes its place in training, over score / (sum of all scores) as the probabilities.

Shapes: T tokens, D model width, E experts, g groups, k experts per token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HybridConfig
from model.kernels.packed import Linear
from model.moe import MoE, Router, Routing
from model.replay import ChoiceLog, Prescription

TINY = 1e-20
"""Added to a sum of scores before dividing by it, as in the source."""


class DenseMLP(nn.Module):
    """W_down( SiLU(W_gate x) * W_up x ), the same for every token."""

    def __init__(self, config: HybridConfig, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, inner, dtype=config.dtype)
        self.up_proj = Linear(config.hidden_size, inner, dtype=config.dtype)
        self.down_proj = Linear(inner, config.hidden_size, dtype=config.dtype)

    def forward(self, x_TD: Tensor, routing: Routing | ChoiceLog | None = None) -> Tensor:
        """[T, D] -> [T, D]; there is nothing to route."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))
        return out


class GroupRouter(Router):
    """Picks k experts for each token out of its best groups. Weight and bias stay float32, see `Router`."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.num_groups, self.num_kept_groups = config.n_group, config.topk_group
        self.factor = config.routed_scaling_factor
        bias_E = torch.zeros(config.num_local_experts, dtype=self.weight.dtype)
        self.expert_bias = nn.Parameter(bias_E, requires_grad=False)

    def forward(self, x_TD: Tensor, prescribe: Prescription | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """-> score shares [T, E] that sum to 1, weights [T, k], experts int64 [T, k]; float32 at least."""
        score_TE = torch.sigmoid(F.linear(x_TD.to(self.weight.dtype), self.weight))
        expert_Tk = self._choose(score_TE.detach() + self.expert_bias)
        if prescribe is not None:
            expert_Tk = prescribe(expert_Tk)
        weight_Tk = score_TE.gather(1, expert_Tk)
        if self.num_chosen > 1:
            weight_Tk = weight_Tk / (weight_Tk.sum(-1, keepdim=True) + TINY)
        share_TE = score_TE / (score_TE.sum(-1, keepdim=True) + TINY)
        return share_TE, weight_Tk * self.factor, expert_Tk

    def _choose(self, choice_TE: Tensor) -> Tensor:
        if self.num_kept_groups < self.num_groups:
            choice_TgE = choice_TE.unflatten(1, (self.num_groups, -1))
            group_Tg = choice_TgE.topk(2, dim=-1).values.sum(-1)
            kept = group_Tg.topk(self.num_kept_groups, dim=-1).indices
            lost_Tg = torch.ones_like(group_Tg, dtype=torch.bool).scatter_(1, kept, False)
            choice_TE = choice_TgE.masked_fill(lost_Tg[:, :, None], float("-inf")).flatten(1)
        return choice_TE.topk(self.num_chosen, dim=-1).indices


class SharedMoE(MoE):
    """Routed experts plus, on every token, the shared ones, which are one wider expert."""

    def __init__(self, config: HybridConfig, layer: int = 0) -> None:
        super().__init__(config, layer, GroupRouter(config))
        shared = config.num_shared_experts * config.intermediate_size
        self.shared_experts = DenseMLP(config, shared) if shared else None

    def forward(self, x_TD: Tensor, routing: Routing | ChoiceLog | None = None) -> Tensor:
        """[T, D] -> [T, D]; tells `routing` what was decided."""
        routed = super().forward(x_TD, routing)
        return routed if self.shared_experts is None else routed + self.shared_experts(x_TD)
