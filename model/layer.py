"""What a layer is made of: a mixer, a channel mixer and a residual rule.

The mixer moves information between tokens, the channel mixer works on each token by itself, and the residual rule says
how a branch joins the stream. A family of models is one choice of them for each layer (model/families.py). Nothing
above the layers knows which: the cache asks each mixer what it keeps, and the engine asks the cache.

Shapes: T tokens of a packed row, N sequences or slots, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from model.config import HybridConfig
from model.norm import RMSNorm
from model.row import Row

if TYPE_CHECKING:
    from model.cache import HybridCache, Turn
    from model.moe import Routing
    from model.replay import ChoiceLog


@dataclass(frozen=True)
class Kept:
    """What a mixer keeps of one sequence. A name has one meaning throughout a model.

    Attributes:
        states: name -> shape of something whose size does not depend on the length; float32 at least.
        tokens: name -> (heads, width) of something that is kept of every token, in the cache's dtype.
    """

    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class Mixer(Protocol):
    """Token mixing, a torch module. Its three ways to run must agree: they are one function of the sequence."""

    def __call__(self, u_TD: Tensor, row: Row) -> Tensor:
        """Train on a packed row, every sequence from its beginning: [T, D] -> [T, D], with gradients."""
        ...

    def prefill(self, u_TD: Tensor, row: Row, slots_N: Tensor, cache: HybridCache) -> Tensor:
        """Continue the sequence of each slot by the row's: reads what is kept unless row.is_fresh, and writes it."""
        ...

    def decode(self, u_ND: Tensor, turn: Turn, cache: HybridCache) -> Tensor:
        """Continue the sequence of each slot by one token: [N, D] -> [N, D]."""
        ...


class ChannelMixer(Protocol):
    """Work on each token by itself, a torch module."""

    def __call__(self, x_TD: Tensor, routing: Routing | ChoiceLog | None = None) -> Tensor:
        """[T, D] -> [T, D]; one with a router tells `routing` what it decided, others leave it alone."""
        ...


class ResidualRule(Protocol):
    """How a branch joins the stream: from x, the stream, u = norm(x), and branch = f(u), all of one shape."""

    def __call__(self, x: Tensor, u: Tensor, branch: Tensor) -> Tensor:
        """The stream behind the branch."""
        ...


@dataclass(frozen=True)
class PreNorm:
    """alpha * x + beta * f(norm(x)); with 1 and 1 the plain residual of most models."""

    alpha: float = 1.0
    beta: float = 1.0

    def __call__(self, x: Tensor, u: Tensor, branch: Tensor) -> Tensor:
        """See the class."""
        return _weighted_sum(x, branch, self.alpha, self.beta)


@dataclass(frozen=True)
class PostNorm:
    """alpha * norm(x) + beta * f(norm(x)): DeepNorm as in the MiniMax-01 report."""

    alpha: float
    beta: float

    def __call__(self, x: Tensor, u: Tensor, branch: Tensor) -> Tensor:
        """See the class."""
        return _weighted_sum(u, branch, self.alpha, self.beta)


def _weighted_sum(kept: Tensor, branch: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.add(branch * beta if beta != 1 else branch, kept, alpha=alpha)


class Layer(nn.Module):
    """u = norm(x), y = rule(x, u, mixer(u)), and the same once more around the channel mixer."""

    def __init__(
        self,
        config: HybridConfig,
        mixer: Mixer,
        channel_mixer: ChannelMixer,
        rules: tuple[ResidualRule, ResidualRule],
    ) -> None:
        super().__init__()
        self.self_attn = mixer
        self.block_sparse_moe = channel_mixer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
        self.mixer_rule, self.channel_rule = rules

    def forward(self, x_TD: Tensor, row: Row, routing: Routing | None) -> Tensor:
        """Train on a packed row."""
        u = self.input_layernorm(x_TD)
        return self._rest(x_TD, u, self.self_attn(u, row), routing)

    def prefill(
        self,
        x_TD: Tensor,
        row: Row,
        slots_N: Tensor,
        cache: HybridCache,
        wanted_N: Tensor | None = None,
        choices: ChoiceLog | None = None,
    ) -> Tensor:
        """Continue the slots' sequences by the row's; the result at the `wanted_N` tokens only, unless None."""
        u = self.input_layernorm(x_TD)
        mixed = self.self_attn.prefill(u, row, slots_N, cache)
        if wanted_N is not None:
            x_TD, u, mixed = x_TD[wanted_N], u[wanted_N], mixed[wanted_N]
        return self._rest(x_TD, u, mixed, choices)

    def decode(self, x_ND: Tensor, turn: Turn, cache: HybridCache, choices: ChoiceLog | None = None) -> Tensor:
        """Continue each slot's sequence by one token."""
        u = self.input_layernorm(x_ND)
        return self._rest(x_ND, u, self.self_attn.decode(u, turn, cache), choices)

    def _rest(self, x: Tensor, u: Tensor, mixed: Tensor, routing: Routing | ChoiceLog | None) -> Tensor:
        y = self.mixer_rule(x, u, mixed)
        w = self.post_attention_layernorm(y)
        return self.channel_rule(y, w, self.block_sparse_moe(w, routing))
