"""Layouts: refused exactly when something cannot be dealt out evenly, with all reasons and with ways out."""

import dataclasses
import itertools
import math

import pytest

from model import HybridConfig, ModelError
from model.layout import Layout, padded_vocabulary
from model.layout_faults import check_layout, layout_faults, nearest_layouts

SMALL = HybridConfig()  # 4 heads, 2 key/value heads, 4 layers, 8 experts of width 32, 64 tokens
ODD = HybridConfig(
    vocab_size=5,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=3,
    intermediate_size=12,
    num_local_experts=6,
    attn_type_list=(0, 0, 1, 0, 0, 1),
)
RING = HybridConfig(family="bailing_linear")


def hands(things, players):
    """Deal `things` out one by one."""
    return [things[player::players] for player in range(players)]


def comes_out_even(num_things, players):
    return len({len(hand) for hand in hands(range(num_things), players)}) == 1 and num_things >= players


def groups_can_be_formed(layout, num_ranks):
    """Lay the ranks out as a grid and walk over it: every rank is in one copy, every expert part in every stage."""
    copy_size = layout.tensor * layout.context * layout.pipeline
    copies = [range(first, first + copy_size) for first in range(0, num_ranks, copy_size)]
    if sum(len(copy) for copy in copies) != num_ranks:
        return False
    stage_ranks = len(copies) * layout.context  # those with the same tensor and pipeline number
    places = [place % layout.expert for place in range(stage_ranks)]
    return all(places.count(part) * layout.expert == stage_ranks for part in range(layout.expert))


def works(config, layout, num_ranks):
    """The rules once more, written as what is dealt out to whom."""
    if min(num_ranks, *dataclasses.astuple(layout)[:5]) < 1:
        return False
    is_cut = not (layout.tensor == layout.pipeline == layout.expert == 1)
    pieces = [f"{stage}.{piece}" for piece in range(layout.virtual_pipeline) for stage in range(layout.pipeline)]
    tokens = math.ceil(config.vocab_size / layout.tensor)
    shares = [range(tokens * r, min(tokens * (r + 1), config.vocab_size)) for r in range(layout.tensor)]
    return all(
        [
            config.family == "minimax" or not is_cut,
            comes_out_even(config.num_attention_heads, layout.tensor),
            comes_out_even(config.num_key_value_heads, layout.tensor),
            comes_out_even(config.intermediate_size, layout.tensor),
            all(len(share) > 0 for share in shares),
            comes_out_even(config.num_local_experts, layout.expert),
            comes_out_even(config.num_hidden_layers, len(pieces)),
            groups_can_be_formed(layout, num_ranks),
            layout.tensor > 1 or not layout.sequence_parallel,
            layout.pipeline > 1 or layout.virtual_pipeline == 1,
        ]
    )


def all_layouts(most):
    sizes = range(most + 1)
    for parts in itertools.product(sizes, sizes, range(4), sizes, range(4), (False, True)):
        yield Layout(*parts)


@pytest.mark.parametrize("config", [SMALL, ODD, RING], ids=["small", "odd", "ring"])
@pytest.mark.parametrize("num_ranks", [0, 1, 2, 4, 6, 8, 12])
def test_a_layout_is_refused_exactly_when_something_does_not_come_out_even(config, num_ranks):
    wrong = [
        layout
        for layout in all_layouts(4 if config is SMALL else 3)
        if (not layout_faults(config, layout, num_ranks)) != works(config, layout, num_ranks)
    ]
    assert wrong == []


def test_all_faults_come_at_once_each_with_its_values():
    layout = Layout(tensor=3, pipeline=3, virtual_pipeline=2, expert=5, context=2, sequence_parallel=True)
    assert layout_faults(SMALL, layout, 8) == [
        "num_attention_heads=4 is no multiple of tensor=3, and all parts must be equal",
        "num_key_value_heads=2 is no multiple of tensor=3, and all parts must be equal",
        "intermediate_size=32 is no multiple of tensor=3, and all parts must be equal",
        "num_local_experts=8 is no multiple of expert=5, and all parts must be equal",
        "num_hidden_layers=4 is no multiple of pipeline x virtual_pipeline=6, and all parts must be equal",
        "8 ranks are no multiple of tensor x pipeline x context = 3 x 3 x 2 = 18, the ranks of one copy",
    ]
    assert layout_faults(RING, Layout(virtual_pipeline=0, pipeline=2, sequence_parallel=True), -1) == [
        "virtual_pipeline must be at least 1, not 0",
        "there must be at least 1 rank, not -1",
        "sequence_parallel=true shares tokens among tensor ranks and needs tensor > 1, not tensor=1",
        "pipeline=2 needs layers that can be cut, which minimax has and bailing_linear has not",
    ]


@pytest.mark.parametrize(
    ("layout", "num_ranks", "says"),
    [
        (Layout(expert=8), 4, r"expert=8 does not divide context x data = 1 x 4 = 4"),
        (Layout(tensor=2, expert=4), 4, r"expert=4 does not divide context x data = 1 x 2 = 2"),
        (Layout(virtual_pipeline=2), 1, r"virtual_pipeline=2 .* needs pipeline > 1"),
        (Layout(tensor=4), 4, r"num_key_value_heads=2 is no multiple of tensor=4"),
    ],
)
def test_one_fault_alone(layout, num_ranks, says):
    with pytest.raises(ModelError, match=says):
        check_layout(SMALL, layout, num_ranks)


