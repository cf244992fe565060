"""Mixture of experts: float32 router, top-k with renormalised weights, no token dropped.

Shapes: T tokens, D model width, E experts, k experts per token, f expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HybridConfig
from model.kernels.packed import PackedWeight
from model.replay import ChoiceLog, Prescription, Replay

DENSE_WORK = 1 << 21
"""Multiplications of the first product below which, without gradients, all experts run on all tokens: few large
products start sooner than two per expert. On one CPU thread with 8 experts that is 63 tokens at width 64 and none
at width 256 (16 tokens, 8 layers: 45 ms for all experts against 20 for the chosen)."""

DENSE_TOKENS = 256
"""The same bound on accelerators, in tokens: there a product's start and the host's waiting for counts cost more."""


class Routing:
    """Collects what the routers of one forward pass decided; pass a fresh one to `HybridLM.forward`.

    Attributes:
        replay: what they are to choose instead of what they would; None leaves the choice to them.
    """

    def __init__(self, replay: Replay | None = None) -> None:
        self.replay = replay
        self.probs: list[Tensor] = []
        self.counts: list[Tensor] = []
        self._is_closed = False

    def add(self, prob_TE: Tensor, counts_E: Tensor) -> None:
        """One layer's router probabilities over all experts, float32 [T, E], and tokens per expert, [E]."""
        if not self._is_closed:
            self.probs.append(prob_TE)
            self.counts.append(counts_E)

    def prescription(self, layer: int) -> Prescription | None:
        """What turns the choice of a layer's router into the recorded one; None where it has its own way."""
        return None if self.replay is None else self.replay.prescription(layer)

    def close(self) -> None:
        """Collect no more: a backward pass that makes activations again runs the routers a second time."""
        self._is_closed = True

    def aux_loss(self) -> Tensor:
        """Load-balancing loss over all layers together, with gradient; its minimum is k, experts per token.

        E * sum_e share_e * probability_e, as transformers' load_balancing_loss_func; Switch Transformer
        (arXiv 2101.03961) equations 4-6.
        """
        rows = sum(len(prob_TE) for prob_TE in self.probs)
        share_E = torch.stack(self.counts).sum(0) / rows
        prob_E = torch.stack([prob_TE.sum(0) for prob_TE in self.probs]).sum(0) / rows
        return (share_E * prob_E).sum() * len(share_E)

    def load_imbalance(self) -> float:
        """Busiest expert's load over the mean load, averaged over layers; 1 is balanced, E is all on one."""
        counts_LE = torch.stack(self.counts).float()
        return float((counts_LE.amax(1) / counts_LE.mean(1)).mean())


def choose_experts(
    weight_ED: Tensor, x_TD: Tensor, num_chosen: int, prescribe: Prescription | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-> probabilities [T, E], weights [T, k] that sum to 1, experts int64 [T, k], in the router weight's dtype.

    `prescribe` may replace the experts; the weights are then the probabilities of those, over their sum.
    """
    # experts first: a softmax over a few neighbouring numbers is 15 times slower than one over rows
    prob_TE = torch.softmax(weight_ED @ x_TD.to(weight_ED.dtype).T, dim=0).T
    prob_Tk, expert_Tk = torch.topk(prob_TE, num_chosen, dim=-1)
    if prescribe is not None:
        expert_Tk = prescribe(expert_Tk)
        prob_Tk = prob_TE.gather(1, expert_Tk)
    return prob_TE, prob_Tk / prob_Tk.sum(-1, keepdim=True), expert_Tk


class Router(nn.Module):
    """Picks k experts for each token. Its weight stays float32 when the model around it is cast."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        dtype = torch.promote_types(config.dtype, torch.float32)
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size, dtype=dtype))
        self.num_chosen = config.num_experts_per_tok

    def forward(self, x_TD: Tensor, prescribe: Prescription | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """-> probabilities [T, E], weights [T, k] that sum to 1, experts int64 [T, k]; float32 at least."""
        return choose_experts(self.weight, x_TD, self.num_chosen, prescribe)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Follow moves between devices and widening casts, but not `model.to(torch.bfloat16)`."""

        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype.itemsize < torch.float32.itemsize:
                return tensor.to(moved.device)
            return moved

        super()._apply(keep_wide, recurse)
        return self


class _Mix(torch.autograd.Function):
    """Each expert on its own tokens, start to end while they are in the cache, and the same in reverse.

    Autograd would gather, multiply, weigh and scatter whole rows of T * k tokens between each two products. Only
    what enters an expert's nonlinearity is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_Tk: Tensor, gate_up: Tensor, down: Tensor, expert_Tk: Tensor, counts_E: Tensor
    ) -> Tensor:
        order = expert_Tk.flatten().argsort(stable=True)
        visits = order.split(counts_E.tolist())  # places in the flat [T * k] list of visits, expert by expert
        out_TD = torch.zeros_like(x_TD)
        kept = []
        for e, visit in enumerate(visits):
            token = visit // weight_Tk.shape[1]
            inner = F.linear(x_TD.index_select(0, token), gate_up[e])
            weight = weight_Tk.flatten().index_select(0, visit).to(x_TD.dtype)
            out_TD.index_add_(0, token, F.linear(_gated(inner).mul_(weight[:, None]), down[e]))
            kept.append(inner)
        ctx.save_for_backward(x_TD, weight_Tk, gate_up, down, *visits, *kept)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_Tk, gate_up, down, *saved = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(x_TD), torch.empty_like(weight_Tk)
        grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
        flat_weight, flat_grad_weight = weight_Tk.flatten(), grad_weight.view(-1)
        for e, (visit, inner) in enumerate(zip(saved[: len(down)], saved[len(down) :], strict=True)):
            token = visit // weight_Tk.shape[1]
            x, grad = x_TD.index_select(0, token), grads[0].index_select(0, token)
            weight = flat_weight.index_select(0, visit).to(x.dtype)[:, None]
            gate, up = inner.chunk(2, dim=-1)
            silu = F.silu(gate)
            gated = silu * up
            grad_gated = grad @ down[e]
            flat_grad_weight[visit] = torch.linalg.vecdot(grad_gated, gated).to(weight_Tk.dtype)
            torch.mm(grad.T, gated.mul_(weight), out=grad_down[e])
            grad_gated.mul_(weight)
            grad_gate = torch.ops.aten.silu_backward(grad_gated * up, gate)
            grad_inner = torch.cat([grad_gate, grad_gated.mul_(silu)], dim=-1)
            torch.mm(grad_inner.T, x, out=grad_gate_up[e])
            grad_x.index_add_(0, token, grad_inner @ gate_up[e])
        return grad_x, grad_weight, grad_gate_up, grad_down, None, None


