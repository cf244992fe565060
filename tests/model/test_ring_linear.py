"""Ring-linear: against the published equations token by token, against itself, its config.json and its weights."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model import HybridCache, HybridConfig, HybridLM, ModelError, Routing, load_pretrained, save_pretrained
from model.checkpoint import check_weights, load_weights, stream_weights
from model.checkpoint_names import NAMES

torch.set_num_threads(1)
RING = HybridConfig(
    family="bailing_linear",
    vocab_size=23,
    hidden_size=16,
    num_hidden_layers=5,
    attn_type_list=(0, 1, 0, 1, 1),  # groups of two, and one layer behind the last whole group
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rotary_dim=4,
    intermediate_size=6,
    dense_intermediate_size=12,
    first_k_dense_replace=1,
    num_local_experts=8,
    num_experts_per_tok=3,
    num_shared_experts=2,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    group_norm_size=2,
    rms_norm_eps=1e-2,  # the scale of linear attention shows through it alone, behind a norm
    initializer_range=0.3,
)
# what the config.json of Ring-mini-linear-2.0 says about the model's mathematics
RING_MINI = {
    "architectures": ["BailingMoeLinearV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "group_norm_size": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "layer_group_size": 5,
    "linear_silu": False,
    "max_position_embeddings": 131072,
    "model_type": "bailing_moe_linear",
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "moe_shared_expert_intermediate_size": 512,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "vocab_size": 157184,
}


def make_lm(config=RING, seed=0):
    torch.manual_seed(seed)
    lm = HybridLM(config).double()
    with torch.no_grad():  # norms away from 1 and biases away from 0, so that a missing one shows
        for name, parameter in lm.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            if name.endswith("expert_bias"):
                parameter.normal_(0, 0.2)
    return lm


def row(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, RING.vocab_size, (sum(lengths),), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return tokens, positions, torch.tensor([0, *lengths]).cumsum(0)


class Oracle:
    """The published equations, one token at a time and one head at a time, from a config.json and named weights."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.memory = {}

    def token(self, token, position):
        """Logits [V] after one more token."""
        c = self.config
        x = self.weights["model.word_embeddings.weight"][token]
        for layer in range(c["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self.attention(layer, self.norm(f"{name}.input_layernorm", x), position)
            x = x + self.channels(layer, self.norm(f"{name}.post_attention_layernorm", x))
        return self.weights["lm_head.weight"] @ self.norm("model.norm", x)

    def norm(self, name, x):
        return x / torch.sqrt((x**2).mean() + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]

    def rotated(self, x, position):
        dim = int(self.config["head_dim"] * self.config["partial_rotary_factor"])
        out = list(x)
        for i in range(dim // 2):
            angle = position * self.config["rope_theta"] ** (-2 * i / dim)
            a, b = x[i], x[i + dim // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + dim // 2] = b * math.cos(angle) + a * math.sin(angle)
        return torch.stack(out)

    def attention(self, layer, u, position):
        c, name = self.config, f"model.layers.{layer}.attention"
        heads, width, size, layers = (
            c["num_attention_heads"],
            c["head_dim"],
            c["layer_group_size"],
            c["num_hidden_layers"],
        )
        is_softmax = (layer + 1) % size == 0 or layer >= layers // size * size
        kv_heads = c["num_key_value_heads"] if is_softmax else heads
        qkv = (self.weights[f"{name}.query_key_value.weight"] @ u).split(width)
        q = [self.rotated(self.norm(f"{name}.query_layernorm", x), position) for x in qkv[:heads]]
        k = [self.rotated(self.norm(f"{name}.key_layernorm", x), position) for x in qkv[heads : heads + kv_heads]]
        v = qkv[heads + kv_heads :]
        if is_softmax:
            seen = self.memory.setdefault(layer, [])
            seen.append((k, v))
            outs = []
            for h in range(heads):
                kept = h * kv_heads // heads
                scores = torch.stack([q[h] @ keys[kept] for keys, _ in seen]) / math.sqrt(width)
                outs.append(torch.softmax(scores, 0) @ torch.stack([values[kept] for _, values in seen]))
            return self.weights[f"{name}.dense.weight"] @ torch.cat(outs)
        states = self.memory.setdefault(layer, [torch.zeros(width, width, dtype=u.dtype)] * heads)
        outs = []
        for h in range(heads):
            slope = 2 ** (-8 * (h + 1) / heads) * (1 - (layer - 1) / (layers - 1) + 1e-5)
            states[h] = states[h] * math.exp(-slope) + torch.outer(k[h], v[h])
            outs.append(q[h] @ states[h] / math.sqrt(width))
        self.memory[layer] = list(states)
        parts = torch.cat(outs).split(heads * width // c["group_norm_size"])
        normed = torch.cat([part / torch.sqrt((part**2).mean() + c["rms_norm_eps"]) for part in parts])
        gate = torch.sigmoid(self.weights[f"{name}.g_proj.weight"] @ u)
        return self.weights[f"{name}.dense.weight"] @ (normed * self.weights[f"{name}.g_norm.weight"] * gate)

    def mlp(self, name, x):
        gate, up = (self.weights[f"{name}.{part}_proj.weight"] @ x for part in ("gate", "up"))
        return self.weights[f"{name}.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up)

    def channels(self, layer, x):
        c, name = self.config, f"model.layers.{layer}.mlp"
        if layer < c["first_k_dense_replace"]:
            return self.mlp(name, x)
        score = torch.sigmoid(self.weights[f"{name}.gate.weight"] @ x)
        choice = (score + self.weights[f"{name}.gate.expert_bias"]).tolist()
        size = c["num_experts"] // c["n_group"]
        groups = [range(g * size, (g + 1) * size) for g in range(c["n_group"])]
        groups.sort(key=lambda group: -sum(sorted(choice[e] for e in group)[-2:]))
        candidates = [e for group in groups[: c["topk_group"]] for e in group]
        chosen = sorted(candidates, key=lambda e: -choice[e])[: c["num_experts_per_tok"]]
        total = sum(score[e] for e in chosen) if len(chosen) > 1 else 1
        routed = [score[e] / total * self.mlp(f"{name}.experts.{e}", x) for e in chosen]
        return c["routed_scaling_factor"] * sum(routed) + self.mlp(f"{name}.shared_experts", x)


def oracle(lm, tokens):
    """Logits [T, V] of the equations with the weights of `lm`, and these weights under their published names."""
    weights = {name: tensor.clone().double().requires_grad_() for name, tensor in stream_weights(lm)}
    model = Oracle(lm.config.to_hf("bailing_moe_linear"), weights)
    return torch.stack([model.token(int(token), position) for position, token in enumerate(tokens)]), weights


def in_float64(lm, monkeypatch):
    """Slopes and rotations too, which are float32 in every model and hide differences below 1e-6."""

    def tables(positions_T, rotary_dim, theta):
        angle = positions_T[:, None] / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
        return angle.cos(), angle.sin()

    monkeypatch.setattr("model.hybrid.rotary_tables", tables)
    for number, layer in enumerate(lm.model.layers):
        if number not in lm.config.softmax_layers:
            factor = 1 - (number - 1) / (len(lm.model.layers) - 1) + 1e-5
            layer.self_attn.slope_values = factor / 4 ** torch.arange(1, 5, dtype=torch.float64)
    return lm


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_type_list": (0, 0, 0, 0, 1), "group_norm_size": 1, "num_key_value_heads": 4},
        {"n_group": 2, "topk_group": 2, "num_experts_per_tok": 1, "rotary_dim": 8, "first_k_dense_replace": 0},
    ],
    ids=["groups of two", "groups of five", "one expert of all"],
)
def test_logits_and_all_gradients_equal_the_published_equations(changes, dtype, bound, monkeypatch):
    lm = make_lm(dataclasses.replace(RING, **changes)).to(dtype)
    if dtype == torch.float64:
        lm = in_float64(lm, monkeypatch)
    tokens, positions, borders = row([15])
    upstream = torch.linspace(-1, 1, 15 * RING.vocab_size, dtype=torch.float64).sin().view(15, -1)
    wanted, weights = oracle(lm, tokens)
    (wanted * upstream).sum().backward()
    logits = lm.logits(lm(tokens, positions, borders))
    (logits * upstream).sum().backward()
    torch.testing.assert_close(logits.double(), wanted, rtol=0, atol=bound * float(wanted.detach().abs().max()))
    grads = dict(grads_of(lm))
    learnt = {name for name in weights if not name.endswith("expert_bias")}
    assert grads.keys() == learnt
    for name in learnt:
        grad = weights[name].grad if weights[name].grad is not None else torch.zeros_like(weights[name])
        largest = float(grad.abs().max())
        torch.testing.assert_close(grads[name].double(), grad, rtol=0, atol=10 * bound * max(largest, 0.1), msg=name)


def grads_of(lm):
    named = ((name, parameter.grad) for name, parameter in lm.named_parameters() if parameter.grad is not None)
    return NAMES["bailing_linear"].in_files(named)


def test_the_bias_chooses_and_does_not_weigh_and_the_shares_are_reported():
    lm = make_lm()
    moe = lm.model.layers[1].block_sparse_moe
    x = torch.randn(6, RING.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        moe.gate.expert_bias.copy_(torch.tensor([9, 9, 0, 0, 9, 0, 0, 0]))
        share, weight, expert = moe.gate(x)
    assert expert.sort().values.tolist() == [[0, 1, 4]] * 6
    score = torch.sigmoid(x @ moe.gate.weight.T)
    torch.testing.assert_close(weight, 2.5 * score.gather(1, expert) / score[:, [0, 1, 4]].sum(1, keepdim=True))
    torch.testing.assert_close(share, score / score.sum(1, keepdim=True))
    routing = Routing()
    lm(*row([5]), routing)
    assert len(routing.probs) == 4  # the dense layer has nothing to say
    assert all(int(counts.sum()) == 15 for counts in routing.counts)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 45), min_size=1, max_size=6), st.integers(0, 99))
def test_a_packed_row_equals_its_sequences_one_by_one(lengths, seed):
    lm = make_lm()
    tokens, positions, borders = row(lengths, seed)
    packed = lm(tokens, positions, borders)
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        alone = lm(tokens[first:last], positions[first:last], torch.tensor([0, last - first]))
        torch.testing.assert_close(packed[first:last], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_prefill_in_pieces_and_decoding_equal_one_forward_pass(piece):
    lm = make_lm()
    lengths = [70, 5, 33]
    tokens, positions, borders = row(lengths)
    wanted = lm(tokens, positions, borders).detach()
    cache = HybridCache(RING, num_slots=5, max_length=80, dtype=torch.float64)
    slots = [4, 0, 2]
    for n, sequence in enumerate(tokens.split(lengths)):
        for part in sequence[:-2].split(piece):
            hidden = lm.prefill(part, torch.tensor([0, len(part)]), torch.tensor(slots[n : n + 1]), cache)
        torch.testing.assert_close(hidden[0], wanted[borders[n + 1] - 3], rtol=1e-9, atol=1e-9)
    for back in (2, 1):
        last = torch.stack([sequence[-back] for sequence in tokens.split(lengths)])
        hidden = lm.decode(last, torch.tensor(slots), cache)
        torch.testing.assert_close(hidden, wanted[borders[1:] - back], rtol=1e-9, atol=1e-9)


def test_the_cache_holds_what_the_mixers_ask_for():
    cache = HybridCache(RING, num_slots=3, max_length=10, dtype=torch.bfloat16)
    assert {layer: (tuple(pool.shape), pool.dtype) for layer, pool in cache.states.items()} == {
        layer: ((3, 4, 8, 8), torch.float32) for layer in (0, 2)
    }
    assert {layer: (tuple(pool.shape), pool.dtype) for layer, pool in cache.keys.items()} == {
        layer: ((3, 2, 10, 8), torch.bfloat16) for layer in (1, 3, 4)
    }


# config.json


def test_the_published_configuration():
    config = HybridConfig.from_hf(RING_MINI)
    assert config.family == "bailing_linear"
    assert config.softmax_layers == (4, 9, 14, 19)
    assert (config.head_dim, config.rotary_dim, config.rope_theta) == (128, 64, 1e6)
    assert (config.intermediate_size, config.dense_intermediate_size, config.num_local_experts) == (512, 5120, 256)
    assert (config.first_k_dense_replace, config.num_shared_experts, config.routed_scaling_factor) == (1, 1, 2.5)
    assert (config.n_group, config.topk_group, config.group_norm_size, config.rms_norm_eps) == (8, 4, 4, 1e-6)
    assert HybridConfig.from_hf(config.to_hf("bailing_moe_linear")) == config
    written = config.to_hf("bailing_moe_linear")
    assert {key: written[key] for key in RING_MINI} == RING_MINI


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(46, 26), (49, 2), (128, 64), (96, 96), (8, 0)])
def test_the_rotated_dimensions_survive_being_written_as_a_share(head_dim, rotary_dim):
    config = dataclasses.replace(RING, head_dim=head_dim, rotary_dim=rotary_dim)
    assert HybridConfig.from_hf(config.to_hf("bailing_moe_linear")).rotary_dim == rotary_dim


def test_layers_behind_the_last_whole_group_are_softmax():
    config = HybridConfig.from_hf(RING_MINI | {"num_hidden_layers": 22})
    assert config.softmax_layers == (4, 9, 14, 19, 20, 21)
    assert config.to_hf("bailing_moe_linear")["layer_group_size"] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_silu": True}, "linear_silu to True"),
        ({"use_qk_norm": False}, "use_qk_norm to False"),
        ({"score_function": "softmax"}, "score_function to 'softmax'"),
        ({"kv_lora_rank": 512}, "kv_lora_rank to 512"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers to 1"),
        ({"moe_shared_expert_intermediate_size": 64}, "moe_shared_expert_intermediate_size to 64"),
        ({"rope_scaling": {"type": "yarn"}, "use_bias": True}, r"use_bias to True, rope_scaling to"),
        ({"layer_group_size": 0}, "layer_group_size to 0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_a_file_that_asks_for_other_mathematics_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        HybridConfig.from_hf(RING_MINI | changes)


def test_missing_sizes_are_all_named():
    lacking = ("n_group", "moe_intermediate_size", "layer_group_size")
    with pytest.raises(ModelError, match="lacks n_group, moe_intermediate_size, layer_group_size,"):
        HybridConfig.from_hf({key: value for key, value in RING_MINI.items() if key not in lacking})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "mamba"}, "family is one of minimax, bailing_linear, not 'mamba'"),
        ({"postnorm": False}, "postnorm=False belongs to the family minimax, and this is bailing_linear"),
        ({"attn_type_list": (1, 0, 0, 1, 0)}, "is for no g softmax in every g-th layer"),
        ({"group_norm_size": 3}, "group_norm_size=3 does not divide the 32"),
        ({"first_k_dense_replace": 5}, "first_k_dense_replace=5"),
        ({"dense_intermediate_size": 0}, "dense_intermediate_size must be positive"),
        ({"num_shared_experts": -1}, "num_shared_experts must not be negative"),
        ({"n_group": 3}, "n_group=3 must divide num_local_experts=8"),
        ({"topk_group": 5}, "topk_group=5 exceeds n_group=4"),
        ({"n_group": 8}, "judged by its two best"),
        ({"topk_group": 1}, "hold 2 experts, fewer than num_experts_per_tok=3"),
        ({"n_group": 0, "rotary_dim": 5}, "n_group must be positive, not 0.*rotary_dim=5"),
        ({"group_norm_size": 3, "n_group": 3}, "group_norm_size=3.*n_group=3"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(RING, **changes)


def test_a_field_of_this_family_is_refused_in_another():
    with pytest.raises(ModelError, match="n_group=2 belongs to the family bailing_linear, and this is minimax"):
        HybridConfig(n_group=2)


# weights


@pytest.mark.parametrize("shard_bytes", [10**9, 3000], ids=["one file", "sharded"])
def test_a_folder_gives_the_same_model_back(tmp_path, shard_bytes):
    lm = make_lm().float()
    save_pretrained(lm, tmp_path, max_shard_bytes=shard_bytes, eos_token_id=3)
    loaded = load_pretrained(tmp_path)
    arguments = row([9])
    assert loaded.config == lm.config
    assert torch.equal(loaded(*arguments), lm(*arguments))
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["eos_token_id"]) == ("bailing_moe_linear", 3)


def test_the_published_names_and_shapes(tmp_path):
    save_pretrained(make_lm(), tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    expert = {"gate_proj": (6, 16), "up_proj": (6, 16), "down_proj": (16, 6)}
    wanted = {"model.word_embeddings": (23, 16), "model.norm": (16,), "lm_head": (23, 16)}
    for layer in range(5):
        attention, mlp = f"model.layers.{layer}.attention", f"model.layers.{layer}.mlp"
        is_linear = layer in (0, 2)
        wanted |= {f"model.layers.{layer}.{name}_layernorm": (16,) for name in ("input", "post_attention")}
        wanted |= {f"{attention}.{name}_layernorm": (8,) for name in ("query", "key")}
        wanted |= {f"{attention}.query_key_value": (96 if is_linear else 64, 16), f"{attention}.dense": (16, 32)}
        if is_linear:
            wanted |= {f"{attention}.g_proj": (32, 16), f"{attention}.g_norm": (32,)}
        if layer == 0:
            wanted |= {f"{mlp}.gate_proj": (12, 16), f"{mlp}.up_proj": (12, 16), f"{mlp}.down_proj": (16, 12)}
            continue
        wanted |= {f"{mlp}.experts.{e}.{name}": shape for e in range(8) for name, shape in expert.items()}
        wanted |= {f"{mlp}.shared_experts.{part}_proj": (12, 16) for part in ("gate", "up")}
        wanted |= {f"{mlp}.shared_experts.down_proj": (16, 12), f"{mlp}.gate": (8, 16)}
    wanted = {f"{name}.weight": shape for name, shape in wanted.items()}
    wanted |= {f"model.layers.{layer}.mlp.gate.expert_bias": (8,) for layer in range(1, 5)}
    assert shapes == wanted


def test_every_weight_that_does_not_fit_is_named(tmp_path):
    save_pretrained(make_lm(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.gate.expert_bias"]
    weights["model.layers.0.attention.slope"] = torch.zeros(4)
    weights["model.layers.2.attention.g_norm.weight"] = torch.zeros(8)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_pretrained(tmp_path)
    assert "layers.1.mlp.gate.expert_bias is missing" in str(caught.value)
    assert "layers.0.attention.slope is unknown" in str(caught.value)
    assert "layers.2.attention.g_norm.weight has shape (8,) where (32,) is needed" in str(caught.value)


def test_the_other_spelling_of_attention_and_stacked_experts_are_read():
    lm, other = make_lm(seed=0), make_lm(seed=1)
    stacked = [(name.replace(".block_sparse_moe.", ".mlp."), tensor.detach()) for name, tensor in lm.named_parameters()]
    assert any(".self_attn." in name for name, _ in stacked)
    assert any(name.endswith("experts.gate_up_proj") for name, _ in stacked)
    load_weights(other, iter(stacked))
    arguments = row([9])
    assert torch.equal(other(*arguments), lm(*arguments))
    with pytest.raises(ModelError, match="embed_tokens"):
        check_weights(HybridLM(HybridConfig(vocab_size=23, hidden_size=16)), stream_weights(lm))


def test_another_layout_is_refused(tmp_path):
    with pytest.raises(ModelError, match="A checkpoint layout is one of bailing_moe_linear, not 'minimax_m1'"):
        save_pretrained(make_lm(), tmp_path, "minimax_m1")


def test_a_cast_to_bfloat16_leaves_router_bias_state_and_logits_wide():
    lm = make_lm().float().to(torch.bfloat16)
    gate = lm.model.layers[1].block_sparse_moe.gate
    assert (gate.weight.dtype, gate.expert_bias.dtype) == (torch.float32, torch.float32)
    tokens, positions, borders = row([9, 4])
    wide = make_lm()(tokens, positions, borders)
    hidden = lm(tokens, positions, borders)
    assert hidden.dtype == torch.bfloat16
    # an expert may change where two are nearly equal, so the middle token is compared
    assert float((hidden.double() - wide).detach().abs().amax(1).median()) < 0.1
    cache = HybridCache(RING, 2, 20, dtype=torch.bfloat16)
    assert lm.prefill(tokens, borders, torch.tensor([0, 1]), cache).dtype == torch.bfloat16
    assert lm.decode(tokens[:2], torch.tensor([0, 1]), cache).dtype == torch.bfloat16
