"""The same updates by any learner on any number of ranks: what to train on, how to run ranks, what to compare.

The reference is LocalLearner in one process, whose updates test_learner.py compares with a loop written out.
"""

import dataclasses
import functools
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cispo.correction import CorrectionConfig, correct
from cispo.learner.config import LearnerConfig
from cispo.learner.local import LocalLearner
from cispo.learner.ranks import Ranks
from cispo.learner.shards import deal, gather_logp
from cispo.optimizer import OptimizerConfig
from cispo.packing import pack
from cispo.types import PackedBatch, Sample, UpdateSettings
from model import HybridConfig, HybridLM

CONFIG = HybridConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    rotary_dim=4, intermediate_size=16, num_local_experts=4, initializer_range=0.2, attn_type_list=(0, 1, 0, 1),
)  # fmt: skip
OPTIMIZER = OptimizerConfig(betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
"""eps well above rounding: with a tiny one a weight whose gradient is nothing but rounding moves by a whole step."""
PROMPT = np.random.default_rng(8).integers(0, CONFIG.vocab_size, 16)
SETTINGS = UpdateSettings(lr=3e-3, ratio_cap=1.3, mask_below=0.5, mask_above=2.5, max_grad_norm=0.2, temperature=0.9)


def learner_config(**changes):
    return LearnerConfig(optimizer=OPTIMIZER, **changes)


def make_lm(seed=0, config=CONFIG):
    torch.manual_seed(seed)
    return HybridLM(config)


def make_batches():
    """Three updates of four or five rows: two turns, clipped ratios, tokens dropped by the mask, nothing to learn."""
    rng = np.random.default_rng(0)
    samples = []
    for group in range(9):
        for member in range(3):
            runs = [rng.integers(2, 9), *rng.integers(1, 12, size=rng.integers(1, 4))]
            mask_T = np.concatenate([np.full(length, turn % 2 == 1) for turn, length in enumerate(runs)])
            mask_T &= (group, member) != (4, 1)
            samples.append(
                Sample(
                    group=group,
                    member=member,
                    tokens_T=rng.integers(0, CONFIG.vocab_size, len(mask_T)),
                    mask_T=mask_T,
                    behaviour_logp_T=np.where(mask_T, rng.normal(-3.7, 0.7, len(mask_T)), 0).astype(np.float32),
                    advantage_T=np.where(mask_T, rng.choice([-1.5, -0.5, 1.0, 2.0]), 0).astype(np.float32),
                    version_T=np.where(mask_T, 3, -1),
                )
            )
    return pack(samples, num_batches=3, max_row_tokens=40, version=3)


@dataclass
class Found:
    """What a learner made of the batches.

    Attributes:
        losses, norms: of each update.
        metrics: of each update, as floats by name.
        logp: of each update, its rows'.
        weights: afterwards, as numpy, by checkpoint name.
        told: after each update, what the learner says of PROMPT.
    """

    losses: list
    norms: list
    metrics: list
    logp: list
    weights: dict
    told: list


def learn(learner, batches, settings=SETTINGS, shard=0, num_shards=1):
    """Run the batches through a learner, or through one rank of it."""
    results, told = [], []
    for batch in batches:
        results.append(learner.update(deal(batch, num_shards)[shard], settings))
        told.append(learner.text_logp(PROMPT))
    weights = {name: weight.float().numpy().copy() for name, weight in learner.weights()}
    metrics = [{name: float(metric) for name, metric in result.metrics.items()} for result in results]
    return Found([r.loss for r in results], [r.grad_norm for r in results], metrics,
                 [r.logp_rows for r in results], weights, told)  # fmt: skip


CORRECTION = CorrectionConfig(ratio_against="proximal", tis_cap=1.4, token_mask_below=0.3, sequence_mask_above=2.0)


@functools.cache
def make_corrected_batches():
    """`make_batches` with recorded experts, not all of them, and weights corrected by the local learner's word."""
    rng, batches = np.random.default_rng(1), []
    for batch in make_batches():
        rows = [dataclasses.replace(row, experts_TLk=_random_experts(rng, row.num_tokens)) for row in batch.rows]
        batches.append(PackedBatch(tuple(rows)))
    return correct(LocalLearner(make_lm(), learner_config()), batches, CORRECTION, SETTINGS.temperature)[0]


def _random_experts(rng, num_tokens):
    layers, experts, chosen = CONFIG.num_hidden_layers, CONFIG.num_local_experts, CONFIG.num_experts_per_tok
    experts_TLk = rng.random((num_tokens, layers, experts)).argsort(-1)[..., :chosen].astype(np.uint8)
    experts_TLk[rng.random((num_tokens, layers)) < 0.2] = 255
    return experts_TLk


def proximal_rows(learner, shard=0, num_shards=1):
    """What a learner, or one rank of it, returns as log-probabilities of the corrected batches."""
    batches = [deal(batch, num_shards)[shard] for batch in make_corrected_batches()]
    return [learner.logp(batch, SETTINGS.temperature) for batch in batches]


def learn_corrected(learner, settings=SETTINGS, shard=0, num_shards=1):
    """Found of the corrected batches; log-probabilities first, as a step does, are those in the batches."""
    proximal = proximal_rows(learner, shard, num_shards)
    return proximal, learn(learner, make_corrected_batches(), settings, shard, num_shards)


@functools.cache
def _corrected_reference(settings):
    return reference(make_corrected_batches(), settings)


def assert_corrected_agree(config, by_rank, settings=SETTINGS, tolerance=1e-5):
    """What all ranks' `learn_corrected` returned, against the local learner in one process."""
    batches, wanted = make_corrected_batches(), _corrected_reference(settings)
    found = together(config, [found for _, found in by_rank], batches)
    assert_agree(found, wanted, tolerance)
    for metrics, expected in zip(found.metrics, wanted.metrics, strict=True):
        name = "moe/replay_changed_fraction"
        assert 0.5 < expected[name] < 0.95
        np.testing.assert_allclose(metrics[name], expected[name], atol=2e-3)  # a routing tie
    proximal = together(config, [dataclasses.replace(found, logp=rows) for rows, found in by_rank], batches).logp
    for batch, rows in zip(batches, proximal, strict=True):
        for row, logp_T in zip(batch.rows, rows, strict=True):
            np.testing.assert_allclose(logp_T, row.proximal_logp_T, rtol=tolerance, atol=tolerance)


def reference(batches, settings=SETTINGS, **changes):
    """What the local learner in one process makes of them."""
    return learn(LocalLearner(make_lm(), learner_config(**changes)), batches, settings)


def together(config, found, batches):
    """One Found of those of all ranks: numbers are equal on all of them, logp is put together, rank 0 has weights."""
    for rank in found[1:]:
        assert (rank.losses, rank.norms) == (found[0].losses, found[0].norms)
    logp = []
    for index, batch in enumerate(batches):
        shards = [[] for _ in range(config.num_shards)]
        for rank, result in enumerate(found):
            shards[config.shard_of(rank)].append(result.logp[index])
        logp.append(gather_logp(batch, shards))
    return dataclasses.replace(found[0], logp=logp)


def assert_agree(found, wanted, tolerance=1e-5):
    """Losses, norms, metrics, log-probabilities and weights, relative to the largest of their kind."""
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=0, atol=tolerance * np.abs(wanted.losses).max())
    np.testing.assert_allclose(found.norms, wanted.norms, rtol=tolerance)
    for metrics, expected in zip(found.metrics, wanted.metrics, strict=True):
        comparable = [name for name in expected if not name.startswith(("moe/", "mismatch/"))]
        for name in comparable:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=10 * tolerance, atol=1e-7, err_msg=name)
    for rows, expected in zip(found.logp, wanted.logp, strict=True):
        for row, logp_T in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row, logp_T, rtol=tolerance, atol=tolerance)
    for logp_T, expected_T in zip(found.told, wanted.told, strict=True):
        np.testing.assert_allclose(logp_T, expected_T, rtol=tolerance, atol=tolerance)
    assert found.weights.keys() == wanted.weights.keys()
    for name, weight in wanted.weights.items():
        error = np.abs(found.weights[name].astype(np.float64) - weight)
        if is_bfloat16(weight):  # a rounding of the float32 master may tip a number to its neighbour, which is rare
            error = np.where(error <= NEIGHBOUR * np.abs(weight), 0, error)
            assert (found.weights[name] != weight).mean() <= MAX_TIPPED, name
        assert error.max() <= tolerance * np.abs(weight).max(), (name, error.max())


NEIGHBOUR, MAX_TIPPED = 2.0**-7, 0.005
"""How far two numbers next to each other in bfloat16 are apart at most, relative; the share that may be so."""


def is_bfloat16(weight):
    """Every number of a float32 array is one of bfloat16."""
    return not (weight.view(np.uint32) & 0xFFFF).any()


def on_ranks(num_ranks, work, folder, *arguments):
    """work(ranks, folder, *arguments) on each of num_ranks gloo processes; what each rank returned, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_enter, (num_ranks, work, folder, arguments), nprocs=num_ranks)
    return [pickle.loads((folder / f"result_{rank}").read_bytes()) for rank in range(num_ranks)]


def _enter(rank, num_ranks, work, folder, arguments):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), num_ranks)
    ranks = Ranks.join(store, rank, num_ranks, device="cpu", deadline_seconds=120)
    result = work(ranks, Path(folder), *arguments)
    (folder / f"result_{rank}").write_bytes(pickle.dumps(result))
    ranks.leave()
