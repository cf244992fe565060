"""Bytes that a rank needs for training, by arithmetic: what it keeps of weights, and what of a packed row.

    weights, gradients, optimizer    known from shapes and dtypes
    activations                      what the code of model/ keeps for the backward pass of a layer, by counting it
    head                             its float32 copies and two buffers of logits (model/head.py)

The terms are added as if all were at their largest at once. Left out: communication buffers and padding of their
buckets, what the allocator and the device's libraries take, temporaries inside an operator, uneven routing, the plan
of a row (model/row.py), the mask that softmax attention over context ranks keeps on a CPU, and per token and layer some
numbers of routing and norms. Of a lightning layer the torch code is counted, not the kernels (model/kernels/).

Letters: D model width, A heads x head width, K key/value heads x head width, f expert width, k experts per token,
B tokens of a lightning block, c context ranks; t tensor ranks, s = t with sequence parallelism and else 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import HybridConfig
from model.config_file import LIGHTNING
from model.families import kept_by_layer
from model.head import CHUNK_LOGITS, CHUNK_TOKENS
from model.layout import Layout, padded_vocabulary
from model.lightning import block_size
from model.replay import record_dtype
from model.sizes import Parameters, rank_parameters

WIDE = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True)
class Storage:
    """Bytes for each parameter, and which of them ranks with the same parameters share out among themselves.

    Attributes:
        weight: the weight that the model computes with.
        gradient: the sum of its gradients.
        optimizer: AdamW's moments and, beside a narrower weight, its float32 copy.
        zero: 0 shares nothing, 1 the optimizer's part (as megatron's distributed optimizer does), 2 gradients too,
            3 weights too.
    """

    weight: int
    gradient: int
    optimizer: int
    zero: int = 1


FLOAT32 = Storage(weight=4, gradient=4, optimizer=8)
BFLOAT16 = Storage(weight=2, gradient=4, optimizer=12)
"""Gradients are added up in float32."""


@dataclass(frozen=True)
class Work:
    """What a rank works on.

    Attributes:
        row_tokens: tokens of the longest packed row.
        recompute: a layer keeps its input only, and the backward pass makes the rest again.
    """

    row_tokens: int
    recompute: bool = True


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, see the head of the file."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def rank_memory(
    config: HybridConfig, layout: Layout, num_ranks: int, storage: Storage, work: Work, pipeline_rank: int = 0
) -> RankMemory:
    """Bytes of a rank in stage `pipeline_rank`. The layout must work; ModelError for another family than minimax."""
    parameters = rank_parameters(config, layout, pipeline_rank)
    copies = layout.context * layout.num_copies(num_ranks)

    def kept(part: str, is_shared: bool) -> int:
        return sum(
            -(-number * getattr(bytes_each, part) // (sharers if is_shared else 1))
            for number, bytes_each, sharers in _groups(parameters, storage, copies, layout.expert)
        )

    return RankMemory(
        weights=kept("weight", storage.zero >= 3),
        gradients=kept("gradient", storage.zero >= 2),
        optimizer=kept("optimizer", storage.zero >= 1),
        activations=_activations(config, layout, work, pipeline_rank),
        head=_head(config, layout, work) if pipeline_rank == layout.pipeline - 1 else 0,
    )


def _groups(parameters: Parameters, storage: Storage, copies: int, expert: int) -> list[tuple[int, Storage, int]]:
    """(number, bytes of each, ranks that hold the same) of experts, routers and the rest."""
    rest = parameters.total - parameters.experts - parameters.routers
    return [
        (parameters.experts, storage, copies // expert),
        (parameters.routers, FLOAT32, copies),
        (rest, storage, copies),
    ]


def layer_bytes(config: HybridConfig, layer: int, layout: Layout) -> int:
    """Bytes that a layer keeps for its backward pass of each token of a rank's share of a row.

    stream      4 D / s             both norms' results, before and after their weights; and D / s in float32, the
                                    router's input, if the model is narrower
    lightning   4 A / t             normed, weighted and gated heads and the gate; and in float32 8 A / t of queries,
                                    keys and values, A d / B / t of states, 2 H B / t of scores; with context ranks
                                    A / t more of queries
    softmax     (3 A + 2 K) / t     queries, keys, values, output twice; with context ranks 2 A c for 2 K, where one
                                    sequence is as long as the row: all keys and values, for each query head
    experts     2 k f / t           what enters the nonlinearity; megatron's experts, which any other layout than the
                                    plain one has, keep k (D + 6 f / t)
    """
    width, number = config.hidden_size, config.dtype.itemsize
    stream = width * (4 * number + (WIDE if number < WIDE else 0)) // (layout.tensor if layout.sequence_parallel else 1)
    return stream + _mixer_bytes(config, layer, layout.context) // layout.tensor + _expert_bytes(config, layout)


def _mixer_bytes(config: HybridConfig, layer: int, context: int) -> int:
    number, heads = config.dtype.itemsize, config.num_attention_heads
    inner, kept = heads * config.head_dim, config.num_key_value_heads * config.head_dim
    if config.attn_type_list[layer] != LIGHTNING:
        return (3 * inner + 2 * (inner * context if context > 1 else kept)) * number
    block = block_size(config.head_dim)
    num_wide = 9 if context > 1 else 8
    wide = num_wide * inner + inner * config.head_dim // block + 2 * heads * block
    return 4 * inner * number + wide * max(number, WIDE)


def _expert_bytes(config: HybridConfig, layout: Layout) -> int:
    width, inner = config.hidden_size, config.intermediate_size
    is_plain = layout.ranks_per_copy == layout.expert == 1
    visit = 2 * inner if is_plain else width + 6 * inner // layout.tensor
    return config.num_experts_per_tok * visit * config.dtype.itemsize


def _activations(config: HybridConfig, layout: Layout, work: Work, pipeline_rank: int) -> int:
    """Of the pieces of layers that wait for their backward pass, and of the layer that is in it."""
    tokens = -(-work.row_tokens // layout.context)
    layers = layout.stage_layers(config.num_hidden_layers, pipeline_rank)
    whole = [layer_bytes(config, layer, layout) for layer in layers]
    sharers = layout.tensor if layout.sequence_parallel else 1
    inputs = [config.hidden_size * config.dtype.itemsize // sharers] * len(layers)
    waiting = layout.pieces_in_flight(pipeline_rank) * tokens * sum(inputs if work.recompute else whole)
    return -(-waiting // layout.virtual_pipeline) + (tokens * max(whole) if work.recompute else 0)


def _head(config: HybridConfig, layout: Layout, work: Work) -> int:
    """Hidden states, also in float32, and their gradient; float32 weight and its gradient; two chunks of logits."""
    number, wide = config.dtype.itemsize, max(config.dtype.itemsize, WIDE)
    tokens = -(-work.row_tokens // layout.context)
    vocabulary = padded_vocabulary(config.vocab_size, layout.tensor) // layout.tensor
    chunk = min(tokens, max(CHUNK_TOKENS, CHUNK_LOGITS // vocabulary))
    num_copies = 2 if number < wide else 1  # of hidden states and of the weight: a float32 one is used as it is
    hidden = tokens * config.hidden_size * (wide * num_copies + number)
    return hidden + wide * vocabulary * (config.hidden_size * num_copies + 2 * chunk)


def sampling_bytes(config: HybridConfig, num_slots: int, max_length: int, records_experts: bool = False) -> int:
    """Bytes of a cache (model/cache.py) of `num_slots` sequences of at most `max_length` tokens, of any family.

    States count as float32 at least; keys and values have the model's dtype.
    """
    number = config.dtype.itemsize
    kept = kept_by_layer(config)
    states = sum(math.prod(shape) for layer in kept for shape in layer.states.values())
    tokens = sum(heads * width for layer in kept for heads, width in layer.tokens.values())
    choices = (config.num_hidden_layers - config.first_k_dense_replace) * config.num_experts_per_tok
    record = choices * record_dtype(config.num_local_experts).itemsize if records_experts else 0
    return num_slots * (states * max(number, WIDE) + max_length * (tokens * number + record))
