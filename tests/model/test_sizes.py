"""Formulas for parameters against the tensors of models built on the meta device, whole and cut into layouts."""

from pathlib import Path

import pytest
import torch

from launch.compose import compose
from model import HybridConfig, HybridLM, ModelError
from model.layout import Layout
from model.layout_faults import layout_faults
from model.sizes import active_parameters, model_parameters, rank_parameters

LAYOUTS = [
    ("tiny", Layout(), 1),
    ("tiny", Layout(tensor=2, pipeline=2, expert=2, sequence_parallel=True), 8),
    ("tiny", Layout(pipeline=2, virtual_pipeline=2, context=2), 4),
    ("hybrid_1b", Layout(), 1),
    ("hybrid_1b", Layout(tensor=4, expert=2), 8),
    ("hybrid_16b", Layout(expert=8), 8),
    ("hybrid_16b", Layout(tensor=2, expert=4, context=4), 8),
    ("hybrid_16b", Layout(tensor=4, pipeline=2, virtual_pipeline=3), 8),
    ("minimax_m1", Layout(tensor=8, pipeline=8, expert=8, sequence_parallel=True), 512),
    ("minimax_m1", Layout(tensor=8, pipeline=2, expert=32, context=32), 512),
    ("minimax_m1", Layout(tensor=4, pipeline=16, virtual_pipeline=5, expert=8), 512),
    ("minimax_m1", Layout(tensor=8, pipeline=80), 640),
]


KINDS = ("lightning", "softmax")


@pytest.fixture(scope="module")
def shape_of():
    return {name: compose([f"model={name}"]).model.shape for name, *_ in LAYOUTS}


@pytest.fixture(scope="module")
def tensors_of(shape_of):
    with torch.device("meta"):
        models = {name: HybridLM(shape) for name, shape in shape_of.items()}
    return {name: dict(model.named_parameters()) for name, model in models.items()}


@pytest.mark.parametrize("name", ["tiny", "hybrid_1b", "hybrid_16b", "minimax_m1"])
def test_the_formula_counts_what_the_model_holds(name, shape_of, tensors_of):
    def count(*words):
        return sum(tensor.numel() for key, tensor in tensors_of[name].items() if any(word in key for word in words))

    parts = model_parameters(shape_of[name])
    kinds = {kind: [f"layers.{n}.self_attn." for n in getattr(shape_of[name], f"{kind}_layers")] for kind in KINDS}
    assert parts.total == count("")
    assert (parts.embedding, parts.head) == (count("embed_tokens"), count("lm_head"))
    assert (parts.experts, parts.routers) == (count("experts."), count("gate.weight") - count("output_gate.weight"))
    assert (parts.lightning, parts.softmax) == (count(*kinds["lightning"]), count(*kinds["softmax"]))
    assert parts.norms == count("layernorm", "model.norm.")


def test_minimax_m1_is_the_published_model(shape_of):
    """Numbers of the report and of the checkpoint's index: 456B, 45.9B active, 912,210,767,872 bytes on disk."""
    shape = shape_of["minimax_m1"]
    whole, active = model_parameters(shape), active_parameters(shape)
    assert 2 * whole.total + 2 * whole.routers == 912_210_767_872
    assert round(active.body / 1e9, 1) == 45.9
    assert round((active.body + active.head) / 1e9, 2) == 47.17
    published = {
        "vocab_size": 200064, "hidden_size": 6144, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9216, "num_local_experts": 32,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000000, "rotary_dim": 64,
        "max_position_embeddings": 10240000, "tie_word_embeddings": False, "postnorm": True,
        "shared_intermediate_size": 0, "initializer_range": 0.02, "attn_type_list": ([0] * 7 + [1]) * 10,
    }  # fmt: skip
    published |= {
        f"layernorm_{kind}_alpha": 3.5565588200778455 for kind in ("linear_attention", "full_attention", "mlp")
    }
    written = shape.to_hf("minimax_m1")
    assert {key: written[key] for key in published} == published


@pytest.mark.parametrize("name", ["tiny", "hybrid_1b", "hybrid_16b", "minimax_m1"])
def test_a_token_is_multiplied_with_two_experts_of_each_layer(name, shape_of, tensors_of):
    shape = shape_of[name]
    visited = sum(
        tensor.numel() * shape.num_experts_per_tok // shape.num_local_experts if "experts." in key else tensor.numel()
        for key, tensor in tensors_of[name].items()
        if "embed_tokens" not in key
    )
    active = active_parameters(shape)
    assert active.total - active.embedding == visited
    assert active.embedding == shape.hidden_size


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_a_rank_holds_the_slices_that_the_rules_give_it(case, shape_of, tensors_of):
    """Each tensor of the model is sliced on the meta device, and what each pipeline stage keeps is counted."""
    name, layout, num_ranks = case
    assert layout_faults(shape_of[name], layout, num_ranks) == []
    for stage in range(layout.pipeline):
        slices = rank_slices(tensors_of[name], shape_of[name].num_hidden_layers, layout, stage)
        assert rank_parameters(shape_of[name], layout, stage).total == sum(t.numel() for t in slices.values())


