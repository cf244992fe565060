"""Arithmetic of memory against what torch keeps, what a rank would allocate, and schedules played through by hand."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from model import HybridConfig, HybridLM, Routing
from model.context_parallel import Share
from model.families import make_layer
from model.head import Head
from model.layout import Layout
from model.memory import BFLOAT16, FLOAT32, Work, layer_bytes, rank_memory
from model.sizes import model_parameters, rank_parameters

CONFIG = HybridConfig(
    hidden_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=48,
    num_hidden_layers=4,
    attn_type_list=(0, 1, 0, 1),
)
PLAIN = Work(row_tokens=0)


def kept_bytes(module, run):
    """Bytes of all storages that autograd keeps while `run` goes forward, without the module's own weights."""
    storages = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in storages.values())


@pytest.fixture
def fake_ranks():
    """A process group whose collectives move nothing: enough to see what would be allocated."""

    def form(num_ranks, rank):
        dist.init_process_group("fake", rank=rank, world_size=num_ranks, store=FakeStore())

    yield form
    if dist.is_initialized():
        dist.destroy_process_group()


def left_out_per_token(config, layer, layout, make_row):
    """What a layer keeps more than the formula says, in bytes per token; `make_row` plans a row of 512 tokens."""
    num_tokens = 512  # whole blocks, and a bucket without padding
    row = make_row(HybridLM(config), num_tokens)
    module = make_layer(config, layer)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(num_tokens, config.hidden_size, dtype=config.dtype, requires_grad=True)
    return kept_bytes(module, lambda: module(x, row, Routing())) / num_tokens - layer_bytes(config, layer, layout)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("layer", [0, 1], ids=["lightning", "softmax"])
def test_a_layer_keeps_what_the_formula_says(dtype, head_dim, layer):
    config = dataclasses.replace(CONFIG, param_dtype=dtype, head_dim=head_dim)
    left_out = left_out_per_token(config, layer, Layout(), lambda lm, T: lm._row(torch.arange(T), torch.tensor([0, T])))
    assert 0 <= left_out < SMALL_NUMBERS


