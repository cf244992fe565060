"""The sampler against published generator outputs, explicit enumeration of small distributions, and statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.sampling import Sampling, SamplingBatch, inverse_cdf, stream_key, uniforms


def draw(logits, samplings, keys=None, positions=None):
    """Tokens and log-probabilities for rows of logits, without touching the logits."""
    logits = torch.tensor(logits, dtype=torch.float32) if not isinstance(logits, torch.Tensor) else logits.clone()
    batch = SamplingBatch.of(samplings, keys or list(range(len(samplings))), "cpu")
    positions = torch.zeros(len(samplings), dtype=torch.int64) if positions is None else positions
    return batch.take(torch.arange(len(samplings))).draw(logits, positions)


def draw_many(logits, sampling, num=20_000):
    """The same row of logits drawn at `num` positions of one stream."""
    rows = torch.tensor([logits], dtype=torch.float32).expand(num, -1)
    return draw(rows, [sampling] * num, [stream_key(3, 0)] * num, torch.arange(num))


def assert_follows(tokens, probabilities):
    """Chi-square with the 1e-6 quantile by Wilson and Hilferty; impossible tokens must not occur."""
    counts = np.bincount(tokens.numpy(), minlength=len(probabilities))
    possible = np.array(probabilities) > 0
    assert counts[~possible].sum() == 0
    expected = np.array(probabilities)[possible] * len(tokens)
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    degrees = possible.sum() - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3
    assert statistic < limit, (counts, expected)


def test_uniforms_are_splitmix64():
    """The first outputs of SplitMix64 seeded with 1234567, as listed by Rosetta Code."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    uniform = uniforms(torch.full((5,), 1234567), torch.arange(5))
    assert uniform.tolist() == [(z >> 11) * 2.0**-53 for z in outputs]


def test_uniforms_are_uniform_along_positions_members_and_seeds():
    streams = [
        uniforms(torch.full((50_000,), stream_key(0, 0)), torch.arange(50_000)),
        uniforms(
            torch.tensor([stream_key(0, member) for member in range(50_000)]), torch.zeros(50_000, dtype=torch.int64)
        ),
        uniforms(torch.tensor([stream_key(seed, 0) for seed in range(50_000)]), torch.zeros(50_000, dtype=torch.int64)),
    ]
    for stream in streams:
        assert_follows((stream * 20).long(), [1 / 20] * 20)
        pairs = (stream[:-1] * 5).long() * 5 + (stream[1:] * 5).long()
        assert_follows(pairs[::2], [1 / 25] * 25)


def test_keys_differ_by_seed_and_member_and_accept_any_integer():
    keys = {stream_key(seed, member) for seed in (-1, 0, 1, 2**63, 2**70 + 5) for member in range(100)}
    assert len(keys) == 500
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_plain_sampling_follows_the_softmax_and_reports_its_log_probability():
    logits = [0.0, 1.0, -1.0, 2.0, 0.5]
    expected = torch.tensor(logits).double().softmax(0)
    token, logp = draw_many(logits, Sampling())
    assert_follows(token, expected.tolist())
    torch.testing.assert_close(logp.double(), expected.log()[token], atol=1e-6, rtol=0)


def test_temperature_is_applied_before_the_probability_is_taken():
    logits = [0.0, 1.0, -1.0, 2.0]
    expected = (torch.tensor(logits).double() / 0.7).softmax(0)
    token, logp = draw_many(logits, Sampling(temperature=0.7))
    assert_follows(token, expected.tolist())
    torch.testing.assert_close(logp.double(), expected.log()[token], atol=1e-6, rtol=0)


def test_greedy_takes_the_argmax_with_its_probability_at_temperature_one():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    token, logp = draw(logits, [Sampling(temperature=0.0, top_p=0.1, top_k=2)] * 50)
    assert token.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(logp, logits.log_softmax(-1).amax(-1), atol=1e-6, rtol=0)