def test_the_bytes_of_the_scaling_page_are_those_of_its_ranks_slices(shape_of, tensors_of, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    import generate_scaling

    for case in generate_scaling.CASES:
        layout, zero = case.layout, case.storage.zero
        stage, memory = generate_scaling.largest_stage(case)
        slices = rank_slices(tensors_of[case.model], shape_of[case.model].num_hidden_layers, layout, stage)
        copies = case.num_ranks // (layout.tensor * layout.pipeline)
        held = weights = gradients = optimizer = 0
        for key, tensor in slices.items():
            sharers = copies // layout.expert if "experts." in key else copies
            held += tensor.numel()
            weights += tensor.nbytes / (sharers if zero == 3 else 1)
            gradients += 4 * tensor.numel() / (sharers if zero >= 2 else 1)
            optimizer += tensor.numel() * (8 if tensor.dtype == torch.float32 else 12) / sharers
        assert memory.weights == pytest.approx(weights, abs=3)  # shares of three groups are rounded up
        assert memory.gradients == pytest.approx(gradients, abs=3)
        assert memory.optimizer == pytest.approx(optimizer, abs=3)
        assert held == rank_parameters(shape_of[case.model], layout, stage).total


def rank_slices(tensors, num_layers, layout, stage):
    """What a rank of a pipeline stage keeps of a model's tensors."""
    return {
        key: rank_slice(key, tensor, layout)
        for key, tensor in tensors.items()
        if stage in stages_with(key, num_layers, layout)
    }


def stages_with(key, num_layers, layout):
    """Pipeline ranks that hold the tensor: pieces of layers are dealt out to the stages in turn."""
    if "embed_tokens" in key:
        return {0}
    if "layers." not in key:
        return {layout.pipeline - 1}
    piece = int(key.split(".")[2]) * layout.pipeline * layout.virtual_pipeline // num_layers
    return {piece % layout.pipeline}


CUT_DIMENSION = {
    "embed_tokens.weight": 0,
    "lm_head.weight": 0,
    "qkv_proj.weight": 0,
    "output_gate.weight": 0,
    "self_attn.norm.weight": 0,
    "q_proj.weight": 0,
    "k_proj.weight": 0,
    "v_proj.weight": 0,
    "out_proj.weight": 1,
    "o_proj.weight": 1,
    "experts.gate_up_proj": 1,
    "experts.down_proj": 2,
}
"""Which dimension tensor ranks share; whatever is not named here is whole on each of them."""


def rank_slice(key, tensor, layout):
    """The largest slice that a rank gets: the first, which padded vocabularies make all others equal to."""
    if "experts." in key:
        tensor = exactly(tensor, 0, layout.expert)
    for name, dimension in CUT_DIMENSION.items():
        if key.endswith(name):
            is_padded = name in ("embed_tokens.weight", "lm_head.weight")
            return tensor.chunk(layout.tensor, dimension)[0] if is_padded else exactly(tensor, dimension, layout.tensor)
    return tensor


def exactly(tensor, dimension, parts):
    slices = tensor.chunk(parts, dimension)
    assert len({one.shape for one in slices}) == 1 and len(slices) == parts
    return slices[0]


def test_ranks_hold_a_model_together():
    """Over all stages, what is cut adds up to the model, and what is whole on each rank is there so many times."""
    shape = HybridConfig(vocab_size=63)
    layout = Layout(tensor=2, pipeline=2, expert=4)
    ranks = [rank_parameters(shape, layout, stage) for stage in range(2)]
    whole = model_parameters(shape)
    assert sum(rank.experts for rank in ranks) * 2 * 4 == whole.experts
    assert sum(rank.lightning + rank.softmax for rank in ranks) * 2 == whole.lightning + whole.softmax
    assert sum(rank.norms + rank.routers for rank in ranks) == whole.norms + whole.routers
    assert ranks[0].embedding * 2 == ranks[1].head * 2 == 64 * shape.hidden_size
    assert ranks[0].head == ranks[1].embedding == 0


def test_another_family_is_refused():
    with pytest.raises(ModelError, match="family minimax only, not of bailing_linear"):
        model_parameters(HybridConfig(family="bailing_linear"))
