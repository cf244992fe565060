"""One pipeline stage: the embedding on the first, some of the layers, final norm and head on the last.

Between stages travel the hidden states with the routers' totals behind them (routing.py). With a virtual pipeline a
rank holds several stages.

Shapes: t tokens of this rank, D model width, L layers, E experts, a tokens that this rank learns from.
"""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    checkpoint,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor, nn

from model.layout import padded_vocabulary
from model.megatron.config import StageConfig
from model.megatron.head import ParallelHead
from model.megatron.layer import layer_spec
from model.megatron.norm import StreamNorm
from model.megatron.routing import RowRouting, no_totals, pack, unpack
from model.megatron.row import RankRow


class Stage(MegatronModule):
    """A stage of this rank; `number` counts them where a virtual pipeline gives a rank several, None otherwise."""

    share_embeddings_and_output_weights = False

    def __init__(self, config: StageConfig, number: int | None) -> None:
        super().__init__(config)
        self.vp_stage, self.model_type = number, ModelType.encoder_or_decoder
        self.ranks = ProcessGroupCollection.use_mpu_process_groups()
        self.pre_process = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number)
        self.post_process = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number)
        self.received: Tensor | None = None
        if self.pre_process:
            self.embed_tokens = VocabParallelEmbedding(
                padded_vocabulary(config.hybrid.vocab_size, self.ranks.tp.size()),
                config.hidden_size,
                init_method=config.init_method,
                reduce_scatter_embeddings=config.sequence_parallel,
                config=config,
                tp_group=self.ranks.tp,
            )
        place = self.ranks.pp.rank()
        first = get_transformer_layer_offset(config, number, place)
        numbers = range(first, first + get_num_layers_to_build(config, number, place))
        self.layers = nn.ModuleDict(
            {str(n): build_module(layer_spec(config, n), config=config, pg_collection=self.ranks) for n in numbers}
        )
        if self.post_process:
            self.norm = StreamNorm(config)
            self.lm_head = ParallelHead(config, self.ranks.tp)

    def set_input_tensor(self, received: list[Tensor | None]) -> None:
        """Megatron's schedules call it with what the stage before has sent."""
        self.received = received[0]

    def forward(self, row: RankRow) -> Tensor | tuple[Tensor, RowRouting]:
        """What the next stage receives; on the last one hidden states [a, D], for the head, and the row's routing."""
        x, totals = self._enter(row)
        x, totals = self._run_layers(x, totals, row)
        if not self.post_process:
            return pack(x, totals)
        routing = RowRouting(totals, row.num_tokens, self.ranks.tp, self.ranks.cp)
        return self._for_head(self.norm(x)).index_select(0, row.before_a), routing

    def _enter(self, row: RankRow) -> tuple[Tensor, Tensor]:
        config = self.config
        if not self.pre_process:
            assert self.received is not None
            return unpack(self.received, config.num_layers, config.num_moe_experts)
        x = self.embed_tokens(row.tokens_t[None]).flatten(0, 1)  # with sequence parallelism [t, 1, D], else [1, t, D]
        return x, no_totals(config.num_layers, config.num_moe_experts, x)

    def _run_layers(self, x: Tensor, totals: Tensor, row: RankRow) -> tuple[Tensor, Tensor]:
        """Layer by layer; with recomputation in runs of layers, of which the backward pass repeats the forward one."""
        layers, length = list(self.layers.values()), self.config.recompute_num_layers
        for first in range(0, len(layers), length or 1):
            run = _Run(layers[first : first + (length or 1)], row)
            x, totals = checkpoint(run, False, x, totals) if length else run(x, totals)
        return x, totals

    def _for_head(self, x: Tensor) -> Tensor:
        """All tokens of the share on every tensor rank, and their gradients added up on the way back."""
        if self.config.sequence_parallel:
            gathered: Tensor = gather_from_sequence_parallel_region(x, group=self.ranks.tp)
            return gathered
        copied: Tensor = copy_to_tensor_model_parallel_region(x, group=self.ranks.tp)
        return copied

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For megatron's checkpoints: layers have their numbers over all stages, so any layout can read them."""
        parts = [(f"layers.{number}", layer) for number, layer in self.layers.items()]
        parts += [(name, part) for name, part in self.named_children() if part is not self.layers]
        sharded: dict[str, Any] = {}
        for name, part in parts:
            sharded |= sharded_state_dict_default(
                part, f"{prefix}{name}.", sharded_offsets, metadata, tp_group=self.ranks.tp
            )
        return sharded


class _Run:
    """Some layers in a row, called with tensors alone, as megatron's checkpoint wants it."""

    def __init__(self, layers: list[nn.Module], row: RankRow) -> None:
        self.layers, self.row = layers, row

    def __call__(self, x: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x, totals = layer(x, totals, self.row)
        return x, totals
