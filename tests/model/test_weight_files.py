"""Damaged model folders: every fault of files and tensors appears in one error, before any weight is read."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import HybridConfig, HybridLM, ModelError, load_pretrained, save_pretrained
from model.checkpoint import stream_weights
from model.weight_files import write_tensors

TINY = HybridConfig(
    vocab_size=11, hidden_size=16, num_hidden_layers=2, attn_type_list=(0, 1), head_dim=4, rotary_dim=4,
    intermediate_size=8, num_local_experts=4,
)  # fmt: skip
INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    save_pretrained(HybridLM(TINY), tmp_path, max_shard_bytes=4000)
    return tmp_path


@pytest.fixture
def one_file(tmp_path):
    save_pretrained(HybridLM(TINY), tmp_path)
    return tmp_path


def faults_of(folder):
    with pytest.raises(ModelError) as error:
        load_pretrained(folder)
    message = str(error.value)
    assert message.startswith(f"The weights in {folder} must be those of the configured model, but ")
    return sorted(message.split(", but ", 1)[1].removesuffix(".").split("; "))


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def names_in(path):
    return sorted(load_file(path))


def last_in(path):
    """The tensor whose numbers end the file."""
    header = {}
    with_header(path, header.update)
    header.pop("__metadata__")
    return max(header, key=lambda name: header[name]["data_offsets"])


def rewritten(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def with_header(path, change):
    """Change the header and leave the numbers."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def with_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_all_faults_of_files_and_tensors_are_listed_together(folder):
    first, second, third, fourth, fifth, *_ = shards(folder)
    first.unlink()
    second.write_bytes(b"no header")
    content, last = third.read_bytes(), last_in(third)
    third.write_bytes(content[:-4])
    lost, misshapen = names_in(fourth)[0], names_in(fifth)[0]

    def harm(tensors):
        tensors.pop(lost)
        tensors["model.layers.9.extra"] = torch.zeros(2)

    rewritten(fourth, harm)
    rewritten(fifth, lambda tensors: tensors.update({misshapen: torch.zeros(3, 7)}))
    shape = tuple(dict(stream_weights(HybridLM(TINY)))[misshapen].shape)
    with_index(folder, lambda weight_map: weight_map.update({"model.ghost": fifth.name}))
    assert faults_of(folder) == sorted(
        [
            f"{first.name} does not exist",
            f"{second.name} is damaged: its first bytes are no safetensors header",
            f"{third.name} is cut off after {len(content) - 4} of {len(content)} bytes, so {last} cannot be read",
            f"the index places {lost} in {fourth.name}, but it is in no file",
            f"model.layers.9.extra is in {fourth.name}, but the index does not name it",
            "model.layers.9.extra is unknown",
            f"{misshapen} has shape (3, 7) where {shape} is needed",
            f"the index places model.ghost in {fifth.name}, but it is in no file",
        ]
    )


def test_an_index_that_places_a_tensor_in_another_file(folder):
    first, second, *_ = shards(folder)
    moved = names_in(first)[0]
    with_index(folder, lambda weight_map: weight_map.update({moved: second.name}))
    assert faults_of(folder) == [f"the index places {moved} in {second.name}, but it is in {first.name}"]


def test_a_tensor_that_is_in_two_files(folder):
    first, second, *_ = shards(folder)
    twice = names_in(first)[0]
    rewritten(second, lambda tensors: tensors.update({twice: torch.zeros(1)}))
    assert faults_of(folder) == [f"{twice} is in {second.name} too, which is not where the index places it"]


def test_an_index_without_a_map_or_with_files_elsewhere(folder):
    with_index(folder, lambda weight_map: weight_map.update({"lm_head.weight": "../other.safetensors"}))
    with pytest.raises(ModelError, match=r"in a file beside it, not in \.\./other\.safetensors"):
        load_pretrained(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(ModelError, match="must have a weight_map"):
        load_pretrained(folder)


def test_a_missing_file_is_one_fault_and_not_one_for_each_tensor(one_file):
    (one_file / ONE_FILE).unlink()
    assert faults_of(one_file) == [f"{ONE_FILE} does not exist"]


@pytest.mark.parametrize("length", [0, 5, 8, 60])
def test_a_file_cut_off_in_its_header(one_file, length):
    path = one_file / ONE_FILE
    path.write_bytes(path.read_bytes()[:length])
    assert faults_of(one_file) == [f"{ONE_FILE} is damaged: its first bytes are no safetensors header"]


HEADERS = {
    "no object": lambda header: header.update({"model.norm.weight": 3}),
    "no dtype": lambda header: header["model.norm.weight"].pop("dtype"),
    "a negative place": lambda header: header["model.norm.weight"].update(data_offsets=[-8, 0]),
    "one place": lambda header: header["model.norm.weight"].update(data_offsets=[0]),
    "a fraction of a row": lambda header: header["model.norm.weight"].update(shape=[0.5]),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_none(one_file, change):
    with_header(one_file / ONE_FILE, change)
    assert faults_of(one_file) == [f"{ONE_FILE} is damaged: its first bytes are no safetensors header"]


def test_dtypes_sizes_and_places_that_cannot_be(one_file):
    def change(header):
        header["lm_head.weight"]["dtype"] = "F8_E4M3"
        header["model.norm.weight"]["shape"] = [15]
        header["model.embed_tokens.weight"]["data_offsets"] = [4, 4 + 11 * 16 * 4]

    with_header(one_file / ONE_FILE, change)
    faults = faults_of(one_file)
    assert f"lm_head.weight in {ONE_FILE} has dtype F8_E4M3 where one of F64, F32, F16, BF16 is needed" in faults
    assert f"model.norm.weight in {ONE_FILE} has 64 bytes where shape (15,) needs 60" in faults
    assert f"model.embed_tokens.weight in {ONE_FILE} does not begin where the tensor before it ends" in faults


def test_bytes_behind_the_end(one_file):
    path = one_file / ONE_FILE
    path.write_bytes(path.read_bytes() + b"more")
    assert faults_of(one_file) == [f"{ONE_FILE} has 4 bytes behind its last tensor"]


def test_a_cut_off_stack_of_experts_is_one_fault(tmp_path):
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    save_pretrained(HybridLM(TINY), tmp_path, "minimax")
    state = MiniMaxForCausalLM(MiniMaxConfig(**TINY.to_hf("minimax"))).state_dict()
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    rest = {name: tensor.clone() for name, tensor in state.items() if name != stack}
    write_tensors(tmp_path / ONE_FILE, rest | {stack: state[stack]})  # last
    path = tmp_path / ONE_FILE
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    assert faults_of(tmp_path) == [
        f"{ONE_FILE} is cut off after {size - 10} of {size} bytes, so {stack} cannot be read"
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_library_reads_what_is_written_here(tmp_path, dtype):
    tensors = {
        "odd": torch.randn(3).to(dtype),
        "strided": torch.randn(4, 6)[:, ::2].T.to(dtype),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "a number": torch.tensor(2.5).to(dtype),
        "none": torch.zeros(0, 3, dtype=dtype),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)


def test_every_tensor_begins_where_its_dtype_can_be_mapped(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(1), "c": torch.ones(1).double()})
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    sizes = {"BF16": 2, "F32": 4, "F64": 8}
    places = [(start + what["data_offsets"][0], sizes[what["dtype"]]) for what in list(header.values())[1:]]
    assert len(places) == 3 and all(place % size == 0 for place, size in places)