# Probabilities .4 .3 .2 .1 in shuffled order, so that an off-by-one in the sorted order shows.
SHUFFLED = [math.log(p) for p in (0.2, 0.4, 0.1, 0.3)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(top_k=1), [0, 1, 0, 0]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=9), [0.2, 0.4, 0.1, 0.3]),
        (Sampling(top_p=0.3), [0, 1, 0, 0]),
        (Sampling(top_p=0.45), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_p=0.75), [2 / 9, 4 / 9, 0, 3 / 9]),
        # top-k first: of .4/.9 .3/.9 .2/.9, the first two already reach .75.
        (Sampling(top_k=3, top_p=0.75), [0, 4 / 7, 0, 3 / 7]),
        # At temperature 1/2 the weights are 4 16 1 9 of 30; the first two make 25/30.
        (Sampling(temperature=0.5, top_p=0.8), [0, 16 / 25, 0, 9 / 25]),
    ],
    ids=lambda value: f"T{value.temperature}-k{value.top_k}-p{value.top_p}" if isinstance(value, Sampling) else "",
)
def test_truncated_sampling_is_the_renormalised_rest(sampling, expected):
    token, logp = draw_many(SHUFFLED, sampling)
    if max(expected) < 1:
        assert_follows(token, expected)
    torch.testing.assert_close(
        logp.exp().double(), torch.tensor(expected, dtype=torch.float64)[token], atol=1e-6, rtol=0
    )


def test_rows_of_a_batch_do_not_touch_each_other():
    """Every mixture of greedy, truncated and plain rows gives each row what it gets alone."""
    logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(1))
    samplings = [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=5),
        Sampling(top_p=0.5),
        Sampling(temperature=1.7),
        Sampling(temperature=0.3, top_k=50, top_p=0.9),
    ]
    token, logp = draw(logits, samplings)
    for row, sampling in enumerate(samplings):
        alone_token, alone_logp = draw(logits[row : row + 1], [sampling], [row])
        assert alone_token[0] == token[row]
        assert alone_logp[0] == logp[row]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=200).filter(any),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_inverse_cdf_is_the_quantile_and_never_of_weight_zero(weights, uniform):
    token = int(
        inverse_cdf(torch.tensor([weights], dtype=torch.float32), torch.tensor([uniform], dtype=torch.float64))[0]
    )
    below, total = sum(weights[:token]), sum(weights)
    assert weights[token] > 0
    assert below / total <= uniform + 1e-12
    assert uniform < (below + weights[token]) / total + 1e-12


def test_rare_tokens_of_a_large_vocabulary_are_not_lost():
    """One token has half the mass, 200,063 share the rest: each of them must be reachable, the last one too."""
    weights = torch.full((1, 200_064), 1 / 200_063)
    weights[0, 0] = 1
    targets = torch.tensor([0.25, 0.5 + 1e-9, 0.75, 1 - 1e-9], dtype=torch.float64)
    tokens = torch.cat([inverse_cdf(weights, target[None]) for target in targets])
    assert tokens.tolist() == [0, 1, 100_032, 200_063]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_logits_give_a_nan_log_probability_in_their_row_only(broken):
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    logits[1, 7] = broken
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(top_k=3)):
        _, logp = draw(logits, [sampling] * 3)
        assert logp.isnan().tolist() == [False, True, False]


def test_a_row_without_a_possible_token_gives_nan():
    _, logp = draw([[-math.inf] * 4], [Sampling()])
    assert logp.isnan().all()


def test_every_fault_is_named():
    faults = Sampling(
        temperature=-1,
        top_p=0,
        top_k=-2,
        max_new_tokens=0,
        stop_token_ids=(3, 99),
        thinking_budget=4,
        repetition_tokens=-1,
        repetition_probability=1.0,
    ).faults(vocab_size=10)
    assert len(faults) == 7
    assert "[99, -1, -1]" in faults[-1]
    assert Sampling(temperature=math.nan).faults(10)
    assert not Sampling(stop_token_ids=(9,), top_p=0.5, top_k=3).faults(10)