class Experts(nn.Module):
    """The experts' weights, stacked: gate_up_proj [E, 2f, D] (gate rows first) and down_proj [E, D, f]."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        experts, width, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width, dtype=config.dtype))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner, dtype=config.dtype))
        self.packed_gate_up = [PackedWeight() for _ in range(experts)]

    def forward(self, x_TD: Tensor, weight_Tk: Tensor, expert_Tk: Tensor, counts_E: Tensor) -> Tensor:
        """Sum over each token's experts of weight * W2(SiLU(W1 x) * W3 x) -> [T, D]."""
        mixed: Tensor = _Mix.apply(x_TD, weight_Tk, self.gate_up_proj, self.down_proj, expert_Tk, counts_E)
        return mixed

    def infer(self, x_TD: Tensor, weight_Tk: Tensor, expert_Tk: Tensor) -> Tensor:
        """The same sum without gradients, the quicker way."""
        num_tokens = len(x_TD)
        on_cpu = x_TD.device.type == "cpu"
        if num_tokens * self.gate_up_proj.numel() < DENSE_WORK if on_cpu else num_tokens <= DENSE_TOKENS:
            return self._run_all(x_TD, weight_Tk, expert_Tk)
        return self._run_chosen(x_TD, weight_Tk, expert_Tk)

    def _run_chosen(self, x_TD: Tensor, weight_Tk: Tensor, expert_Tk: Tensor) -> Tensor:
        """Each expert on its own tokens, start to end while they are in the cache.

        On one CPU thread at width 256 that takes 0.66 of the time of one product after another over all experts at
        64 and 4,096 tokens; two batched products, padded to the busiest expert, take 0.8 at 4,096.
        """
        order = expert_Tk.flatten().argsort(stable=True)
        counts = torch.bincount(expert_Tk.flatten(), minlength=len(self.down_proj)).tolist()
        token = order // expert_Tk.shape[1]
        rows = x_TD.index_select(0, token)
        outs = torch.empty_like(rows)
        for e, (mine, out) in enumerate(zip(rows.split(counts), outs.split(counts), strict=True)):
            inner = self.packed_gate_up[e].linear(mine, self.gate_up_proj[e])
            torch.mm(_gated(inner), self.down_proj[e].mT, out=out)
        weight = weight_Tk.flatten().index_select(0, order).to(x_TD.dtype)
        return torch.zeros_like(x_TD).index_add_(0, token, outs.mul_(weight[:, None]))

    def _run_all(self, x_TD: Tensor, weight_Tk: Tensor, expert_Tk: Tensor) -> Tensor:
        """All experts on all tokens, with weight 0 for those that a token did not choose."""
        num_experts = len(self.down_proj)
        weight_TE = x_TD.new_zeros(len(x_TD), num_experts).scatter_(1, expert_Tk, weight_Tk.to(x_TD.dtype))
        inner = F.linear(x_TD, self.gate_up_proj.flatten(0, 1)).view(len(x_TD), num_experts, -1)
        inner = _gated(inner).mul_(weight_TE[:, :, None])
        return torch.bmm(inner.transpose(0, 1), self.down_proj.mT).sum(0)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class MoE(nn.Module):
    """The channel mixer: router and experts; `layer` counts the layers with routers."""

    def __init__(self, config: HybridConfig, layer: int = 0, router: Router | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.gate = Router(config) if router is None else router
        self.experts = Experts(config)

    def forward(self, x_TD: Tensor, routing: Routing | ChoiceLog | None = None) -> Tensor:
        """[T, D] -> [T, D]; tells `routing` what was decided, and asks a Routing what to decide."""
        learning = routing if isinstance(routing, Routing) else None
        prescribe = learning.prescription(self.layer) if learning is not None else None
        prob_TE, weight_Tk, expert_Tk = self.gate(x_TD, prescribe)
        if isinstance(routing, ChoiceLog):
            routing.note(self.layer, expert_Tk)
        if not torch.is_grad_enabled() and learning is None:
            return self.experts.infer(x_TD, weight_Tk, expert_Tk)
        counts_E = torch.bincount(expert_Tk.flatten(), minlength=prob_TE.shape[1])
        if learning is not None:
            learning.add(prob_TE, counts_E)
        mixed: Tensor = self.experts(x_TD, weight_Tk, expert_Tk, counts_E)
        return mixed
