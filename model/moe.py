"""Mixture of experts: float32 router, top-k with renormalised weights, no token dropped.

Shapes: T tokens, D model width, E experts, k experts per token, f expert width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HybridConfig

DENSE_TOKENS = 256
"""Up to so many tokens all experts run on all of them (without gradients): two large products beat 3 E small ones."""


class Routing:
    """Collects what the routers of one forward pass decided; pass a fresh one to `HybridLM.forward`."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.counts: list[Tensor] = []

    def add(self, logits_TE: Tensor, counts_E: Tensor) -> None:
        """One layer's router logits, float32 [T, E], and tokens per expert, [E]."""
        self.logits.append(logits_TE)
        self.counts.append(counts_E)

    def aux_loss(self) -> Tensor:
        """Load-balancing loss over all layers together, with gradient; its minimum is k, experts per token.

        E * sum_e share_e * probability_e, as transformers' load_balancing_loss_func; Switch Transformer
        (arXiv 2101.03961) equations 4-6.
        """
        rows = sum(len(logits) for logits in self.logits)
        share_E = torch.stack(self.counts).sum(0) / rows
        prob_E = torch.stack([F.softmax(logits, dim=-1).sum(0) for logits in self.logits]).sum(0) / rows
        return (share_E * prob_E).sum() * len(share_E)

    def load_imbalance(self) -> float:
        """Busiest expert's load over the mean load, averaged over layers; 1 is balanced, E is all on one."""
        counts_LE = torch.stack(self.counts).float()
        return float((counts_LE.amax(1) / counts_LE.mean(1)).mean())


class Router(nn.Module):
    """Picks k experts for each token. Its weight stays float32 when the model around it is cast."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        dtype = torch.promote_types(config.dtype, torch.float32)
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size, dtype=dtype))
        self.num_chosen = config.num_experts_per_tok

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> logits [T, E], weights [T, k] that sum to 1, experts int64 [T, k]; floats are float32 at least."""
        logits_TE = F.linear(x_TD.to(self.weight.dtype), self.weight)
        prob_Tk, expert_Tk = torch.topk(torch.softmax(logits_TE, dim=-1), self.num_chosen, dim=-1)
        return logits_TE, prob_Tk / prob_Tk.sum(-1, keepdim=True), expert_Tk

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Follow moves between devices and widening casts, but not `model.to(torch.bfloat16)`."""

        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype.itemsize < torch.float32.itemsize:
                return tensor.to(moved.device)
            return moved

        super()._apply(keep_wide, recurse)
        return self


class Experts(nn.Module):
    """The experts' weights, stacked: gate_up_proj [E, 2f, D] (gate rows first) and down_proj [E, D, f]."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        experts, width, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width, dtype=config.dtype))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner, dtype=config.dtype))

    def forward(self, x_TD: Tensor, weight_Tk: Tensor, expert_Tk: Tensor, counts_E: Tensor) -> Tensor:
        """Sum over each token's experts of weight * W2(SiLU(W1 x) * W3 x) -> [T, D]."""
        if len(x_TD) <= DENSE_TOKENS and not torch.is_grad_enabled():
            return self._all_experts(x_TD, weight_Tk, expert_Tk)
        num_chosen = expert_Tk.shape[1]
        order = expert_Tk.flatten().argsort(stable=True)
        token = order // num_chosen
        parts = x_TD.index_select(0, token).split(counts_E.tolist())
        outs = [
            F.linear(_gated(F.linear(part, gate_up)), down)
            for part, gate_up, down in zip(parts, self.gate_up_proj, self.down_proj, strict=True)
        ]
        weight = weight_Tk.flatten().index_select(0, order).to(x_TD.dtype)
        return torch.zeros_like(x_TD).index_add(0, token, torch.cat(outs) * weight[:, None])

    def _all_experts(self, x_TD: Tensor, weight_Tk: Tensor, expert_Tk: Tensor) -> Tensor:
        num_experts, width, _ = self.down_proj.shape
        weight_TE = x_TD.new_zeros(len(x_TD), num_experts).scatter_(1, expert_Tk, weight_Tk.to(x_TD.dtype))
        inner = F.linear(x_TD, self.gate_up_proj.flatten(0, 1)).view(len(x_TD), num_experts, -1)
        inner = _gated(inner) * weight_TE[:, :, None]
        return inner.flatten(1) @ self.down_proj.transpose(1, 2).reshape(-1, width)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class MoE(nn.Module):
    """The channel mixer: router and experts."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)

    def forward(self, x_TD: Tensor, routing: Routing | None = None) -> Tensor:
        """[T, D] -> [T, D]; tells `routing` what was decided."""
        logits_TE, weight_Tk, expert_Tk = self.gate(x_TD)
        counts_E = torch.bincount(expert_Tk.flatten(), minlength=logits_TE.shape[1])
        if routing is not None:
            routing.add(logits_TE, counts_E)
        mixed: Tensor = self.experts(x_TD, weight_Tk, expert_Tk, counts_E)
        return mixed
