"""However an update is split, its gradient is that of the whole: real policy, real learner, float64.

Splits differ in rows, ranks and order, and are compared with one row of everything. The aggregations are compared with
an objective written here from its definition, one sample at a time, with neither packing nor weights.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.packing import AGGREGATIONS, pack
from cispo.types import Sample, UpdateSettings

SETTINGS = UpdateSettings(
    lr=0.0, ratio_cap=1.5, mask_above=2.0, mask_below=0.4, max_grad_norm=float("inf"), temperature=0.8
)

# (group, prompt tokens, runs of action and observation tokens), uneven on purpose: groups of 3, 1 and 2 samples with
# 1 to 9 actions; the fourth has two turns, and the last is learnt from nowhere.
SHAPES = [(0, 3, (1,)), (0, 3, (9,)), (0, 3, (4,)), (1, 2, (2, 3, 4)), (2, 5, (6,)), (2, 5, (0, 4))]


@pytest.fixture(scope="module")
def learner(make_lm):
    return LocalLearner(make_lm(dtype="float64"), LearnerConfig())


def make_samples(seed):
    rng = np.random.default_rng(seed)
    samples = []
    for member, (group, num_prompt, runs) in enumerate(SHAPES):
        actions = [np.full(length, turn % 2 == 0) for turn, length in enumerate(runs)]
        mask_T = np.concatenate([np.zeros(num_prompt, dtype=bool), *actions])
        samples.append(
            Sample(
                group=group,
                member=member,
                tokens_T=rng.integers(0, 11, len(mask_T)),
                mask_T=mask_T,
                behaviour_logp_T=np.where(mask_T, rng.normal(-2.4, 0.5, len(mask_T)), 0).astype(np.float32),
                advantage_T=np.where(mask_T, rng.choice([-1.5, -0.5, 1.0, 2.0]), 0).astype(np.float32),
                version_T=np.where(mask_T, 0, -1),
            )
        )
    return samples


def gradient(learner, samples, aggregation, max_row_tokens=10**6, num_ranks=1):
    """Loss, metrics and every parameter's gradient of one update; a rate of 0 leaves the weights as they are."""
    (batch,) = pack(samples, num_batches=1, aggregation=aggregation, max_row_tokens=max_row_tokens, num_ranks=num_ranks)
    result = learner.update(batch, SETTINGS)
    assert not result.skipped
    metrics = {name: float(m) for name, m in result.metrics.items() if not name.startswith("moe/")}  # per row by nature
    return result.loss, metrics, {name: p.grad.clone() for name, p in learner.lm.named_parameters()}, len(batch.rows)


def assert_same(one, other, tolerance):
    for name, wanted in one.items():
        scale = wanted.abs().max()
        assert scale > 0, f"{name} has no gradient, so nothing is compared"
        assert (other[name] - wanted).abs().max() <= tolerance * scale, name


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    order=st.permutations(range(len(SHAPES))),
    max_row_tokens=st.integers(1, 60),
    num_ranks=st.integers(1, 4),
    aggregation=st.sampled_from(AGGREGATIONS),
)
def test_any_split_gives_the_gradient_of_the_whole(learner, seed, order, max_row_tokens, num_ranks, aggregation):
    samples = make_samples(seed)
    loss, metrics, whole, _ = gradient(learner, samples, aggregation)
    shuffled = [samples[i] for i in order]
    split_loss, split_metrics, split, _ = gradient(learner, shuffled, aggregation, max_row_tokens, num_ranks)
    assert split_loss == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert split_metrics == pytest.approx(metrics, rel=1e-9, abs=1e-12)
    assert_same(whole, split, 1e-9)


def test_the_splits_compared_are_splits(learner):
    samples = make_samples(0)
    rows = [
        gradient(learner, samples, "prompt", limit, ranks)[3] for limit, ranks in [(10**6, 1), (25, 1), (25, 4), (1, 1)]
    ]
    assert rows == [1, 3, 4, 6]


def objective(lm, samples, aggregation):
    """The negative aggregated sum of sg(clip(r)) M A logp, from the definitions, by groups and samples."""
    terms = {}
    for sample in samples:
        tokens = torch.from_numpy(sample.tokens_T)
        hidden = lm(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
        logp = torch.log_softmax(lm.logits(hidden[:-1]) / SETTINGS.temperature, -1).gather(1, tokens[1:, None])[:, 0]
        mask = torch.from_numpy(sample.mask_T[1:])
        ratio = torch.exp(logp.detach() - torch.from_numpy(sample.behaviour_logp_T[1:]))
        advantage = torch.from_numpy(sample.advantage_T[1:]).double()
        kept = ~((advantage > 0) & (ratio > SETTINGS.mask_above) | (advantage < 0) & (ratio < SETTINGS.mask_below))
        terms.setdefault(sample.group, []).append((ratio.clamp(max=SETTINGS.ratio_cap) * kept * advantage * logp)[mask])
    rows = [row for group in terms.values() for row in group if len(row)]
    if aggregation == "prompt":
        return -torch.stack([torch.cat(group).mean() for group in terms.values()]).mean()
    if aggregation == "token":
        return -torch.cat(rows).mean()
    if aggregation == "sample":
        return -torch.stack([row.mean() for row in rows]).mean()
    return (objective(lm, samples, "token") + objective(lm, samples, "sample")) / 2


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_each_aggregation_is_the_mean_it_is_named_after(learner, aggregation, seed):
    samples = make_samples(seed)
    loss, _, packed, _ = gradient(learner, samples, aggregation, max_row_tokens=25)
    learner.lm.zero_grad()
    wanted = objective(learner.lm, samples, aggregation)
    wanted.backward()
    # 1e-6 because the weights of tokens travel as float32.
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert_same({name: p.grad for name, p in learner.lm.named_parameters()}, packed, 1e-6)


def test_the_aggregations_differ_on_these_samples(learner):
    losses = [gradient(learner, make_samples(0), aggregation)[0] for aggregation in AGGREGATIONS]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


def test_updates_of_whole_groups_add_up_to_the_update_of_all(learner):
    """By the prompt mean, which is a mean over groups: what data-parallel ranks with a group each would do."""
    samples = make_samples(1)
    _, _, whole, _ = gradient(learner, samples, "prompt")
    parts = [gradient(learner, [s for s in samples if s.group == group], "prompt")[2] for group in range(3)]
    assert_same(whole, {name: sum(part[name] for part in parts) / 3 for name in whole}, 1e-6)


def test_the_neighbours_in_a_row_do_not_show_through(learner):
    samples = make_samples(2)
    (batch,) = pack(samples, num_batches=1, max_row_tokens=25)
    (other,) = pack(samples[::-1], num_batches=1, max_row_tokens=40)

    def logp_by_member(batch):
        rows = learner.update(batch, SETTINGS).logp_rows
        return {
            member: logp_T[row.cu_seqlens[n] : row.cu_seqlens[n + 1]]
            for row, logp_T in zip(batch.rows, rows, strict=True)
            for n, member in enumerate(row.members)
        }

    first, second = logp_by_member(batch), logp_by_member(other)
    for sample in samples:
        np.testing.assert_array_equal(np.isfinite(first[sample.group, sample.member]), sample.mask_T)
        np.testing.assert_allclose(first[sample.group, sample.member], second[sample.group, sample.member], rtol=1e-6)
