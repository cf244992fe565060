"""The hybrid language model: layers (model/layer.py) of a family (model/families.py), and its three ways to run.

    hidden = lm(tokens_T, positions_T, cu_seqlens)      training: every sequence from its beginning
    hidden = lm.prefill(tokens_T, cu_seqlens, slots, cache)      prompts, or pieces of them, into cache slots
    hidden = lm.decode(tokens_N, slots, cache)      one token for each slot

Module names are those of MiniMax-M1's checkpoints; model/checkpoint_names.py has the other families'. Sources:
MiniMax-M1's modeling code and transformers' `minimax`, which ignores partial rotary; for Ring-linear see
model/ring_linear.py. Shapes: T tokens, N sequences, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.cache import HybridCache, Turn
from model.config import HybridConfig
from model.context_parallel import Share, check_share
from model.errors import ModelError
from model.families import make_layer
from model.head import Coefficients, Head
from model.layer import Layer
from model.lightning import block_size
from model.moe import Routing
from model.norm import RMSNorm
from model.replay import ChoiceLog
from model.row import Row, check_borders, cut_blocks, sort_into_buckets
from model.softmax import rotary_tables


class Decoder(nn.Module):
    """Embeddings, layers, final norm: everything but the head."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=config.dtype)
        self.layers = nn.ModuleList(make_layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)


class HybridLM(nn.Module):
    """The policy. Initial weights are normal with `config.initializer_range`, norms are 1.

    Attributes:
        recompute: train with what goes from layer to layer only; the backward pass makes the rest again.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.model = Decoder(config)
        self.lm_head = Head(config)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, config.initializer_range)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        routing: Routing | None = None,
        share: Share | None = None,
    ) -> Tensor:
        """Hidden states [T, D] of a packed row, after the final norm.

        Args:
            tokens_T, positions_T: int64 [T]; positions restart at 0 with each sequence.
            cu_seqlens: int64 [N + 1], borders of the sequences, from 0 to T. Raises ModelError if they are not.
            routing: collects what the routers decide; with `recompute`, close it before the backward pass.
            share: the row is one process's share of a longer one (model/context_parallel.py): tokens, positions and
                `share.own_cu_seqlens` are those of the share, and all processes must call.
        """
        row = self._row(positions_T, cu_seqlens, share=share)
        x = self.model.embed_tokens(tokens_T)
        for layer in self._layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, row, routing, use_reentrant=False)
            else:
                x = layer(x, row, routing)
        hidden: Tensor = self.model.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., V] of hidden states [..., D]."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def logp(self, hidden_TD: Tensor, targets_T: Tensor, temperature: float = 1.0) -> Tensor:
        """float32 [T]: log-probability of each target under softmax(logits / temperature)."""
        return self.logp_and_entropy(hidden_TD, targets_T, temperature)[0]

    def logp_and_entropy(self, hidden_TD: Tensor, targets_T: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`logp`, and the entropy in nats of each of these distributions, float32 [T] without gradient."""
        return self.lm_head.logp_and_entropy(hidden_TD, targets_T, temperature)

    def weighted_logp(
        self, hidden_TD: Tensor, targets_T: Tensor, coefficients: Coefficients, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """sum_t coefficient_t * logp_t with its gradient in one pass, and logp and entropy, float32 [T] without.

        `coefficients` is asked chunk by chunk, (logp [t], place of the chunk) -> [t], and taken as constant.
        """
        return self.lm_head.weighted_logp(hidden_TD, targets_T, coefficients, temperature)

    @torch.no_grad()
    def prefill(self, tokens_T: Tensor, cu_seqlens: Tensor, slots_N: Tensor, cache: HybridCache) -> Tensor:
        """Append each sequence of a packed row to its slot; hidden states [N, D] of the last positions.

        A slot may already hold the beginning of its sequence: a long prompt can come in pieces. Slots must differ
        and every sequence must have a token. Raises ModelError if the borders are wrong or a slot has no room.
        """
        length_N = cu_seqlens.diff()
        if len(slots_N) != len(length_N) or int(length_N.min()) < 1:
            raise ModelError(
                "Prefill needs one slot and at least one token for each sequence, but got "
                f"{len(slots_N)} slots for lengths {length_N.tolist()}."
            )
        cache.check_room(slots_N, length_N)
        before_N = cache.length_S[slots_N]
        offset_N = before_N - cu_seqlens[:-1]
        position_T = torch.arange(len(tokens_T), device=tokens_T.device)
        position_T = position_T + torch.repeat_interleave(offset_N, length_N, output_size=len(tokens_T))
        row = self._row(position_T, cu_seqlens, is_fresh=not bool(before_N.any()))
        choices = ChoiceLog() if cache.records_experts else None
        wanted_N = cu_seqlens[1:] - 1
        x = self.model.embed_tokens(tokens_T)
        *layers, last = self._layers
        for layer in layers:
            x = layer.prefill(x, row, slots_N, cache, choices=choices)
        x = last.prefill(x, row, slots_N, cache, wanted_N, choices)
        if choices is not None:
            slots_T = torch.repeat_interleave(slots_N, length_N, output_size=len(tokens_T))
            cache.record(choices, slots_T, position_T, wanted_N)
        cache.length_S[slots_N] += length_N
        hidden: Tensor = self.model.norm(x)
        return hidden

    @torch.no_grad()
    def decode(self, tokens_N: Tensor, slots_N: Tensor, cache: HybridCache) -> Tensor:
        """Append one token to each of N different slots; hidden states [N, D]. Raises ModelError without room."""
        turn = self._turn(slots_N, cache)
        choices = ChoiceLog() if cache.records_experts else None
        x = self.model.embed_tokens(tokens_N)
        for layer in self._layers:
            x = layer.decode(x, turn, cache, choices)
        if choices is not None:
            cache.record(choices, slots_N, turn.length_N)
        cache.length_S[slots_N] = turn.length_N + 1
        hidden: Tensor = self.model.norm(x)
        return hidden

    @property
    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.model.layers))

    def _turn(self, slots_N: Tensor, cache: HybridCache) -> Turn:
        length_N = cache.length_S[slots_N]
        longest = cache.check_room(slots_N, torch.ones_like(length_N))
        cos, sin = rotary_tables(length_N, self.config.rotary_dim, self.config.rope_theta)
        parts = cache.parts(slots_N, length_N, longest)
        return Turn(slots_N, cache.run(slots_N), length_N, parts, cos, sin)

    def _row(self, positions_T: Tensor, cu_seqlens: Tensor, is_fresh: bool = True, share: Share | None = None) -> Row:
        return plan_row(self.config, positions_T, cu_seqlens, is_fresh, share)


def plan_row(
    config: HybridConfig, positions_T: Tensor, cu_seqlens: Tensor, is_fresh: bool = True, share: Share | None = None
) -> Row:
    """A packed row as the layers see it; arguments and errors as in `HybridLM.forward`."""
    num_tokens = len(positions_T)
    check_borders(num_tokens, cu_seqlens)
    cos, sin = rotary_tables(positions_T, config.rotary_dim, config.rope_theta)
    blocks = cut_blocks(cu_seqlens, num_tokens, block_size(config.head_dim))
    if share is None:
        return Row(cu_seqlens, cos, sin, blocks, sort_into_buckets(cu_seqlens), is_fresh)
    check_share(share, cu_seqlens)
    begun_here = cu_seqlens[1:] - cu_seqlens[1] if share.num_continued else cu_seqlens
    return Row(cu_seqlens, cos, sin, blocks, sort_into_buckets(begun_here), is_fresh, share)
