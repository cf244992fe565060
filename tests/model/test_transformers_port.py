"""Where transformers' own `minimax` (5.23.0) computes something else, and that docs/transformers.md says how much.

Each row of the page's table has its measurement here: the largest difference of two logits, which have a root mean
square of 5, from the same model run in a way that is right. A row that no longer holds fails, so the page is true of
the transformers that is installed.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch

from model import HybridCache, HybridConfig, save_pretrained

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
SEVEN_AND_ONE = HybridConfig(
    vocab_size=50, num_hidden_layers=8, attn_type_list=(0,) * 7 + (1,), rotary_dim=16, initializer_range=0.07
)
LENGTH, PROMPT = 60, 40
ROUNDING = 2e-5


def largest(one, other):
    return float((one - other).abs().max())


class Port:
    """One model in both codes, and the ways to run transformers'."""

    def __init__(self, oracle, **changes):
        self.oracle = oracle
        self.lm = oracle.make_lm(dataclasses.replace(SEVEN_AND_ONE, **changes))
        self.native = oracle.make_native(self.lm).model
        self.tokens = oracle.random_tokens(self.lm.config, LENGTH, seed=1)

    def ours(self, lm=None):
        lm = lm or self.lm
        return lm.logits(lm(self.tokens, torch.arange(LENGTH), torch.tensor([0, LENGTH])))

    def full(self, **options):
        return self.native(self.tokens[None], **options).logits[0]

    def in_pieces(self, sizes, *, repaired=False, with_positions=False, native=None):
        """Logits of all tokens but the first piece's, with a cache between the pieces."""
        cache, outs, first = self.cache(repaired), [], 0
        for size in sizes:
            positions = {"position_ids": torch.arange(first, first + size)[None]} if with_positions else {}
            tokens = self.tokens[None, first : first + size]
            outs.append((native or self.native)(tokens, past_key_values=cache, use_cache=True, **positions).logits[0])
            first += size
        return torch.cat(outs)[sizes[0] :].float()

    def cache(self, repaired=False):
        from transformers.models.minimax.modeling_minimax import MiniMaxCache

        return self.oracle.fixed_cache(self.lm.config) if repaired else MiniMaxCache()

    def generated(self, padding, repaired=False):
        """Logits of 8 greedy tokens after 20, which stand behind `padding` and beside a longer row if there is any."""
        rows = torch.stack([torch.cat([torch.zeros(padding, dtype=torch.int64), self.tokens[:20]])] * 2)
        mask = torch.ones_like(rows)
        mask[0, :padding] = 0
        out = self.native.generate(
            rows, attention_mask=mask, past_key_values=self.cache(repaired), max_new_tokens=8, do_sample=False,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        return torch.stack(out.logits, 1)[0]


def ignored_rotary_dim(oracle):
    port = Port(oracle, rotary_dim=8)
    unrepaired = oracle.make_native(port.lm, repair_rotary=False).model(port.tokens[None]).logits[0]
    return largest(unrepaired, port.ours()), largest(port.full(), port.ours())


def decoding_without_positions(oracle):
    port, sizes = Port(oracle), [PROMPT, *[1] * (LENGTH - PROMPT)]
    wanted = port.full()[PROMPT:]
    assert largest(port.in_pieces(sizes, with_positions=True), wanted) < ROUNDING
    return largest(port.in_pieces(sizes), wanted), largest(port.in_pieces(sizes, repaired=True), wanted)


def a_prompt_in_two_pieces(oracle):
    port, sizes = Port(oracle), [PROMPT, LENGTH - PROMPT]
    wanted = port.full()[PROMPT:]
    unrepaired = port.in_pieces(sizes, with_positions=True)
    return largest(unrepaired, wanted), largest(port.in_pieces(sizes, repaired=True), wanted)


def a_left_padded_batch(oracle):
    port = Port(oracle)
    alone, padded = port.generated(padding=0), port.generated(padding=10)
    assert largest(padded[0], alone[0]) < ROUNDING, "the first token is right"
    return largest(padded[1:], alone[1:]), largest(port.generated(padding=10, repaired=True), alone)


def a_state_after_right_padding(oracle):
    """As 1 - the smallest ratio of a head's norm to the right one; ours has no padding that could decay anything."""
    port = Port(oracle)
    padded, alone = port.cache(), port.cache()
    tokens, mask = port.tokens[None, :30].clone(), torch.ones(1, 30, dtype=torch.int64)
    tokens[:, 20:], mask[:, 20:] = 0, 0
    port.native(tokens, attention_mask=mask, past_key_values=padded, use_cache=True)
    port.native(tokens[:, :20], past_key_values=alone, use_cache=True)
    decayed, right = (cache.linear_cache[0][0].norm(dim=(1, 2)) for cache in (padded, alone))
    cache = HybridCache(port.lm.config, 2, 40)
    port.lm.prefill(port.tokens[:50], torch.tensor([0, 30, 50]), torch.tensor([1, 0]), cache)
    beside = HybridCache(port.lm.config, 1, 40)
    port.lm.prefill(port.tokens[30:50], torch.tensor([0, 20]), torch.tensor([0]), beside)
    return float(1 - (decayed / right).min()), largest(cache.states[0][0], beside.states[0][0])


def packed_rows(oracle):
    port, first = Port(oracle), PROMPT
    positions = torch.cat([torch.arange(first), torch.arange(LENGTH - first)])
    packed = port.full(position_ids=positions[None])[first:]
    alone = port.native(port.tokens[None, first:]).logits[0]
    ours = port.lm.logits(port.lm(port.tokens, positions, torch.tensor([0, first, LENGTH])))[first:]
    return largest(packed, alone), largest(ours, alone)


def bfloat16_cached_decoding(oracle):
    port, sizes = Port(oracle), [PROMPT, *[1] * (LENGTH - PROMPT)]
    native, lm = copy.deepcopy(port.native).bfloat16(), copy.deepcopy(port.lm).bfloat16()
    assert native.model.layers[0].self_attn.slope_rate.dtype == torch.bfloat16
    wanted = native(port.tokens[None]).logits[0].float()[PROMPT:]
    cache, slot = HybridCache(lm.config, 1, LENGTH, dtype=torch.bfloat16), torch.tensor([0])
    lm.prefill(port.tokens[:PROMPT], torch.tensor([0, PROMPT]), slot, cache)
    ours = torch.cat([lm.logits(lm.decode(token[None], slot, cache)) for token in port.tokens[PROMPT:]])
    unrepaired = port.in_pieces(sizes, with_positions=True, native=native)
    return largest(unrepaired, wanted), largest(ours, port.ours(lm)[PROMPT:])


def heads_no_power_of_two(oracle):
    port, same = Port(oracle, num_attention_heads=6, num_key_value_heads=3), Port(oracle)
    return largest(port.full(), port.ours()), largest(same.full(), same.ours())


def another_norm_eps(oracle):
    port, same = Port(oracle, lightning_norm_eps=1e-5), Port(oracle)
    return largest(port.full(), port.ours()), largest(same.full(), same.ours())


def residual_before_the_norm(oracle):
    port, same = Port(oracle, postnorm=False), Port(oracle)
    return largest(port.full(), port.ours()), largest(same.full(), same.ours())


MEASUREMENTS = (
    ignored_rotary_dim,
    decoding_without_positions,
    a_prompt_in_two_pieces,
    a_left_padded_batch,
    a_state_after_right_padding,
    packed_rows,
    bfloat16_cached_decoding,
    heads_no_power_of_two,
    another_norm_eps,
    residual_before_the_norm,
)


def documented():
    """{number of the row: the size that the page gives}."""
    rows = re.findall(r"^\| (\d+) \|.*\| ([\d.e-]+) \| [^|]+ \|$", PAGE.read_text(), flags=re.M)
    return {int(number): float(size) for number, size in rows}


@pytest.mark.parametrize("number, measure", enumerate(MEASUREMENTS, 1), ids=lambda x: getattr(x, "__name__", str(x)))
def test_the_page_gives_the_size_of_each_difference(number, measure, oracle):
    with torch.no_grad():
        wrong, right = measure(oracle)
    print(f"{measure.__name__}: {wrong:.2g}, done right {right:.1e}")
    assert right < ROUNDING
    assert wrong == pytest.approx(documented()[number], rel=0.1)


def test_every_row_of_the_page_is_measured():
    assert list(documented()) == list(range(1, len(MEASUREMENTS) + 1))


EXPORTS = {
    "rotates all 16": {"rotary_dim": 8},
    "slopes": {"num_attention_heads": 6, "num_key_value_heads": 3},
    "norm's eps": {"lightning_norm_eps": 1e-5},
    "after the norm": {"postnorm": False},
}


@pytest.mark.parametrize("message, changes", EXPORTS.items(), ids=EXPORTS)
def test_an_export_that_transformers_computes_differently_warns(oracle, tmp_path, message, changes):
    lm = oracle.make_lm(dataclasses.replace(SEVEN_AND_ONE, **changes))
    with pytest.warns(UserWarning, match=message):
        save_pretrained(lm, tmp_path, "minimax")
