"""The float32 head: logits, log-probabilities and entropy of hidden states.

Nothing here ever holds the logits of a whole row: they are made a chunk of tokens at a time. Two ways to learn:

    weighted_logp       sum of coefficient * logp in one pass: the coefficients are constants to the gradient and known
                        as soon as a chunk's log-probabilities are, so the chunk's share of both gradients is made at
                        once: three matrix products in all
    logp_and_entropy    log-probabilities as they are, whatever is made of them; the backward pass makes each chunk's
                        logits again: four products

Float32 on the sampling and on the learning side is what made MiniMax-M1's RL work: the correlation of their
probabilities rose from 0.987 to 0.997 (report, arXiv 2506.13585, section 3.2).

Shapes: T tokens, t tokens of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.config import HybridConfig
from model.errors import ModelError
from model.kernels.packed import PackedWeight

CHUNK_LOGITS = 1 << 22
"""Logits held at a time, in each of two buffers: 16 MiB in float32, half of a server's last-level cache."""

CHUNK_TOKENS = 128
"""Least tokens of a chunk. With fewer, adding to the gradient of a large weight costs more than the product.
V 32768, D 256, T 1024, one thread: 64 tokens 1.52 s, 128 tokens 1.17, 256 tokens 1.30; the products alone 1.09."""

