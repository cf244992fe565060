"""The hybrid language model: layers of (mixer, experts, residual rule) on packed rows, and its three ways to run.

    hidden = lm(tokens_T, positions_T, cu_seqlens)      training: every sequence from its beginning
    hidden = lm.prefill(tokens_T, cu_seqlens, slots, cache)      prompts, or pieces of them, into cache slots
    hidden = lm.decode(tokens_N, slots, cache)      one token for each slot

Module names follow the checkpoints (model/checkpoint.py). Source: MiniMax-M1's modeling code and transformers'
`minimax`, which ignores partial rotary. Shapes: T tokens, N sequences, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.cache import HybridCache, Turn
from model.config import LIGHTNING, HybridConfig
from model.errors import ModelError
from model.head import Head
from model.lightning import LightningAttention, block_size
from model.moe import MoE, Routing
from model.norm import RMSNorm
from model.row import Row, check_borders, cut_blocks, sort_into_buckets
from model.softmax import SoftmaxAttention, rotary_tables


class Layer(nn.Module):
    """One layer: u = norm(x), y = alpha * u + beta * attention(u), and the same around the experts.

    Without `postnorm` the residual is x instead of u. Source: DeepNorm as in the MiniMax-01 report.
    """

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__()
        mixer = LightningAttention if config.attn_type_list[layer] == LIGHTNING else SoftmaxAttention
        self.self_attn: LightningAttention | SoftmaxAttention = mixer(config, layer)
        self.block_sparse_moe = MoE(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
        self.postnorm = config.postnorm
        self.attention_scales = config.attention_scales(layer)
        self.mlp_scales = config.residual_scales("mlp")

    def forward(self, x_TD: Tensor, row: Row, routing: Routing | None) -> Tensor:
        """Train on a packed row."""
        u = self.input_layernorm(x_TD)
        return self._rest(x_TD, u, self.self_attn(u, row), routing)

    def prefill(
        self, x_TD: Tensor, row: Row, slots_N: Tensor, cache: HybridCache, wanted_N: Tensor | None = None
    ) -> Tensor:
        """Continue the slots' sequences by the row's; the result at the `wanted_N` tokens only, unless None."""
        u = self.input_layernorm(x_TD)
        attended = self.self_attn.prefill(u, row, slots_N, cache)
        if wanted_N is not None:
            x_TD, u, attended = x_TD[wanted_N], u[wanted_N], attended[wanted_N]
        return self._rest(x_TD, u, attended, None)

    def decode(self, x_ND: Tensor, turn: Turn, cache: HybridCache) -> Tensor:
        """Continue each slot's sequence by one token."""
        u = self.input_layernorm(x_ND)
        return self._rest(x_ND, u, self.self_attn.decode(u, turn, cache), None)

    def _rest(self, x: Tensor, u: Tensor, attended: Tensor, routing: Routing | None) -> Tensor:
        y = self._residual(u if self.postnorm else x, attended, self.attention_scales)
        w = self.post_attention_layernorm(y)
        return self._residual(w if self.postnorm else y, self.block_sparse_moe(w, routing), self.mlp_scales)

    @staticmethod
    def _residual(kept: Tensor, branch: Tensor, scales: tuple[float, float]) -> Tensor:
        alpha, beta = scales
        return torch.add(branch * beta if beta != 1 else branch, kept, alpha=alpha)


class Decoder(nn.Module):
    """Embeddings, layers, final norm: everything but the head."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=config.dtype)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)


class HybridLM(nn.Module):
    """The policy. Initial weights are normal with `config.initializer_range`, norms are 1."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
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
        self, tokens_T: Tensor, positions_T: Tensor, cu_seqlens: Tensor, routing: Routing | None = None
    ) -> Tensor:
        """Hidden states [T, D] of a packed row, after the final norm.

        Args:
            tokens_T, positions_T: int64 [T]; positions restart at 0 with each sequence.
            cu_seqlens: int64 [N + 1], borders of the sequences, from 0 to T. Raises ModelError if they are not.
            routing: collects what the routers decide.
        """
        row = self._row(positions_T, cu_seqlens)
        x = self.model.embed_tokens(tokens_T)
        for layer in self._layers:
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
        x = self.model.embed_tokens(tokens_T)
        *layers, last = self._layers
        for layer in layers:
            x = layer.prefill(x, row, slots_N, cache)
        x = last.prefill(x, row, slots_N, cache, wanted_N=cu_seqlens[1:] - 1)
        cache.length_S[slots_N] += length_N
        hidden: Tensor = self.model.norm(x)
        return hidden

    @torch.no_grad()
    def decode(self, tokens_N: Tensor, slots_N: Tensor, cache: HybridCache) -> Tensor:
        """Append one token to each of N different slots; hidden states [N, D]. Raises ModelError without room."""
        length_N = cache.length_S[slots_N]
        longest = cache.check_room(slots_N, torch.ones_like(length_N))
        cos, sin = rotary_tables(length_N, self.config.rotary_dim, self.config.rope_theta)
        parts = cache.parts(slots_N, length_N, longest)
        turn = Turn(slots_N, cache.run(slots_N), length_N, parts, cos, sin)
        x = self.model.embed_tokens(tokens_N)
        for layer in self._layers:
            x = layer.decode(x, turn, cache)
        cache.length_S[slots_N] = length_N + 1
        hidden: Tensor = self.model.norm(x)
        return hidden

    @property
    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.model.layers))

    def _row(self, positions_T: Tensor, cu_seqlens: Tensor, is_fresh: bool = True) -> Row:
        num_tokens = len(positions_T)
        check_borders(num_tokens, cu_seqlens)
        cos, sin = rotary_tables(positions_T, self.config.rotary_dim, self.config.rope_theta)
        blocks = cut_blocks(cu_seqlens, num_tokens, block_size(self.config.head_dim))
        return Row(cu_seqlens, cos, sin, blocks, sort_into_buckets(cu_seqlens), is_fresh)