SMALL_NUMBERS = 4 * CONFIG.num_local_experts + 180
"""Bytes: probabilities, choices, places of visits; norms' scales, decays, cosines. None grows with a width."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", [0, 1], ids=["lightning", "softmax"])
def test_the_last_context_rank_of_a_long_sequence_keeps_what_the_formula_says(dtype, layer, fake_ranks):
    num_ranks = 4
    fake_ranks(num_ranks, rank=num_ranks - 1)

    def make_row(lm, num_tokens):
        share = Share.of_group(torch.tensor([0, num_tokens * num_ranks]))
        return lm._row(torch.arange(num_tokens), share.own_cu_seqlens, share=share)

    config = dataclasses.replace(CONFIG, param_dtype=dtype)
    left_out = left_out_per_token(config, layer, Layout(context=num_ranks), make_row)
    local, parallel = (expert_bytes(config, is_plain) for is_plain in (True, False))
    left_out += parallel - local  # the layer here has the local model's experts
    states = num_ranks * 4 * config.num_attention_heads * config.head_dim**2 // 512
    mask = 512 * num_ranks * config.dtype.itemsize
    assert 0 <= left_out - (mask if layer == 1 else 0) < SMALL_NUMBERS + states


def expert_bytes(config, is_plain):
    """By the last line of the table in `layer_bytes`."""
    per_visit = 2 * config.intermediate_size if is_plain else config.hidden_size + 6 * config.intermediate_size
    return config.num_experts_per_tok * per_visit * config.dtype.itemsize


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_experts_of_megatron_keep_what_the_formula_says(dtype, tensor, fake_ranks):
    pytest.importorskip("megatron.core")
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.moe.experts import SequentialMLP
    from megatron.core.transformer.transformer_config import TransformerConfig

    fake_ranks(2, rank=0)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, expert_tensor_parallel_size=tensor, create_gloo_process_groups=False
    )
    config = dataclasses.replace(CONFIG, param_dtype=dtype)
    settings = TransformerConfig(
        num_layers=1, hidden_size=config.hidden_size, num_attention_heads=4, num_moe_experts=8, moe_router_topk=2,
        ffn_hidden_size=config.intermediate_size, moe_ffn_hidden_size=config.intermediate_size,
        params_dtype=config.dtype, bf16=dtype == "bfloat16", tensor_model_parallel_size=tensor,
        expert_tensor_parallel_size=tensor, sequence_parallel=tensor > 1, gated_linear_unit=True, add_bias_linear=False,
        activation_func=torch.nn.functional.silu, use_cpu_initialization=True, perform_initialization=False,
        bias_activation_fusion=False, gradient_accumulation_fusion=False,
    )  # fmt: skip
    matrices = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    ranks = ProcessGroupCollection.use_mpu_process_groups()
    experts = SequentialMLP(8, settings, matrices, pg_collection=ranks)
    num_tokens, visits = 512, 1024
    x = torch.randn(visits, config.hidden_size, dtype=config.dtype, requires_grad=True)
    weights = torch.rand(visits, requires_grad=True)
    per_token = kept_bytes(experts, lambda: experts(x, torch.full((8,), visits // 8), weights)) / num_tokens
    parallel_state.destroy_model_parallel()
    alone = dataclasses.replace(config, intermediate_size=config.intermediate_size // tensor)
    assert 0 <= per_token - expert_bytes(alone, is_plain=False) <= 4 * config.num_experts_per_tok


@pytest.mark.parametrize(("dtype", "storage"), [("float32", FLOAT32), ("bfloat16", BFLOAT16)])
def test_one_rank_keeps_the_bytes_of_its_tensors(dtype, storage):
    config = dataclasses.replace(CONFIG, param_dtype=dtype)
    with torch.device("meta"):
        parameters = list(HybridLM(config).parameters())
    memory = rank_memory(config, Layout(), 1, storage, PLAIN)
    assert memory.weights == sum(tensor.nbytes for tensor in parameters)
    assert memory.gradients == sum(4 * tensor.numel() for tensor in parameters)
    copies = sum(4 * tensor.numel() for tensor in parameters if tensor.dtype != torch.float32)
    assert memory.optimizer == sum(8 * tensor.numel() for tensor in parameters) + copies
    assert memory.activations == 0


def test_adamw_in_float32_takes_16_bytes_a_parameter():
    lm = HybridLM(CONFIG)
    optimizer = torch.optim.AdamW(lm.parameters())
    for parameter in lm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    memory = rank_memory(CONFIG, Layout(), 1, FLOAT32, PLAIN)
    assert memory.optimizer == sum(moments)
    assert memory.weights + memory.gradients + memory.optimizer == 16 * model_parameters(CONFIG).total


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_ranks_share_out_what_they_have_in_common(zero):
    """Eight ranks: four copies of each of two stages, experts in two parts, so two ranks hold the same experts."""
    layout = Layout(pipeline=2, expert=2, context=2)
    storage = dataclasses.replace(FLOAT32, zero=zero)
    memory = rank_memory(CONFIG, layout, 8, storage, PLAIN, pipeline_rank=1)
    parts = rank_parameters(CONFIG, layout, 1)
    whole, shared = parts.total, parts.experts // 2 + (parts.total - parts.experts) // 4
    assert memory.optimizer == 8 * (shared if zero >= 1 else whole)
    assert memory.gradients == 4 * (shared if zero >= 2 else whole)
    assert memory.weights == 4 * (shared if zero >= 3 else whole)


def test_shares_of_all_ranks_hold_the_whole_optimizer():
    layout = Layout(tensor=2, pipeline=2, expert=4, sequence_parallel=True)
    ranks = [rank_memory(CONFIG, layout, 16, FLOAT32, PLAIN, stage) for stage in (0, 1)]
    parts = model_parameters(CONFIG)
    doubled = parts.norms + parts.routers  # whole on both tensor ranks
    assert sum(rank.optimizer for rank in ranks) * 8 == 8 * (parts.total + doubled)


def forwards_waiting(layout, stage, num_rows):
    """Most pieces that a stage has gone forward through and not back, in a schedule played turn by turn.

    A piece can go forward when the piece before it has, and back when the piece behind it has; each stage does one
    thing a turn, back if it can once its warm-up is over, else forward.
    """
    pieces = layout.pipeline * layout.virtual_pipeline
    forward, back = set(), set()
    orders = [order_of(layout, place, num_rows) for place in range(layout.pipeline)]
    most = 0
    while any(orders):
        done = []
        for order in orders:
            if not order:
                continue
            kind, row, piece = order[0]
            is_ready = (
                (piece == 0 or (row, piece - 1) in forward)
                if kind == "forward"
                else (piece == pieces - 1 and (row, piece) in forward) or (row, piece + 1) in back
            )
            if is_ready:
                done.append(order.pop(0))
        assert done, "nobody can go on"
        forward |= {(row, piece) for kind, row, piece in done if kind == "forward"}
        back |= {(row, piece) for kind, row, piece in done if kind == "back"}
        mine = {(row, piece) for row, piece in forward - back if piece % layout.pipeline == stage}
        most = max(most, len(mine))
    return most


def order_of(layout, stage, num_rows):
    """What megatron's schedules let a stage do, in order: warm-up, one forward one back, cool-down."""
    stages, turns = layout.pipeline, layout.virtual_pipeline
    visits = [
        (row, turn * stages + stage)
        for first in range(0, num_rows, stages)
        for turn in range(turns)
        for row in range(first, min(first + stages, num_rows))
    ]
    backs = [
        (row, (turns - 1 - turn) * stages + stage)
        for first in range(0, num_rows, stages)
        for turn in range(turns)
        for row in range(first, min(first + stages, num_rows))
    ]
    warm = stages - stage - 1 if turns == 1 else 2 * (stages - stage - 1) + (turns - 1) * stages
    warm = min(warm, len(visits))
    order = [("forward", *visit) for visit in visits[:warm]]
    for forward, back in zip(visits[warm:], backs, strict=False):
        order += [("forward", *forward), ("back", *back)]
    return order + [("back", *back) for back in backs[len(visits) - warm :]]


