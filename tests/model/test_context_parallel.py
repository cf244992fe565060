"""A row shared by several processes against the same row in one: outputs and every gradient, over real gloo ranks.

The ranks are processes that start once for all cases. Each computes its share's hidden states and the gradients of a
sum over them; the parent adds the gradients up and compares with one process that has the whole row, in float64.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model import HybridConfig, HybridLM, ModelError
from model.context_parallel import Share

torch.set_num_threads(1)

# name -> lengths of the row's sequences. Shares of 2 and 3 ranks begin inside, at the end of, and in the middle of
# sequences that span one, two or all ranks.
ROWS = {
    "one-sequence": [101],
    "border-between-sequences": [30, 30],
    "many-short": [5, 1, 9, 33, 2, 17, 8],
    "long-in-the-middle": [7, 80, 9],
    "long-at-the-end": [40, 3, 150],
    "fewest-tokens": [1, 2],
}
CONFIG = HybridConfig(
    vocab_size=23, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rotary_dim=4,
    intermediate_size=8, num_local_experts=4, initializer_range=0.2, attn_type_list=(0, 1, 0, 1), param_dtype="float64",
)  # fmt: skip


def make_lm():
    torch.manual_seed(0)
    return HybridLM(CONFIG)


def make_row(lengths):
    rng = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(0, CONFIG.vocab_size, (sum(lengths),), generator=rng)
    positions = torch.cat([torch.arange(length) for length in lengths])
    weight = torch.randn(sum(lengths), CONFIG.hidden_size, generator=rng, dtype=torch.float64)
    return tokens, positions, torch.tensor([0, *lengths]).cumsum(0), weight


def gradients(lm, hidden, weight):
    names = [name for name, _ in lm.named_parameters() if not name.startswith("lm_head")]
    wanted = [dict(lm.named_parameters())[name] for name in names]
    return dict(zip(names, torch.autograd.grad((hidden * weight).sum(), wanted, materialize_grads=True), strict=True))


def work(rank, num_ranks, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(os.fspath(folder / "store"), num_ranks)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks, store=store)
    lm = make_lm()
    results = {}
    for name, lengths in ROWS.items():
        if sum(lengths) < num_ranks:
            continue
        tokens, positions, cu_seqlens, weight = make_row(lengths)
        share = Share.of_group(cu_seqlens)
        hidden = lm(tokens[share.tokens], positions[share.tokens], share.own_cu_seqlens, share=share)
        results[name] = (hidden.detach(), gradients(lm, hidden, weight[share.tokens]))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3], ids=lambda ranks: f"{ranks}-ranks")
def shared(request, tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("ranks"))
    mp.spawn(work, (request.param, folder), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", ROWS)
def test_ranks_together_equal_one_process(shared, name):
    tokens, positions, cu_seqlens, weight = make_row(ROWS[name])
    lm = make_lm()
    hidden = lm(tokens, positions, cu_seqlens)
    torch.testing.assert_close(torch.cat([results[name][0] for results in shared]), hidden.detach())
    for parameter, wanted in gradients(lm, hidden, weight).items():
        total = sum(results[name][1][parameter] for results in shared)
        torch.testing.assert_close(total, wanted, msg=lambda text, at=parameter: f"{at}: {text}")


def test_shares_cover_the_row_once_and_know_what_goes_on():
    cu_seqlens = torch.tensor([0, 4, 4, 20, 21])
    shares = [Share(cu_seqlens, rank, 4) for rank in range(4)]
    assert [(s.tokens.start, s.tokens.stop) for s in shares] == [(0, 5), (5, 10), (10, 15), (15, 21)]
    assert [s.own_cu_seqlens.tolist() for s in shares] == [[0, 4, 5], [0, 5], [0, 5], [0, 5, 6]]
    assert [s.num_continued for s in shares] == [0, 5, 5, 5]
    assert [s.distances() for s in shares] == [
        [float("inf")] * 4,
        [0, float("inf"), float("inf"), float("inf")],
        [5, 0, float("inf"), float("inf")],
        [10, 5, 0, float("inf")],
    ]


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ModelError, match="2 tokens cannot be shared by 3 ranks"):
        Share(torch.tensor([0, 2]), 0, 3)
    with pytest.raises(ModelError, match="rank"):
        Share(torch.tensor([0, 8]), 2, 2)
    tokens, positions, cu_seqlens, _ = make_row([6, 4])
    with pytest.raises(ModelError, match=r"own_cu_seqlens, here \[0, 5\]"):
        make_lm()(tokens[:5], positions[:5], torch.tensor([0, 3, 5]), share=Share(cu_seqlens, 0, 2))
