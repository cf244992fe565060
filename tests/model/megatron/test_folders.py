"""States and model folders: written under one layout, read under others, by one process and by transformers.

And what is too small for ranks of its own: refusals, bfloat16, gathered logits.
"""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model import ModelError, load_pretrained, save_pretrained
from model.checkpoint import stream_weights
from model.layout import Layout
from tests.model.megatron.learning import ADAM, CONFIG, LR, MAX_NORM, TEMPERATURE, join, learn, make_lm, make_rows

WRITTEN = Layout(tensor=2)
READ = {
    "tensor": Layout(tensor=2),
    "pipeline": Layout(pipeline=2),
    "interleaved": Layout(pipeline=2, virtual_pipeline=2),
    "expert": Layout(expert=2),
    "context": Layout(context=2),
}
NARROW = dataclasses.replace(CONFIG, param_dtype="bfloat16")


class Ranks:
    """What one rank holds under a layout, from its making to its end."""

    def __init__(self, layout, config=CONFIG):
        from model.megatron import ParallelWeights, build_stages, initialise_ranks, stage_config

        self.place = initialise_ranks(config, layout)
        self.stages = build_stages(stage_config(config, layout))
        self.weights = ParallelWeights(self.stages)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        from model.megatron import forget_ranks

        forget_ranks()

    def optimizer(self):
        from model.megatron import StageOptimizer

        return StageOptimizer(self.stages, **ADAM)

    def step(self, optimizer):
        learn(self.stages, self.place)
        optimizer.clip(MAX_NORM)
        optimizer.step(LR)
        return dict(self.weights.stream())


def states(folder):
    """Two updates, a state between them; the second once more from that state under each layout."""
    from model.megatron import load_checkpoint, save_checkpoint

    state = folder / "state"
    state.mkdir(exist_ok=True)
    with Ranks(WRITTEN) as ranks:
        ranks.weights.load(stream_weights(make_lm()))
        optimizer = ranks.optimizer()
        between = ranks.step(optimizer)
        save_checkpoint(ranks.stages, optimizer, state)
        found = {"between": between, "written": ranks.step(optimizer)}
    for name, layout in READ.items():
        with Ranks(layout) as ranks:
            optimizer = ranks.optimizer()
            load_checkpoint(ranks.stages, optimizer, state)
            found[name] = ranks.step(optimizer)
    return found


def folders(folder):
    """A folder written by one process, read and written by ranks; and logits under the weights read."""
    from model.megatron import Learnt, TokenRow, export_folder, forward_backward, load_folder

    row = make_rows()[0]
    logits = []

    def look(learnt: Learnt):
        logits.append(learnt.head(learnt.hidden_aD))
        return learnt.hidden_aD.sum(), None

    with Ranks(Layout(tensor=2)) as ranks:
        load_folder(ranks.weights, folder / "given")
        places = torch.arange(1, len(row.tokens_T))
        forward_backward(ranks.stages, [TokenRow(row.tokens_T, row.positions_T, row.cu_seqlens, places)], look)
    with Ranks(Layout(pipeline=2)) as ranks:
        load_folder(ranks.weights, folder / "given")
        export_folder(ranks.weights, folder / "exported", "minimax", max_shard_bytes=20_000)
        only_first = list(ranks.weights.stream(only_first_rank=True, bucket_bytes=3000))
    return {"logits": logits[0], "only_first": only_first}


def narrow(folder):
    """The same in bfloat16, with what was learnt from in the first update."""
    from model.megatron import load_checkpoint, save_checkpoint

    state = folder / "narrow-state"
    state.mkdir(exist_ok=True)
    with Ranks(WRITTEN, NARROW) as ranks:
        ranks.weights.load(stream_weights(make_lm(NARROW)))
        results = learn(ranks.stages, ranks.place)
        optimizer = ranks.optimizer()
        between = ranks.step(optimizer)
        save_checkpoint(ranks.stages, optimizer, state)
        found = {"results": results, "between": between, "written": ranks.step(optimizer)}
    for name in ("tensor", "pipeline"):
        with Ranks(READ[name], NARROW) as ranks:
            optimizer = ranks.optimizer()
            load_checkpoint(ranks.stages, optimizer, state)
            found[f"{name}-read"] = {weight: tensor.clone() for weight, tensor in ranks.weights.stream()}
            found[name] = ranks.step(optimizer)
    with Ranks(Layout(expert=2), NARROW) as ranks:
        optimizer = ranks.optimizer()
        ranks.weights.load(stream_weights(make_lm()), optimizer)
        owned = [p for part in optimizer.megatron.chained_optimizers for p in part.get_parameters()]
        squares = sum(p.detach().double().square().sum() for p in owned)
        dist.all_reduce(squares)
        learn(ranks.stages, ranks.place)
        optimizer.clip(MAX_NORM)
        optimizer.step(0.0)  # writes the float32 weights into the others
        found |= {"squares": float(squares), "unmoved": dict(ranks.weights.stream())}
    return found


def bits(folder):
    """What goes between stages comes back bit for bit, both ways, though halves of it are no bfloat16 numbers."""
    from model.megatron.routing import pack, unpack

    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 6, generator=rng).bfloat16().requires_grad_()
    totals = torch.randn(3, 2, 4, generator=rng).mul(1e5).requires_grad_()
    hidden_back, totals_back = unpack(pack(hidden, totals), 3, 4)
    grads = torch.randn(5, 6, generator=rng).bfloat16(), torch.randn(3, 2, 4, generator=rng)
    got = torch.autograd.grad((hidden_back, totals_back), (hidden, totals), grads)
    return all(map(torch.equal, (hidden_back, totals_back, *got), (hidden, totals, *grads)))