@pytest.mark.parametrize(("vocab_size", "has_fault"), [(4, False), (5, True), (6, True), (7, False), (8, False)])
def test_a_vocabulary_must_leave_every_part_a_token(vocab_size, has_fault):
    """Five tokens in four parts of two: the third has one and the fourth none."""
    config = dataclasses.replace(SMALL, vocab_size=vocab_size, num_key_value_heads=4)
    fault = f"vocab_size={vocab_size} in tensor=4 parts of 2 leaves the last one no token"
    assert layout_faults(config, Layout(tensor=4), 4) == ([fault] if has_fault else [])
    assert padded_vocabulary(vocab_size, 4) == (4 if vocab_size == 4 else 8)


def test_a_refusal_names_ways_out():
    with pytest.raises(ModelError) as caught:
        check_layout(SMALL, Layout(tensor=3, pipeline=2, sequence_parallel=True), 8)
    assert str(caught.value) == (
        "The layout tensor=3 pipeline=2 expert=1 context=1 sequence_parallel=true cannot work on 8 ranks: "
        "num_attention_heads=4 is no multiple of tensor=3, and all parts must be equal; "
        "num_key_value_heads=2 is no multiple of tensor=3, and all parts must be equal; "
        "intermediate_size=32 is no multiple of tensor=3, and all parts must be equal; "
        "8 ranks are no multiple of tensor x pipeline x context = 3 x 2 x 1 = 6, the ranks of one copy. "
        "Nearest layouts that work on 8 ranks: "
        "tensor=2 pipeline=2 expert=1 context=1 sequence_parallel=true; "
        "tensor=1 pipeline=2 expert=1 context=1; "
        "tensor=2 pipeline=1 expert=1 context=1 sequence_parallel=true."
    )
    check_layout(SMALL, Layout(tensor=2, pipeline=2, sequence_parallel=True), 8)


@pytest.mark.parametrize("config", [SMALL, ODD, RING], ids=["small", "odd", "ring"])
@pytest.mark.parametrize("num_ranks", [1, 6, 8])
def test_no_layout_that_works_is_nearer_than_those_named(config, num_ranks):
    def distance(wish, found):
        pairs = zip(dataclasses.astuple(wish)[:5], dataclasses.astuple(found)[:5], strict=True)
        return sum(abs(math.log2(theirs) - math.log2(max(ours, 1))) for ours, theirs in pairs)

    sizes = range(1, 9)
    working = [
        layout
        for parts in itertools.product(sizes, (1, 2, 3, 4, 6), (1, 2, 3, 4, 6), sizes, sizes)
        if works(config, layout := Layout(*parts), num_ranks)
    ]
    for wish in (Layout(), Layout(tensor=5), Layout(0, 4, 2, 3, 0), Layout(pipeline=3, expert=8)):
        named = nearest_layouts(config, wish, num_ranks, count=3)
        nearest = sorted(distance(wish, layout) for layout in working)[:3]
        assert [distance(wish, layout) for layout in named] == pytest.approx(nearest)
        assert len(set(named)) == len(named)
        assert all(works(config, layout, num_ranks) for layout in named)


def test_no_number_of_ranks_below_one_has_a_layout():
    assert nearest_layouts(SMALL, Layout(), 0) == []


@pytest.mark.parametrize(
    ("layout", "layers_by_stage"),
    [
        (Layout(), [(0, 1, 2, 3, 4, 5, 6, 7)]),
        (Layout(pipeline=2), [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (Layout(pipeline=2, virtual_pipeline=2), [(0, 1, 4, 5), (2, 3, 6, 7)]),
        (Layout(pipeline=2, virtual_pipeline=4), [(0, 2, 4, 6), (1, 3, 5, 7)]),
    ],
    ids=str,
)
def test_stages_hold_the_layers_that_megatron_documents(layout, layers_by_stage):
    assert [layout.stage_layers(8, stage) for stage in range(layout.pipeline)] == layers_by_stage


def test_megatron_forms_its_groups_exactly_where_no_fault_is_found():
    """Only what concerns ranks: megatron learns the model's sizes later, when it builds the parts."""
    pytest.importorskip("megatron.core")
    import torch.distributed as dist
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    roomy = HybridConfig(
        num_attention_heads=12, num_key_value_heads=12, intermediate_size=24, num_local_experts=24,
        num_hidden_layers=36, attn_type_list=(0,) * 36,
    )  # fmt: skip
    for num_ranks in (4, 6):
        dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
        try:
            for parts in itertools.product((1, 2, 3), (1, 2), (1, 2), (1, 2, 3), (1, 2)):
                layout = Layout(*parts)
                assert megatron_takes(parallel_state, layout) == (not layout_faults(roomy, layout, num_ranks)), layout
        finally:
            dist.destroy_process_group()


def megatron_takes(parallel_state, layout):
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
            context_parallel_size=layout.context,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=layout.tensor,
            create_gloo_process_groups=False,
        )
    except RuntimeError:
        return False
    finally:
        parallel_state.destroy_model_parallel()
    return True
