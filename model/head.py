"""The float32 head: logits, log-probabilities and entropy of hidden states.

Log-probabilities are computed in chunks of tokens and recomputed in the backward pass, so memory never holds the
logits of a whole row. Float32 on the sampling and on the learning side is what made MiniMax-M1's RL work: the
correlation of their probabilities rose from 0.987 to 0.997 (report, arXiv 2506.13585, section 3.2).

Shapes: T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HybridConfig
from model.errors import ModelError
from model.kernels.packed import PackedWeight

CHUNK_LOGITS = 1 << 22
"""Logits held at a time: 16 MiB in float32."""


class Head(nn.Module):
    """The last matrix product and what follows it, in float32 whatever the weight's dtype is."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size, dtype=config.dtype))
        self.packed = PackedWeight()

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., V], float32 (float64 of float64 weights)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return self.packed.linear(hidden.to(wide), self.weight.to(wide))

    def logp_and_entropy(self, hidden_TD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and entropy (nats) of each distribution at `temperature`, both [T].

        The entropy is for watching: it carries no gradient. Raises ModelError unless temperature > 0.
        """
        if not temperature > 0:
            raise ModelError(
                f"Log-probabilities need a temperature above 0, not {temperature}; greedy sampling has none."
            )
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        logp_T, entropy_T = _Logp.apply(hidden_TD.to(wide), self.weight.to(wide), targets_T, temperature)
        return logp_T, entropy_T


class _Logp(torch.autograd.Function):
    """Saves one number per token; the backward pass makes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logp_T, entropy_T, log_sum_T = (hidden_TD.new_empty(len(hidden_TD)) for _ in range(3))
        for part in _chunks(len(hidden_TD), len(weight_VD)):
            logits = _logits(hidden_TD[part], weight_VD, temperature)
            log_sum = torch.logsumexp(logits, dim=-1)
            log_sum_T[part] = log_sum
            logp_T[part] = logits.gather(1, targets_T[part, None]).squeeze(1) - log_sum
            prob = torch.exp(logits - log_sum[:, None])
            entropy_T[part] = log_sum - torch.linalg.vecdot(prob, logits)
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, log_sum_T)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_T)
        return logp_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_TD, weight_VD, targets_T, log_sum_T = ctx.saved_tensors
        grad_T = grads[0] / ctx.temperature
        grad_hidden, grad_weight = torch.empty_like(hidden_TD), torch.zeros_like(weight_VD)
        for part in _chunks(len(hidden_TD), len(weight_VD)):
            prob = _logits(hidden_TD[part], weight_VD, ctx.temperature).sub_(log_sum_T[part, None]).exp_()
            grad_logits = prob.mul_(-grad_T[part, None])
            grad_logits.scatter_add_(1, targets_T[part, None], grad_T[part, None])
            grad_hidden[part] = grad_logits @ weight_VD
            grad_weight.addmm_(grad_logits.T, hidden_TD[part])
        return grad_hidden, grad_weight, None, None


def _logits(hidden_TD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    return F.linear(hidden_TD, weight_VD).div_(temperature)


def _chunks(num_tokens: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_LOGITS // vocab_size)
    return [slice(first, first + size) for first in range(0, num_tokens, size)]