Coefficients = Callable[[Tensor, slice], Tensor]
"""(log-probabilities [t] of a chunk, the chunk's place in the row) -> what multiplies each of them, [t]."""


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
        logp_T, entropy_T = _Logp.apply(*self._inputs(hidden_TD, temperature), targets_T, self.chunks)
        return logp_T, entropy_T

    def weighted_logp(
        self, hidden_TD: Tensor, targets_T: Tensor, coefficients: Coefficients, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum over tokens of coefficient * logp, and `logp_and_entropy`, both [T] and without gradient.

        The gradient of the sum takes the coefficients as constants, as CISPO does with the clipped ratio.
        Raises ModelError unless temperature > 0.
        """
        total, logp_T, entropy_T = _WeightedLogp.apply(
            *self._inputs(hidden_TD, temperature), targets_T, coefficients, self.chunks
        )
        return total, logp_T, entropy_T

    def chunks(self, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Chunks:
        """How this head walks over a row."""
        return Chunks(hidden_TD, weight_VD, targets_T)

    def _inputs(self, hidden_TD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Both factors of the logits, in float32 at least; D numbers a token take the temperature sooner than V."""
        if not temperature > 0:
            raise ModelError(
                f"Log-probabilities need a temperature above 0, not {temperature}; greedy sampling has none."
            )
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        hidden_TD = hidden_TD.to(wide)
        return hidden_TD if temperature == 1 else hidden_TD / temperature, self.weight.to(wide)


@dataclass(frozen=True)
class Chunk:
    """The distributions of t tokens.

    Attributes:
        weight_tV: exp(logits - their maximum), not normalised; a buffer that the next chunk overwrites.
        total_t: the sum of weight_tV.
        logp_t, entropy_t: of the targets, of the distributions.
    """

    weight_tV: Tensor
    total_t: Tensor
    logp_t: Tensor
    entropy_t: Tensor


class Chunks:
    """Walks over a row; two buffers serve all its chunks.

    A head that holds a part of the vocabulary replaces what looks over all of it: `largest`, `total`, `at_targets`
    and `add_at_targets`.
    """

    def __init__(self, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, width: int | None = None) -> None:
        """`width` sets the tokens of a chunk instead of len(weight_VD): heads that walk together need equal chunks."""
        self.hidden_TD, self.weight_VD, self.targets_T = hidden_TD, weight_VD, targets_T
        size = max(CHUNK_TOKENS, CHUNK_LOGITS // (width or len(weight_VD)))
        self.parts = [slice(first, min(first + size, len(hidden_TD))) for first in range(0, len(hidden_TD), size)]
        self.logits_tV = hidden_TD.new_empty(min(size, len(hidden_TD)), len(weight_VD))
        self.weight_tV = torch.empty_like(self.logits_tV)

    def chunk(self, part: slice) -> Chunk:
        """Passes over [t, V]: product, maximum, difference, exponential, sum, expectation."""
        size = part.stop - part.start
        logits_tV = torch.mm(self.hidden_TD[part], self.weight_VD.T, out=self.logits_tV[:size])
        peak_t = self.largest(logits_tV.amax(-1))
        weight_tV = torch.sub(logits_tV, peak_t[:, None], out=self.weight_tV[:size]).exp_()
        total_t = self.total(weight_tV.sum(-1))
        log_sum_t = total_t.log() + peak_t
        logp_t = self.at_targets(logits_tV, part) - log_sum_t
        # vecdot would make a third [t, V]
        expected_t = self.total(torch.bmm(weight_tV[:, None], logits_tV[:, :, None]).view(-1))
        entropy_t = log_sum_t - expected_t / total_t
        return Chunk(weight_tV, total_t, logp_t, entropy_t)

    def add_gradients(
        self, part: slice, chunk: Chunk, grad_t: Tensor, grad_hidden: Tensor, grad_weight: Tensor
    ) -> None:
        """Add what `grad_t`, the gradient of the chunk's logp [t], means for both factors; uses the chunk up."""
        grad_logits = chunk.weight_tV.mul_((-grad_t / chunk.total_t)[:, None])
        self.add_at_targets(grad_logits, part, grad_t)
        torch.mm(grad_logits, self.weight_VD, out=grad_hidden[part])
        grad_weight.addmm_(grad_logits.T, self.hidden_TD[part])

    def largest(self, peak_t: Tensor) -> Tensor:
        """The maximum over the vocabulary from that over the part held here."""
        return peak_t

    def total(self, sum_t: Tensor) -> Tensor:
        """The sum over the vocabulary from that over the part held here."""
        return sum_t

    def at_targets(self, logits_tV: Tensor, part: slice) -> Tensor:
        """The targets' logits [t]."""
        return logits_tV.gather(1, self.targets_T[part, None]).squeeze(1)

    def add_at_targets(self, grad_tV: Tensor, part: slice, grad_t: Tensor) -> None:
        """Add `grad_t` where the targets are."""
        grad_tV.scatter_add_(1, self.targets_T[part, None], grad_t[:, None])


MakeChunks = Callable[[Tensor, Tensor, Tensor], Chunks]


class _Logp(torch.autograd.Function):
    """Saves its inputs only; the backward pass makes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, make_chunks: MakeChunks
    ) -> tuple[Tensor, Tensor]:
        logp_T, entropy_T = hidden_TD.new_empty(2, len(hidden_TD)).unbind(0)
        ctx.make_chunks = make_chunks
        chunks = make_chunks(hidden_TD, weight_VD, targets_T)
        for part in chunks.parts:
            chunk = chunks.chunk(part)
            logp_T[part], entropy_T[part] = chunk.logp_t, chunk.entropy_t
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T)
        ctx.mark_non_differentiable(entropy_T)
        return logp_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_TD, weight_VD, targets_T = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden_TD), torch.zeros_like(weight_VD)
        chunks = ctx.make_chunks(hidden_TD, weight_VD, targets_T)
        for part in chunks.parts:
            chunks.add_gradients(part, chunks.chunk(part), grads[0][part], grad_hidden, grad_weight)
        return grad_hidden, grad_weight, None, None


class _WeightedLogp(torch.autograd.Function):
    """Makes both gradients on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        coefficients: Coefficients,
        make_chunks: MakeChunks,
    ) -> tuple[Tensor, Tensor, Tensor]:
        is_learning = any(ctx.needs_input_grad)
        logp_T, entropy_T = hidden_TD.new_empty(2, len(hidden_TD)).unbind(0)
        total = hidden_TD.new_zeros(())
        if is_learning:
            grad_hidden, grad_weight = torch.empty_like(hidden_TD), torch.zeros_like(weight_VD)
        chunks = make_chunks(hidden_TD, weight_VD, targets_T)
        for part in chunks.parts:
            chunk = chunks.chunk(part)
            logp_T[part], entropy_T[part] = chunk.logp_t, chunk.entropy_t
            coefficient_t = coefficients(chunk.logp_t, part).to(total.dtype)
            total += torch.dot(coefficient_t, chunk.logp_t)
            if is_learning:
                chunks.add_gradients(part, chunk, coefficient_t, grad_hidden, grad_weight)
        if is_learning:
            ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(logp_T, entropy_T)
        return total, logp_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place, since the weight's gradient is the largest tensor here; a second pass over the graph is refused by
        # autograd, which sees that a saved tensor has changed.
        return grad_hidden.mul_(grads[0]), grad_weight.mul_(grads[0]), None, None, None
