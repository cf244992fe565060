"""A small model and an update of it, in one process by HybridLM and on many ranks by model/megatron.

Rows differ in length, in their number of sequences and, over data ranks, in number; some tokens are not learnt from,
and one tensor rank's part of a vocabulary of 23 is padded. What multiplies a log-probability depends on it, as a
clipped ratio does, and the balancing loss is large enough to matter.
"""

import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist

from model import HybridConfig, HybridLM, Routing
from model.checkpoint import stream_weights
from tests.model.megatron import megatron_on_cpu

CONFIG = HybridConfig(
    vocab_size=23, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rotary_dim=4,
    intermediate_size=8, num_local_experts=4, initializer_range=0.2, attn_type_list=(0, 1, 0, 1),
)  # fmt: skip
LENGTHS = ([5, 9, 3], [13], [11, 4, 6, 1])
TEMPERATURE, BALANCE, MAX_NORM, LR = 0.8, 0.1, 1.0, 0.01
# The first step of Adam is almost a sign: with its usual eps, a gradient that is 0 but for rounding moves a weight as
# far as any other.
ADAM = {"eps": 1e-4, "weight_decay": 0.1}


@dataclass
class Row:
    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    cu_seqlens: torch.Tensor
    learnt_A: torch.Tensor
    weight_T: torch.Tensor

    def coefficients(self, places_a):
        weight_a = self.weight_T[places_a]
        return lambda logp_a, a: weight_a[a].to(logp_a) * logp_a.exp().clamp(max=0.05)


@dataclass
class Update:
    """What one update did.

    Attributes:
        loss, norm: of the whole update, and the norm of its gradient.
        gradients, weights: by checkpoint name; weights as they are after the step.
        logp: of each row's learnt tokens.
        imbalance: of each row's routers.
    """

    loss: float
    norm: float
    gradients: dict
    weights: dict
    logp: dict
    imbalance: dict


def make_lm(config=CONFIG):
    """Random weights in which nothing is neutral: norms away from 1."""
    torch.manual_seed(0)
    lm = HybridLM(config)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return lm


def make_rows():
    rng = torch.Generator().manual_seed(1)
    rows = []
    for lengths in LENGTHS:
        size = sum(lengths)
        positions = torch.cat([torch.arange(length) for length in lengths])
        is_learnt = (torch.rand(size, generator=rng) < 0.6) & (positions > 0)
        rows.append(
            Row(
                tokens_T=torch.randint(0, CONFIG.vocab_size, (size,), generator=rng),
                positions_T=positions,
                cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
                learnt_A=is_learnt.nonzero().squeeze(1),
                weight_T=torch.randn(size, generator=rng),
            )
        )
    return rows


def update_alone(lm):
    """One update by HybridLM and torch's AdamW, its gradient clipped to MAX_NORM, half its length."""
    loss, logp, imbalance = torch.zeros(()), {}, {}
    for index, row in enumerate(make_rows()):
        routing = Routing()
        hidden = lm(row.tokens_T, row.positions_T, row.cu_seqlens, routing)
        routing.close()
        learnt = row.learnt_A
        total, logp[index], _ = lm.weighted_logp(
            hidden[learnt - 1], row.tokens_T[learnt], row.coefficients(learnt), TEMPERATURE
        )
        imbalance[index] = routing.load_imbalance()
        loss = loss - total + BALANCE * routing.aux_loss()
    loss.backward()
    gradients = {name: grad.clone() for name, grad in stream_weights(lm, _gradients(lm))}
    norm = float(torch.nn.utils.clip_grad_norm_(lm.parameters(), MAX_NORM))
    torch.optim.AdamW(lm.parameters(), lr=LR, **ADAM).step()
    weights = {name: weight.clone() for name, weight in stream_weights(lm)}
    return Update(float(loss.detach()), norm, gradients, weights, logp, imbalance)


def _gradients(lm):
    return [(name, parameter.grad) for name, parameter in lm.named_parameters()]


def join(rank, num_ranks, folder):
    """Become one of several gloo ranks for which megatron works."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # megatron would rather have TransformerEngine and apex, and says so often
    megatron_on_cpu.before_import()
    dist.init_process_group(
        "gloo", rank=rank, world_size=num_ranks, store=dist.FileStore(str(folder / "store"), num_ranks)
    )
    import model.megatron  # noqa: F401

    megatron_on_cpu.after_import()


def learn(stages, place, *, whole_gradients=False):
    """Gradients of the update; by row, this rank's (loss, places, logp, imbalance)."""
    from model.megatron import TokenRow, forward_backward

    mine = dict(list(enumerate(make_rows()))[place.data_rank :: place.num_data_ranks])
    numbers = list(mine)

    def objective(learnt):
        row, places = mine[numbers[learnt.index]], learnt.places_a
        total, logp, _ = learnt.head.weighted_logp(
            learnt.hidden_aD, row.tokens_T[places], row.coefficients(places), TEMPERATURE
        )
        loss = -total + BALANCE * learnt.routing.aux_loss()
        return loss, (float(loss.detach()), places, logp, learnt.routing.load_imbalance())

    token_rows = [TokenRow(row.tokens_T, row.positions_T, row.cu_seqlens, row.learnt_A) for row in mine.values()]
    results = forward_backward(stages, token_rows, objective, whole_gradients=whole_gradients)
    return dict(zip(numbers, results, strict=True)) if results else {}


def update_together(stages, weights, optimizer, place):
    """The same update on these ranks; the result is the same on all of them."""
    learn(stages, place, whole_gradients=True)
    gradients = dict(weights.gradients())
    results, told = learn(stages, place), [{}] * dist.get_world_size()
    dist.all_gather_object(told, results if place.is_reporter else {})
    norm = optimizer.clip(MAX_NORM)
    optimizer.step(LR)
    loss, logp, imbalance = 0.0, {}, {}
    for results in told:
        for index, (part, places, logp_a, imbalance_of_row) in results.items():
            loss += part
            learnt = make_rows()[index].learnt_A
            logp.setdefault(index, torch.full((len(learnt),), torch.nan))[torch.isin(learnt, places)] = logp_a
            imbalance[index] = imbalance_of_row
    return Update(loss, norm, gradients, dict(weights.stream(bucket_bytes=2000)), dict(sorted(logp.items())), imbalance)
