"""Why a layout cannot work, every reason at once, and the layouts nearest to it that can.

The rules are those of the parallel modules (model/megatron/) and of megatron-core 0.16's process groups. Each tensor
rank holds whole heads with their key and value heads, and a part of each expert's width. Experts are dealt out to
the context and data ranks of a pipeline stage. Stages are equal: an uneven one would make all others wait.
"""

from __future__ import annotations

import math
from itertools import product

from model.config import HybridConfig
from model.errors import ModelError
from model.layout import PARTS, Layout, padded_vocabulary


def check_layout(config: HybridConfig, layout: Layout, num_ranks: int) -> None:
    """Raise ModelError, with every reason and the nearest layouts that work, unless `layout_faults` finds nothing."""
    faults = layout_faults(config, layout, num_ranks)
    if not faults:
        return
    nearest = "; ".join(map(str, nearest_layouts(config, layout, num_ranks)))
    advice = f" Nearest layouts that work on {num_ranks} ranks: {nearest}." if nearest else ""
    raise ModelError(f"The layout {layout} cannot work on {num_ranks} ranks: {'; '.join(faults)}.{advice}")


def layout_faults(config: HybridConfig, layout: Layout, num_ranks: int) -> list[str]:
    """Every reason why `config` cannot lie over `num_ranks` ranks as `layout`; [] if it can."""
    faults = [f"{name} must be at least 1, not {getattr(layout, name)}" for name in PARTS if getattr(layout, name) < 1]
    if num_ranks < 1:
        faults.append(f"there must be at least 1 rank, not {num_ranks}")
    can_divide = not faults
    faults += _switch_faults(layout) + _family_faults(config, layout)
    if can_divide:  # a part of 0 has been named above, and nothing more can be said of it
        faults += _size_faults(config, layout) + _rank_faults(layout, num_ranks)
    return faults


def _switch_faults(layout: Layout) -> list[str]:
    faults = []
    if layout.sequence_parallel and layout.tensor == 1:
        faults.append("sequence_parallel=true shares tokens among tensor ranks and needs tensor > 1, not tensor=1")
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        faults.append(
            f"virtual_pipeline={layout.virtual_pipeline} interleaves the pieces of pipeline stages and needs "
            f"pipeline > 1, not pipeline=1"
        )
    return faults


def _family_faults(config: HybridConfig, layout: Layout) -> list[str]:
    cut = [f"{name}={getattr(layout, name)}" for name in ("tensor", "pipeline", "expert") if getattr(layout, name) > 1]
    if config.family == "minimax" or not cut:
        return []
    return [f"{' '.join(cut)} needs layers that can be cut, which minimax has and {config.family} has not"]


def _size_faults(config: HybridConfig, layout: Layout) -> list[str]:
    """Sizes of the model that do not come out even; every part is positive."""
    wholes = [
        (field, getattr(config, field), "tensor", layout.tensor)
        for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    ]
    wholes.append(("num_local_experts", config.num_local_experts, "expert", layout.expert))
    stages = layout.pipeline * layout.virtual_pipeline
    wholes.append(("num_hidden_layers", config.num_hidden_layers, "pipeline x virtual_pipeline", stages))
    faults = [
        f"{field}={whole} is no multiple of {part}={count}, and all parts must be equal"
        for field, whole, part, count in wholes
        if whole % count
    ]
    rows = padded_vocabulary(config.vocab_size, layout.tensor) // layout.tensor
    if config.vocab_size <= rows * (layout.tensor - 1):
        faults.append(
            f"vocab_size={config.vocab_size} in tensor={layout.tensor} parts of {rows} leaves the last one no token"
        )
    return faults


def _rank_faults(layout: Layout, num_ranks: int) -> list[str]:
    if num_ranks % layout.ranks_per_copy:
        return [
            f"{num_ranks} ranks are no multiple of tensor x pipeline x context = {layout.tensor} x {layout.pipeline} x "
            f"{layout.context} = {layout.ranks_per_copy}, the ranks of one copy"
        ]
    spread = layout.context * layout.num_copies(num_ranks)
    if spread % layout.expert:
        return [
            f"expert={layout.expert} does not divide context x data = {layout.context} x "
            f"{layout.num_copies(num_ranks)} = {spread}, the ranks that experts are spread over"
        ]
    return []


def nearest_layouts(config: HybridConfig, layout: Layout, num_ranks: int, count: int = 3) -> list[Layout]:
    """Up to `count` layouts that work on `num_ranks` ranks, nearest first; `layout` itself if it does.

    The distance adds up |log2| of the ratios of the five parts: twice as many of one is as far as half as many.
    Sequence parallelism is kept where there is tensor parallelism. With equal distances, less tensor parallelism is
    first, then less of the others in the order of their names in Layout.
    """
    working = [found for found in _possible(config, layout, num_ranks) if not layout_faults(config, found, num_ranks)]
    return sorted(working, key=lambda found: (_distance(layout, found), *_parts(found)))[:count]


def _possible(config: HybridConfig, wish: Layout, num_ranks: int) -> list[Layout]:
    """All layouts whose parts divide what they must divide at least; few enough to ask `layout_faults` about each."""
    limits = (
        math.gcd(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size, num_ranks),
        math.gcd(config.num_hidden_layers, num_ranks),
        config.num_hidden_layers,
        math.gcd(config.num_local_experts, num_ranks),
        max(num_ranks, 0),
    )
    parts = product(*([part for part in range(1, limit + 1) if limit % part == 0] for limit in limits))
    return [
        Layout(tensor, pipeline, virtual, expert, context, wish.sequence_parallel and tensor > 1)
        for tensor, pipeline, virtual, expert, context in parts
    ]


def _parts(layout: Layout) -> tuple[int, ...]:
    return tuple(getattr(layout, name) for name in PARTS)


def _distance(wish: Layout, found: Layout) -> float:
    pairs = zip(_parts(wish), _parts(found), strict=True)
    return round(sum(abs(math.log2(theirs / max(ours, 1))) for ours, theirs in pairs), 9)  # so that ties are ties