def refusals(folder):
    from model.megatron import initialise_ranks, stage_config

    ring = dataclasses.replace(CONFIG, family="bailing_linear", num_hidden_layers=4, attn_type_list=(0, 0, 0, 1))
    attempts = {
        "family": lambda: stage_config(ring, Layout()),
        "layout": lambda: initialise_ranks(CONFIG, Layout(tensor=3, expert=5)),
    }
    said = {}
    for name, attempt in attempts.items():
        with pytest.raises(ModelError) as caught:
            attempt()
        said[name] = str(caught.value)
    with Ranks(Layout(tensor=2)) as ranks, pytest.raises(ModelError) as caught:
        ranks.weights.load(iter([("lm_head.weight", torch.zeros(3, 16)), ("nonsense", torch.zeros(1))]))
    said["weights"] = str(caught.value)
    return said


def work(rank, folder):
    join(rank, 2, folder)
    found = {job.__name__: job(folder) for job in (states, folders, narrow, bits, refusals)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("ranks"))
    save_pretrained(make_lm(), folder / "given")
    mp.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", READ)
def test_the_next_update_is_the_same_under_any_layout(found, name):
    for rank in found:
        wanted, between = rank["states"]["written"], rank["states"]["between"]
        for weight, tensor in rank["states"][name].items():
            assert not torch.equal(wanted[weight], between[weight])
            error = (tensor - wanted[weight]).abs().max() / wanted[weight].abs().max()
            assert error < 1e-6, (weight, error)


def test_gathered_logits_are_those_of_one_process(found):
    lm, row = make_lm(), make_rows()[0]
    wanted = lm.logits(lm(row.tokens_T, row.positions_T, row.cu_seqlens))[:-1].detach()
    for rank in found:
        torch.testing.assert_close(rank["folders"]["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_what_was_exported_opens_here_and_in_transformers(folder):
    from transformers import MiniMaxForCausalLM

    wanted = dict(stream_weights(make_lm()))
    assert len(list((folder / "exported").glob("*.safetensors"))) > 1
    assert all(
        torch.equal(weight, wanted[name]) for name, weight in stream_weights(load_pretrained(folder / "exported"))
    )
    model = MiniMaxForCausalLM.from_pretrained(folder / "exported", dtype=torch.float32)
    theirs = dict(model.named_parameters())
    for layer in range(CONFIG.num_hidden_layers):
        stack = theirs[f"model.layers.{layer}.mlp.experts.down_proj"]
        ours = [wanted[f"model.layers.{layer}.block_sparse_moe.experts.{e}.w2.weight"] for e in range(4)]
        assert torch.equal(stack, torch.stack(ours))
    assert torch.equal(
        theirs["model.layers.2.self_attn.qkv_proj.weight"], wanted["model.layers.2.self_attn.qkv_proj.weight"]
    )
    assert torch.equal(theirs["lm_head.weight"], wanted["lm_head.weight"])


def test_rank_0_alone_gets_whole_weights_if_it_alone_wants_them(found):
    first, second = (dict(rank["folders"]["only_first"]) for rank in found)
    wanted = dict(stream_weights(make_lm()))
    assert list(first) == list(wanted) and second == {}
    assert all(torch.equal(first[name], weight) for name, weight in wanted.items())


def test_bfloat16_computes_nearly_the_same(found):
    lm, rows = make_lm(NARROW), make_rows()
    for index, (_, places, logp, _) in found[1]["narrow"]["results"].items():
        row = rows[index]
        with torch.no_grad():
            hidden = lm(row.tokens_T, row.positions_T, row.cu_seqlens)[places - 1]
            wanted = lm.logp(hidden, row.tokens_T[places], TEMPERATURE)
        assert float((logp - wanted).norm() / wanted.norm()) < 0.02


def test_bfloat16_goes_on_from_float32_weights_and_moments(found):
    """Bit for bit under the same layout; under another up to the rounding of its activations."""
    states = found[0]["narrow"]
    for name, weight in states["written"].items():
        assert weight.dtype == (torch.float32 if name.endswith("moe.gate.weight") else torch.bfloat16)
        assert torch.equal(states["tensor-read"][name], states["between"][name])
        assert torch.equal(states["pipeline-read"][name], states["between"][name])
        assert torch.equal(states["tensor"][name], weight)
        error = (states["pipeline"][name].float() - weight.float()).norm() / weight.float().norm()
        assert float(error) < 0.01, name


def test_float32_weights_beside_bfloat16_ones_are_loaded_unrounded(found):
    exact, states = dict(stream_weights(make_lm())), found[0]["narrow"]
    squares = sum(float(weight.double().square().sum()) for weight in exact.values())
    assert states["squares"] == pytest.approx(squares, rel=1e-12)
    for name, weight in states["unmoved"].items():
        assert torch.equal(weight, exact[name].to(weight.dtype)), name


def test_routing_travels_bit_for_bit(found):
    assert all(rank["bits"] for rank in found)


@pytest.mark.parametrize(
    "name, text",
    [
        ("family", "not of bailing_linear"),
        ("layout", "cannot work on 2 ranks: .*Nearest layouts that work on 2 ranks: "),
        ("weights", r"lm_head.weight has shape \(3, 16\).*nonsense is unknown.*is missing"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(found, name, text):
    for rank in found:
        assert re.search(text, rank["refusals"][name])
