"""Parameters of a model and of each rank that holds a part of it, by arithmetic: nothing is built.

Shapes are those of the family minimax (model/hybrid.py), cut as model/megatron/ cuts them: projections by heads, the
embedding and the head by tokens, each expert by its width over tensor ranks, and experts over expert ranks. Norms of
the stream and routers are whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import HybridConfig
from model.config_file import LIGHTNING
from model.errors import ModelError
from model.layout import Layout, padded_vocabulary


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by part.

    Attributes:
        embedding: one row for each token of the vocabulary.
        lightning: projections, gate and norm of lightning layers.
        softmax: projections of softmax layers.
        norms: of the stream, two for each layer and the final one.
        routers: float32 whatever the model's dtype is.
        experts: the only part that the expert ranks share out.
        head: as large as the embedding.
    """

    embedding: int = 0
    lightning: int = 0
    softmax: int = 0
    norms: int = 0
    routers: int = 0
    experts: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.body + self.embedding + self.head

    @property
    def body(self) -> int:
        """All but embedding and head."""
        return self.lightning + self.softmax + self.norms + self.routers + self.experts


def model_parameters(config: HybridConfig) -> Parameters:
    """The whole model's. Raises ModelError for another family than minimax."""
    return rank_parameters(config, Layout())


def active_parameters(config: HybridConfig) -> Parameters:
    """Those that one token is multiplied with; of the embedding it is one row. Raises as `model_parameters`."""
    whole = model_parameters(config)
    visited = whole.experts // config.num_local_experts * config.num_experts_per_tok
    return Parameters(
        embedding=config.hidden_size,
        lightning=whole.lightning,
        softmax=whole.softmax,
        norms=whole.norms,
        routers=whole.routers,
        experts=visited,
        head=whole.head,
    )


def rank_parameters(config: HybridConfig, layout: Layout, pipeline_rank: int = 0) -> Parameters:
    """Those of a rank in stage `pipeline_rank`; all of a stage's ranks hold as many.

    The layout must work (model/layout_faults.py). Raises ModelError for another family than minimax.
    """
    if config.family != "minimax":
        raise ModelError(f"Sizes are known of the family minimax only, not of {config.family}.")
    layers = layout.stage_layers(config.num_hidden_layers, pipeline_rank)
    num_lightning = sum(config.attn_type_list[layer] == LIGHTNING for layer in layers)
    is_first, is_last = pipeline_rank == 0, pipeline_rank == layout.pipeline - 1
    width, tensor = config.hidden_size, layout.tensor
    inner, kept = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    expert = 3 * width * config.intermediate_size
    vocabulary = padded_vocabulary(config.vocab_size, tensor) // tensor * width
    return Parameters(
        embedding=vocabulary if is_first else 0,
        lightning=num_lightning * (5 * width * inner + inner) // tensor,
        softmax=(len(layers) - num_lightning) * 2 * width * (inner + kept) // tensor,
        norms=(2 * len(layers) + is_last) * width,
        routers=len(layers) * width * config.num_local_experts,
        experts=len(layers) * (config.num_local_experts // layout.expert) * expert // tensor,
        head=vocabulary if is_last else 0,
    )
