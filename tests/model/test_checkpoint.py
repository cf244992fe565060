"""Model folders: both layouts, shards, transformers as reader and writer, and damaged files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import HybridConfig, HybridLM, ModelError, load_pretrained, save_pretrained
from model.checkpoint import load_weights, stream_weights

torch.set_num_threads(1)
TINY = HybridConfig(
    vocab_size=11,
    hidden_size=16,
    num_hidden_layers=2,
    attn_type_list=(0, 1),
    head_dim=4,
    rotary_dim=4,
    intermediate_size=8,
    num_local_experts=4,
    initializer_range=0.3,
)
TOKENS, POSITIONS, BORDERS = torch.arange(9), torch.arange(9), torch.tensor([0, 9])


@pytest.fixture
def lm():
    torch.manual_seed(0)
    return HybridLM(TINY)


def run(lm):
    return lm.logits(lm(TOKENS, POSITIONS, BORDERS)).detach()


@pytest.mark.parametrize("layout", ["minimax_m1", "minimax"])
@pytest.mark.parametrize("shard_bytes", [10**9, 3000], ids=["one file", "sharded"])
def test_a_folder_gives_the_same_model_back(lm, tmp_path, layout, shard_bytes):
    save_pretrained(lm, tmp_path, layout, max_shard_bytes=shard_bytes)
    loaded = load_pretrained(tmp_path)
    assert torch.equal(run(loaded), run(lm))
    scales = ("linear_attention", "full_attention", "mlp")
    assert [loaded.config.residual_scales(kind) for kind in scales] == [
        lm.config.residual_scales(kind) for kind in scales
    ]
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if shard_bytes == 3000:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert len(files) > 1
        assert set(index["weight_map"].values()) == set(files)
        assert set(index["weight_map"]) == {name for name, _ in stream_weights(lm)}
    else:
        assert files == ["model.safetensors"]


def test_the_original_names_and_shapes(lm, tmp_path):
    save_pretrained(lm, tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (11, 16)
    assert shapes["model.layers.0.self_attn.qkv_proj.weight"] == (48, 16)
    assert shapes["model.layers.0.self_attn.norm.weight"] == (16,)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (8, 16)
    assert shapes["model.layers.1.block_sparse_moe.gate.weight"] == (4, 16)
    assert shapes["model.layers.1.block_sparse_moe.experts.3.w1.weight"] == (8, 16)
    assert shapes["model.layers.1.block_sparse_moe.experts.3.w2.weight"] == (16, 8)
    assert len(shapes) == 3 + 2 * (2 + 1 + 4 * 3) + 4 + 4


def test_transformers_reads_our_folder(lm, tmp_path):
    from transformers import MiniMaxForCausalLM

    save_pretrained(lm, tmp_path, "minimax")
    native = MiniMaxForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(native(TOKENS[None]).logits[0].detach(), run(lm), rtol=1e-4, atol=3e-5)


def test_transformers_stops_at_the_end_token_of_our_folder(lm, tmp_path):
    from transformers import MiniMaxForCausalLM

    def generate():
        native = MiniMaxForCausalLM.from_pretrained(tmp_path)
        assert native.config.pad_token_id == native.generation_config.pad_token_id == 10
        return native.generate(TOKENS[None, :3], max_new_tokens=12, do_sample=False)[0, 3:].tolist()

    save_pretrained(lm, tmp_path, "minimax", pad_token_id=10)
    endless = generate()
    assert len(endless) == 12
    eos = endless[2]
    save_pretrained(lm, tmp_path, "minimax", bos_token_id=9, eos_token_id=eos, pad_token_id=10)
    assert generate() == endless[: endless.index(eos) + 1]
    wanted = {"bos_token_id": 9, "eos_token_id": eos, "pad_token_id": 10}
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text()).items() >= wanted.items()
    assert torch.equal(run(load_pretrained(tmp_path)), run(lm))


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_id_that_the_model_does_not_have_is_refused(lm, tmp_path, token):
    with pytest.raises(ModelError, match=f"eos_token_id must be one of the model's 11 token ids, not {token}"):
        save_pretrained(lm, tmp_path, eos_token_id=token)
    assert list(tmp_path.iterdir()) == []


def test_a_model_takes_the_place_of_another_and_leaves_other_files(lm, tmp_path):
    save_pretrained(lm, tmp_path, max_shard_bytes=3000)
    (tmp_path / "tokenizer.json").write_text("{}")
    torch.manual_seed(1)
    other = HybridLM(TINY)
    save_pretrained(other, tmp_path)
    assert torch.equal(run(load_pretrained(tmp_path)), run(other))
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_model_that_could_not_be_written_leaves_the_old_one(lm, tmp_path):
    save_pretrained(lm, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    sparse = HybridLM(TINY)
    sparse.lm_head.weight = torch.nn.Parameter(sparse.lm_head.weight.detach().to_sparse())
    with pytest.raises((ValueError, NotImplementedError, RuntimeError)):
        save_pretrained(sparse, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_writer_that_dies_between_two_files_leaves_nothing_to_read(lm, tmp_path, monkeypatch):
    save_pretrained(lm, tmp_path)

    def die(path, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as machine, pytest.raises(KeyboardInterrupt):
        machine.setattr(Path, "replace", die)
        save_pretrained(lm, tmp_path)
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        load_pretrained(tmp_path)
    save_pretrained(lm, tmp_path)
    assert torch.equal(run(load_pretrained(tmp_path)), run(lm))


def test_we_read_what_transformers_writes_and_what_it_holds_in_memory(tmp_path):
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    torch.manual_seed(1)
    native = MiniMaxForCausalLM(MiniMaxConfig(**TINY.to_hf("minimax")))
    native.save_pretrained(tmp_path)
    wanted = native(TOKENS[None]).logits[0].detach()
    torch.testing.assert_close(run(load_pretrained(tmp_path)), wanted, rtol=1e-4, atol=3e-5)
    stacked = {name: tensor.clone() for name, tensor in native.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in stacked
    save_file(stacked, tmp_path / "model.safetensors")
    torch.testing.assert_close(run(load_pretrained(tmp_path)), wanted, rtol=1e-4, atol=3e-5)


def test_reading_does_not_move_the_random_numbers(lm, tmp_path):
    save_pretrained(lm, tmp_path)
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    load_pretrained(tmp_path)
    assert torch.equal(torch.rand(1), wanted)


def test_a_partial_rotary_export_for_transformers_warns(tmp_path):
    lm = HybridLM(dataclasses.replace(TINY, rotary_dim=2))
    with pytest.warns(UserWarning, match="ignores rotary_dim=2"):
        save_pretrained(lm, tmp_path, "minimax")
    assert load_pretrained(tmp_path).config.rotary_dim == 2


def test_every_fault_of_a_stream_is_listed_at_once(lm):
    weights = dict(stream_weights(lm))
    del weights["model.norm.weight"]
    weights["lm_head.weight"] = torch.zeros(2, 3)
    weights["model.extra.weight"] = torch.zeros(1)
    with pytest.raises(ModelError) as error:
        load_weights(lm, iter(weights.items()))
    for part in ("model.norm.weight is missing", "lm_head.weight has shape (2, 3)", "model.extra.weight is unknown"):
        assert part in str(error.value)
    assert "lm_head.weight is missing" not in str(error.value)


def test_a_folder_without_a_readable_configuration_is_refused(lm, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json.*does not exist"):
        load_pretrained(tmp_path)
    save_pretrained(lm, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="JSON object"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_weights_that_are_not_finite_are_refused_with_their_names(lm, tmp_path, bad):
    with torch.no_grad():
        lm.lm_head.weight[3, 2] = bad
        lm.model.layers[1].block_sparse_moe.experts.down_proj[2, 0, 0] = bad
    save_pretrained(lm, tmp_path)
    with pytest.raises(ModelError) as error:
        load_pretrained(tmp_path)
    faults = str(error.value).split(", but ")[1].rstrip(".").split("; ")
    assert sorted(faults) == [
        f"{name} has numbers that are not finite"
        for name in ("lm_head.weight", "model.layers.1.block_sparse_moe.experts.2.w2.weight")
    ]


def test_weights_that_overflow_in_the_dtype_asked_for_are_refused(lm, tmp_path):
    with torch.no_grad():
        lm.model.norm.weight[0] = 1e5
    save_pretrained(lm, tmp_path)
    load_pretrained(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match=r"model\.norm\.weight has numbers that are not finite"):
        load_pretrained(tmp_path, dtype=torch.float16)


def test_bfloat16_files_with_float32_routers_come_back_bit_by_bit(lm, tmp_path):
    lm = lm.to(torch.bfloat16)
    save_pretrained(lm, tmp_path, max_shard_bytes=2000)
    stored = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    wanted = dict(stream_weights(lm))
    assert {tensor.dtype for name, tensor in stored.items() if name.endswith("moe.gate.weight")} == {torch.float32}
    for loaded in (stored, dict(stream_weights(load_pretrained(tmp_path, dtype=torch.bfloat16)))):
        assert loaded.keys() == wanted.keys()
        assert all(loaded[name].dtype == wanted[name].dtype for name in wanted)
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


def test_an_unknown_layout_is_refused(lm, tmp_path):
    with pytest.raises(ModelError, match="minimax_m1, minimax, not 'gpt'"):
        save_pretrained(lm, tmp_path / "out", "gpt")
    assert not (tmp_path / "out").exists()
