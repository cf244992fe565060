"""The configuration: the published one, the defaults, and every refusal."""

from __future__ import annotations

import dataclasses

import pytest

from model import HybridConfig, HybridLM, ModelError

M1 = {
    "model_type": "minimax_m1",
    "vocab_size": 200064,
    "hidden_size": 6144,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rotary_dim": 64,
    "rope_theta": 10000000,
    "intermediate_size": 9216,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "postnorm": True,
    "shared_intermediate_size": 0,
    "sliding_window": None,
    "attn_type_list": ([0] * 7 + [1]) * 10,
    "layernorm_linear_attention_alpha": 3.5565588200778455,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_full_attention_alpha": 3.5565588200778455,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_mlp_alpha": 3.5565588200778455,
    "layernorm_mlp_beta": 1.0,
}


def test_the_published_configuration():
    config = HybridConfig.from_hf(M1)
    assert config.softmax_layers == tuple(range(7, 80, 8))
    assert config.rotary_dim == 64
    assert config.rope_theta == 1e7
    assert config.postnorm
    # the published alpha is DeepNorm's (2 L)^(1/4), which is also the default here
    default = dataclasses.replace(config, layernorm_mlp_alpha=None)
    assert default.residual_scales("mlp") == pytest.approx(config.residual_scales("mlp"), rel=1e-15)


@pytest.mark.parametrize("layout", ["minimax_m1", "minimax"])
def test_both_layouts_say_the_same(layout):
    config = HybridConfig.from_hf(M1)
    assert HybridConfig.from_hf(config.to_hf(layout)) == config


@pytest.mark.parametrize("layout", ["minimax_m1", "minimax"])
def test_no_rotation_at_all_is_not_the_same_as_no_word_about_it(layout):
    assert HybridConfig.from_hf(M1 | {"rotary_dim": 0}).rotary_dim == 0
    assert HybridConfig.from_hf(HybridConfig(rotary_dim=0).to_hf(layout)).rotary_dim == 0
    silent = {key: value for key, value in M1.items() if key != "rotary_dim"}
    assert (
        HybridConfig.from_hf(silent).rotary_dim == HybridConfig.from_hf(silent | {"rotary_dim": None}).rotary_dim == 128
    )


def test_the_export_has_what_vllm_does_not_default_to():
    values = HybridConfig().to_hf("minimax_m1")
    assert values["postnorm"] is True
    assert values["rotary_dim"] == 8
    assert values["shared_moe_mode"] == "sigmoid"
    assert values["layernorm_mlp_alpha"] == pytest.approx(8**0.25)


def test_the_tiny_policy_has_the_documented_size():
    lm = HybridLM(HybridConfig(vocab_size=24))
    assert sum(parameter.numel() for parameter in lm.parameters()) == 276_224


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_intermediate_size": 128}, "shared_intermediate_size to 128"),
        ({"sliding_window": 4096}, "sliding_window to 4096"),
        ({"hidden_act": "gelu"}, "hidden_act to 'gelu'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"num_local_experts": [1, 2]}, "num_local_experts"),
        ({"attn_type_list": None, "layer_types": ["mamba"] * 80}, "mamba"),
        ({"attn_type_list": None}, "layer_types=None"),
        ({"attn_type_list": [0, 1]}, "2 entries for 80 layers"),
    ],
)
def test_a_file_that_asks_for_other_mathematics_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        HybridConfig.from_hf(M1 | changes)


def test_missing_sizes_are_all_named():
    values = {key: value for key, value in M1.items() if key not in ("vocab_size", "hidden_size")}
    with pytest.raises(ModelError, match="vocab_size, hidden_size"):
        HybridConfig.from_hf(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be positive, not 0"),
        ({"num_hidden_layers": 3}, "4 entries for 3 layers"),
        ({"attn_type_list": (0, 0, 2, 1)}, "lightning"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"rotary_dim": 3}, "even"),
        ({"rotary_dim": 18}, "at most head_dim=16"),
        ({"num_experts_per_tok": 9}, "exceeds num_local_experts=8"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"param_dtype": "int8"}, "int8"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        HybridConfig(**changes)


def test_all_faults_come_at_once():
    with pytest.raises(ModelError, match=r"hidden_size.*rotary_dim"):
        HybridConfig(hidden_size=-1, rotary_dim=5)