@pytest.mark.parametrize("layout", [Layout(), Layout(pipeline=4), Layout(pipeline=4, virtual_pipeline=3)], ids=str)
def test_pieces_in_flight_are_those_of_the_schedules(layout):
    for stage in range(layout.pipeline):
        assert layout.pieces_in_flight(stage) == forwards_waiting(layout, stage, num_rows=16)


@pytest.mark.parametrize(
    ("layout", "fraction"),
    [(Layout(), 0), (Layout(pipeline=4), 3 / 19), (Layout(pipeline=4, virtual_pipeline=3), 3 / 51)],
    ids=str,
)
def test_the_bubble_is_the_stages_before_ones_turn(layout, fraction):
    assert layout.bubble_fraction(16) == pytest.approx(fraction)


def test_recomputation_keeps_inputs_and_one_layer():
    layout = Layout(tensor=2, pipeline=2, sequence_parallel=True)
    inputs = 2 * 96 * 4 // 2
    layers = [layer_bytes(CONFIG, layer, layout) for layer in (0, 1)]
    with_it, without = (
        rank_memory(CONFIG, layout, 4, FLOAT32, Work(100, recompute=recompute)).activations
        for recompute in (True, False)
    )
    assert with_it == 100 * (2 * inputs + max(layers))  # two rows wait for the first of two stages
    assert without == 100 * 2 * sum(layers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_allocates_no_more_than_the_formula_and_little_less(dtype):
    config = HybridConfig(hidden_size=64, vocab_size=4096, param_dtype=dtype)
    num_tokens = 2048
    head = Head(config)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(num_tokens, 64).to(config.dtype).requires_grad_()
    targets = torch.zeros(num_tokens, dtype=torch.int64)
    largest = peak_of(lambda: head.weighted_logp(hidden, targets, lambda logp, part: torch.ones_like(logp), 1.0))
    formula = rank_memory(config, Layout(), 1, FLOAT32, Work(num_tokens)).head
    assert 0.97 < (largest + hidden.nbytes) / formula < 1.03


def peak_of(run):
    """Most bytes held at once by what `run` allocates, from the profiler's record of allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
