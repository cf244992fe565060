"""Replayed experts: against sums written out over given experts, gradients included, and against the model itself."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from model import HybridCache, HybridConfig, HybridLM, Routing
from model.group_moe import SharedMoE
from model.moe import MoE
from model.replay import Replay, nothing_in, record_dtype
from tests.model.test_ring_linear import RING

torch.set_num_threads(1)
EXPERTS, CHOSEN, WIDTH = 4, 2, 6
MINIMAX = HybridConfig(
    vocab_size=23, hidden_size=16, num_hidden_layers=3, attn_type_list=(0, 1, 0), num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, rotary_dim=4, intermediate_size=6, num_local_experts=EXPERTS,
    num_experts_per_tok=CHOSEN, initializer_range=0.3,
)  # fmt: skip
FAMILIES = {"minimax": MINIMAX, "ring": RING}
NOTHING = nothing_in(torch.uint8)


def make_lm(config, dtype="float64", seed=0):
    torch.manual_seed(seed)
    return HybridLM(dataclasses.replace(config, param_dtype=dtype))


def random_record(num_tokens, num_layers, num_experts, num_chosen, seed=1):
    """Different experts for each token and layer, as in a record."""
    noise = torch.rand(num_tokens, num_layers, num_experts, generator=torch.Generator().manual_seed(seed))
    return noise.topk(num_chosen, dim=-1).indices.to(torch.uint8)


def make_row(lm, num_tokens=20):
    generator = torch.Generator().manual_seed(2)
    tokens_T = torch.randint(0, lm.config.vocab_size, (num_tokens,), generator=generator)
    return tokens_T, torch.cat([torch.arange(8), torch.arange(num_tokens - 8)]), torch.tensor([0, 8, num_tokens])


def own_choices(lm, row):
    """The record of what the routers choose themselves, seen by hooks on the routers."""
    seen = []
    routers = [layer.block_sparse_moe.gate for layer in lm.model.layers if hasattr(layer.block_sparse_moe, "gate")]
    hooks = [router.register_forward_hook(lambda module, args, out: seen.append(out[2])) for router in routers]
    lm(*row, Routing())
    for hook in hooks:
        hook.remove()
    return torch.stack(seen, dim=1).to(torch.uint8)


def given_experts(moe, x_TD, record_Tk):
    """Token by token over the given experts, each weighed by its own probability over the sum of theirs."""
    outs = []
    for x, experts in zip(x_TD, record_Tk.tolist(), strict=True):
        prob = torch.softmax(moe.gate.weight @ x, dim=0)
        total = sum(prob[e] for e in experts)
        out = torch.zeros_like(x)
        for e in experts:
            gate, up = (moe.experts.gate_up_proj[e] @ x).chunk(2)
            out = out + prob[e] / total * (moe.experts.down_proj[e] @ (F.silu(gate) * up))
        outs.append(out)
    return torch.stack(outs)


def test_replayed_experts_weigh_by_the_routers_own_probabilities_and_carry_its_gradient():
    torch.manual_seed(0)
    moe = MoE(dataclasses.replace(MINIMAX, hidden_size=WIDTH)).double()
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_()
    x = torch.randn(9, WIDTH, dtype=torch.float64, requires_grad=True)
    record = random_record(9, 1, EXPERTS, CHOSEN)
    inputs, upstream = (x, *moe.parameters()), torch.randn(9, WIDTH, dtype=torch.float64)
    routing = Routing(Replay(record))
    out, wanted = moe(x, routing), given_experts(moe, x, record[:, 0])
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad((y * upstream).sum(), inputs) for y in (out, wanted))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    changed = (moe(x) - out).detach().abs().amax(1) > 1e-9
    assert routing.replay.counts == (int(changed.sum()), 9) and 3 < changed.sum() < 9
    counts_E = torch.bincount(record.long().flatten(), minlength=EXPERTS)
    torch.testing.assert_close(routing.counts[0], counts_E)


def test_in_groups_the_scores_of_replayed_experts_count():
    """Ring-linear: weights are the factor times score over the sum of the scores, whatever group or bias says."""
    torch.manual_seed(0)
    moe = SharedMoE(dataclasses.replace(RING, num_shared_experts=0)).double()
    torch.nn.init.normal_(moe.gate.weight)
    x = torch.randn(5, RING.hidden_size, dtype=torch.float64)
    record = random_record(5, 1, RING.num_local_experts, RING.num_experts_per_tok)
    _, weight_Tk, expert_Tk = moe.gate(x, Replay(record).prescription(0))
    score = torch.sigmoid(x @ moe.gate.weight.T)
    for t, experts in enumerate(record[:, 0].tolist()):
        assert expert_Tk[t].tolist() == experts
        wanted = torch.stack([score[t, e] for e in experts])
        torch.testing.assert_close(weight_Tk[t], RING.routed_scaling_factor * wanted / wanted.sum())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_to_replay_a_models_own_choices_changes_not_one_bit(name, recompute):
    lm = make_lm(FAMILIES[name], "float32")
    row, results = make_row(lm), []
    lm.recompute = recompute
    for replay in (None, Replay(own_choices(lm, row))):
        lm.zero_grad()
        routing = Routing(replay)
        hidden = lm(*row, routing)
        routing.close()
        (hidden.square().sum() + routing.aux_loss()).backward()
        gradients = [weight.grad.clone() for weight in lm.parameters() if weight.grad is not None]
        results.append([hidden.detach(), *gradients])
    assert replay.counts == (0, 20 * replay.experts_TLk.shape[1])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_where_nothing_was_recorded_the_router_chooses():
    lm = make_lm(MINIMAX)
    row = make_row(lm)
    record = random_record(20, 3, EXPERTS, CHOSEN)
    record[8:] = NOTHING  # the whole second sequence
    record[:8, 2] = NOTHING  # and the last layer
    routing = Routing(Replay(record))
    hidden, free = lm(*row, routing), lm(*row)
    torch.testing.assert_close(hidden[8:], free[8:], rtol=1e-12, atol=1e-12)
    assert (hidden[:8] - free[:8]).abs().amax() > 1e-3
    assert routing.replay.counts[1] == 16


def test_another_models_choices_make_it_that_model_but_for_the_weights():
    """Routers that are told what the others chose send every token where those would have."""
    lm, other = make_lm(MINIMAX), make_lm(MINIMAX, seed=3)
    row = make_row(lm)
    record = own_choices(other, row)
    found = lm(*row, Routing(Replay(record)))
    for layer, moe in enumerate(lm.model.layers):
        moe.block_sparse_moe.forward = lambda x, routing, m=moe.block_sparse_moe, n=layer: given_experts(
            m, x, record[:, n]
        )
    torch.testing.assert_close(found, lm(*row, Routing()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_records_what_the_routers_choose_while_sampling(name):
    """Two prompts in pieces and some tokens one by one; the last layer works on the prompts' ends alone."""
    lm = make_lm(FAMILIES[name])
    tokens_T, _, cu_seqlens = row = make_row(lm)
    own = own_choices(lm, row)
    cache = HybridCache(lm.config, 3, 16, dtype=torch.float64, records_experts=True)
    slots = torch.tensor([2, 0])
    first, second = tokens_T[:8], tokens_T[8:]
    lm.prefill(torch.cat([first[:3], second[:4]]), torch.tensor([0, 3, 7]), slots, cache)
    lm.prefill(torch.cat([first[3:5], second[4:9]]), torch.tensor([0, 2, 7]), slots, cache)
    for t in range(3):
        lm.decode(torch.stack([first[5 + t], second[9 + t]]), slots, cache)
    for slot, expected, ends in ((2, own[:8], (2, 4)), (0, own[8:], (3, 8))):
        found = cache.experts(slot)
        unknown = [t for t in range(ends[1]) if t not in ends]
        assert (found[unknown, -1] == NOTHING).all()
        found[unknown, -1] = expected[unknown, -1]
        assert torch.equal(found.sort(-1).values, expected.sort(-1).values)


def test_without_being_asked_the_cache_records_nothing():
    cache = HybridCache(MINIMAX, 3, 16)
    assert set(cache.growing) == {"keys", "values"}
    recording = HybridCache(MINIMAX, 3, 16, records_experts=True)
    assert recording.bytes() - cache.bytes() == 3 * 16 * 3 * CHOSEN


@pytest.mark.parametrize("num_experts, dtype", [(255, torch.uint8), (256, torch.int16)])
def test_a_record_has_room_for_a_number_that_is_no_expert(num_experts, dtype):
    assert record_dtype(num_experts) is dtype and nothing_in(dtype) >= num_experts


def test_a_part_of_a_replay_counts_with_the_whole_and_knows_nothing_beyond_its_end():
    replay = Replay(random_record(5, 2, EXPERTS, CHOSEN))
    part = replay.cut(3, 7)
    assert torch.equal(part.experts_TLk[:2], replay.experts_TLk[3:]) and (part.experts_TLk[2:] == NOTHING).all()
    own = torch.zeros(4, CHOSEN, dtype=torch.int64)
    chosen = part.prescription(1)(own)
    assert chosen[2:].tolist() == own[2:].tolist() and replay.counts == (2, 2)
