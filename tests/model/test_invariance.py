"""What the result must not depend on: packing, block sizes, pieces, the cache, company in a batch, a process.

In float64, where rounding cannot hide a mistake. The borders of blocks are where kernels for this layer have been wrong
(one much-used server reads the carried state with one decay too few), so lengths crowd around them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from model import HybridCache, HybridConfig, save_pretrained
from model.lightning import block_size, lightning_attention, slopes

torch.set_num_threads(1)
TINY = HybridConfig(
    vocab_size=23, hidden_size=16, head_dim=8, rotary_dim=4, intermediate_size=8, num_local_experts=4,
    initializer_range=0.3,
)  # fmt: skip
BLOCK = block_size(TINY.head_dim)
AT_BORDERS = sorted({1, 2} | {n * size + d for size in (BLOCK, 256) for n in (1, 2) for d in (-1, 0, 1)})
lengths_at_borders = st.sampled_from(AT_BORDERS)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def lm(oracle):
    return oracle.make_lm(TINY).double()


def row(lengths, seed=0):
    tokens = torch.randint(0, TINY.vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(length) for length in lengths])
    return tokens, positions, torch.tensor([0, *lengths]).cumsum(0)


def direction(hidden):
    return torch.arange(1, hidden.numel() + 1, dtype=hidden.dtype).view_as(hidden).sin()


def gradients(lm, hidden):
    """Of some function of the hidden states, by all weights."""
    return torch.autograd.grad((hidden * direction(hidden)).sum(), list(lm.model.parameters()), materialize_grads=True)


def assert_all_close(ours, wanted):
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9 * max(1.0, float(other.detach().abs().max())))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 45) | lengths_at_borders, min_size=1, max_size=5), st.integers(0, 99))
def test_a_packed_row_is_its_sequences_one_by_one(lm, lengths, seed):
    tokens, positions, borders = row(lengths, seed)
    packed = lm(tokens, positions, borders)
    parts = tokens.split(lengths)
    alone = torch.cat([lm(part, torch.arange(len(part)), torch.tensor([0, len(part)])) for part in parts])
    torch.testing.assert_close(packed, alone, **CLOSE)
    assert_all_close(gradients(lm, packed), gradients(lm, alone))


@pytest.mark.parametrize("size", [1, 5, 31, 256, 1000])
def test_the_size_of_a_block_changes_nothing(lm, size, monkeypatch):
    lengths = [257, 3, 64, 1, 40]
    wanted = lm(*row(lengths))
    with monkeypatch.context() as patch:
        patch.setattr("model.hybrid.block_size", lambda head_dim: size)
        hidden = lm(*row(lengths))
    assert not torch.equal(hidden, wanted), "the blocks were the same"
    torch.testing.assert_close(hidden, wanted, **CLOSE)
    assert_all_close(gradients(lm, hidden), gradients(lm, wanted))


@pytest.mark.parametrize("size", [BLOCK, 256])
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_a_prompt_in_any_pieces_and_then_decoding_is_one_forward_pass(lm, size, data):
    """The pieces of two sequences go into the cache side by side; every piece's last hidden state is looked at."""
    lengths = [data.draw(lengths_at_borders) + 3 for _ in range(2)]
    tokens, positions, borders = row(lengths)
    wanted = lm(tokens, positions, borders).detach().split(lengths)
    sequences = tokens.split(lengths)
    cache, slots = HybridCache(TINY, 3, max(lengths), dtype=torch.float64), torch.tensor([2, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.hybrid.block_size", lambda head_dim: size)
        done = [0, 0]
        while unfinished := [n for n in (0, 1) if done[n] < lengths[n] - 3]:
            sizes = [min(data.draw(lengths_at_borders), lengths[n] - 3 - done[n]) for n in unfinished]
            parts = [sequences[n][done[n] : done[n] + size] for n, size in zip(unfinished, sizes, strict=True)]
            hidden = lm.prefill(torch.cat(parts), torch.tensor([0, *sizes]).cumsum(0), slots[unfinished], cache)
            for n, size, last in zip(unfinished, sizes, hidden, strict=True):
                done[n] += size
                torch.testing.assert_close(last, wanted[n][done[n] - 1], **CLOSE)
        for _ in range(3):
            hidden = lm.decode(torch.stack([s[t] for s, t in zip(sequences, done, strict=True)]), slots, cache)
            torch.testing.assert_close(hidden, torch.stack([w[t] for w, t in zip(wanted, done, strict=True)]), **CLOSE)
            done = [t + 1 for t in done]
    assert cache.length_S.tolist() == [lengths[1], 0, lengths[0]]


def assert_same_memory(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **CLOSE, msg=name)


def prefilled(lm, tokens, num_slots=1, slot=0):
    cache = HybridCache(TINY, num_slots, 300, dtype=torch.float64)
    lm.prefill(tokens, torch.tensor([0, len(tokens)]), torch.tensor([slot]), cache)
    return cache


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(0, 99), st.randoms(use_true_random=False))
def test_company_in_a_batch_changes_nothing(lm, lengths, seed, chance):
    """Prefilled together in any slots, then decoded in changing company and order: each is as if it were alone."""
    tokens, _, borders = row(lengths, seed)
    sequences = [part.tolist() for part in tokens.split(lengths)]
    slots = torch.tensor(chance.sample(range(8), len(lengths)))
    cache = HybridCache(TINY, 8, 300, dtype=torch.float64)
    lm.prefill(tokens, borders, slots, cache)
    for turn in range(4):
        present = chance.sample(range(len(lengths)), chance.randint(1, len(lengths)))
        new = [(7 * n + turn) % TINY.vocab_size for n in present]
        lm.decode(torch.tensor(new), slots[present], cache)
        for n, token in zip(present, new, strict=True):
            sequences[n].append(token)
    for slot, sequence in zip(slots.tolist(), sequences, strict=True):
        alone = prefilled(lm, torch.tensor(sequence))
        assert_same_memory(cache.snapshot(slot), alone.snapshot(0))


@settings(max_examples=10, deadline=None)
@given(lengths_at_borders.filter(lambda length: length < 290), st.integers(0, 99))
def test_a_forked_group_is_a_prefill_for_each_member(lm, length, seed):
    prompt = row([length], seed)[0]
    cache = prefilled(lm, prompt, num_slots=6, slot=2)
    cache.fork(2, [0, 5])
    for tokens in ([7, 8, 7], [1, 2, 3]):
        hidden = lm.decode(torch.tensor(tokens), torch.tensor([0, 5, 2]), cache)
    for n, (slot, new) in enumerate(zip([0, 5, 2], [[7, 1], [8, 2], [7, 3]], strict=True)):
        alone = prefilled(lm, torch.cat([prompt, torch.tensor(new[:1])]))
        torch.testing.assert_close(lm.decode(torch.tensor(new[1:]), torch.tensor([0]), alone)[0], hidden[n], **CLOSE)
        assert_same_memory(cache.snapshot(slot), alone.snapshot(0))
    assert cache.length_S.tolist() == [length + 2, 0, length + 2, 0, 0, length + 2]


ELSEWHERE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from model import HybridCache, load_pretrained

torch.set_num_threads(1)
for name in ("float32", "bfloat16"):
    folder, dtype = Path(sys.argv[1]) / name, getattr(torch, name)
    lm = load_pretrained(folder, dtype=dtype)
    cache = HybridCache(lm.config, 3, 80, dtype=dtype)
    cache.restore(1, load_file(folder / "paused.safetensors"))
    token, tokens = torch.tensor([5]), []
    for _ in range(20):
        token = lm.logits(lm.decode(token, torch.tensor([1]), cache)).argmax(-1)
        tokens.append(int(token))
    print(tokens)
"""


def test_a_snapshot_goes_on_in_another_process_with_the_same_tokens(oracle, tmp_path):
    expected = []
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        lm = oracle.make_lm(TINY).to(dtype)
        cache, slot = HybridCache(TINY, 2, 80, dtype=dtype), torch.tensor([0])
        lm.prefill(row([40])[0], torch.tensor([0, 40]), slot, cache)
        save_pretrained(lm, tmp_path / name)
        save_file(cache.snapshot(0), tmp_path / name / "paused.safetensors")
        token, tokens = torch.tensor([5]), []
        for _ in range(20):
            token = lm.logits(lm.decode(token, slot, cache)).argmax(-1)
            tokens.append(int(token))
        assert len(set(tokens)) > 3, "a model that repeats itself would agree with anybody"
        expected.append(str(tokens))
    assert run_elsewhere(ELSEWHERE, tmp_path).splitlines() == expected


def run_elsewhere(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 70) | lengths_at_borders, min_size=1, max_size=4).filter(any), st.data())
def test_a_state_carries_gradients_over_any_split(lengths, data):
    """Cut anywhere and the state handed on: outputs, final states and all gradients are those of the whole."""
    cuts = [data.draw(st.integers(0, length)) for length in lengths]
    slope = slopes(2, 0, 3).double()
    borders = torch.tensor([0, *lengths]).cumsum(0)
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(sum(lengths), 2, 8)] * 3 + [(len(lengths), 2, 8, 8)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def outcome(out, final):
        loss = (out * direction(out)).sum() + (final * direction(final)).sum()
        return [out, final, *torch.autograd.grad(loss, inputs)]

    def in_two(q, k, v, state):
        is_first = torch.cat([torch.arange(length) < cut for length, cut in zip(lengths, cuts, strict=True)])
        out = torch.zeros_like(q)
        for chosen in (is_first, ~is_first):
            sizes = [int(part.sum()) for part in chosen.split(lengths)]
            if not sum(sizes):
                continue
            piece = (x[chosen] for x in (q, k, v))
            part, state = lightning_attention(*piece, slope, torch.tensor([0, *sizes]).cumsum(0), state)
            out = out.index_put((chosen.nonzero().squeeze(1),), part)
        return out, state

    split = outcome(*in_two(*inputs))
    assert_all_close(split, outcome(*lightning_attention(*inputs[:3], slope, borders, inputs[3])))
