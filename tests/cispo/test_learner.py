"""The local learner: updates against a torch loop written here, exact resumption, guards, weights on their way."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from cispo.advantage import assign_credit
from cispo.errors import CheckpointError, ConfigError
from cispo.learner.config import LearnerConfig
from cispo.learner.guards import guarded_lr, reason_to_skip
from cispo.learner.local import LocalLearner
from cispo.learner.row import wholly_fresh
from cispo.optimizer import OptimizerConfig
from cispo.packing import pack
from cispo.types import PackedRow, UpdateSettings
from model import HybridLM, load_pretrained
from model.checkpoint import load_weights
from model.mismatch import mismatch_by_kind

OPTIMIZER = OptimizerConfig(betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
SETTINGS = UpdateSettings(lr=1e-2, ratio_cap=1.5, max_grad_norm=0.1, temperature=0.7)


@pytest.fixture
def batches(make_group):
    groups = [make_group(i, (1.0, 0.0, 0.0), num_actions=(2, 5, 3)) for i in range(4)]
    return pack(assign_credit(groups), num_batches=2, max_row_tokens=12)


def weights_of(learner):
    return {name: parameter.detach().clone() for name, parameter in learner.lm.named_parameters()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def make_learner(make_lm, seed=0, dtype="float32"):
    return LocalLearner(make_lm(seed, dtype), LearnerConfig(optimizer=OPTIMIZER))


# The update


def reference_updates(lm, batches, settings):
    """The same updates as a plain loop: one loss over all rows, clip, AdamW. Returns losses and norms."""
    optimizer = torch.optim.AdamW(
        lm.parameters(), lr=settings.lr, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay
    )
    found = []
    for batch in batches:
        loss = torch.zeros((), dtype=torch.float64)
        for row in batch.rows:
            tokens = torch.from_numpy(row.tokens_T)
            hidden = lm(tokens, torch.from_numpy(row.positions_T), torch.from_numpy(row.cu_seqlens))
            logp = torch.log_softmax(lm.logits(hidden) / settings.temperature, -1)
            logp = logp[:-1].gather(1, tokens[1:, None])[:, 0]
            behaviour, advantage, weight = (
                torch.from_numpy(stream[1:].astype(np.float64))
                for stream in (row.behaviour_logp_T, row.advantage_T, row.weight_T)
            )
            ratio = torch.exp(logp.detach() - behaviour).clamp(0, settings.ratio_cap)
            loss = loss - (weight * ratio * advantage * logp)[torch.from_numpy(row.mask_T[1:])].sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in lm.parameters()))
        for parameter in lm.parameters():
            parameter.grad *= min(1.0, settings.max_grad_norm / (float(norm) + 1e-6))  # torch's own guard against 0
        optimizer.step()
        found.append((float(loss.detach()), float(norm)))
    return found


def test_updates_equal_a_plain_torch_loop(make_lm, batches):
    learner, lm = make_learner(make_lm, dtype="float64"), make_lm(dtype="float64")
    results = [learner.update(batch, SETTINGS) for batch in [*batches, *batches]]
    wanted = reference_updates(lm, [*batches, *batches], SETTINGS)
    np.testing.assert_allclose([(r.loss, r.grad_norm) for r in results], wanted, rtol=1e-9)
    assert min(norm for _, norm in wanted) > SETTINGS.max_grad_norm  # the clip was at work
    for name, parameter in lm.named_parameters():
        torch.testing.assert_close(learner.lm.get_parameter(name), parameter, rtol=1e-9, atol=1e-12)


def test_updates_raise_the_probability_of_what_was_rewarded(make_lm, make_group):
    learner = make_learner(make_lm)
    (batch,) = pack(assign_credit([make_group(0, (1.0, 0.0))]), num_batches=1)
    (row,) = batch.rows

    def mean_logp(sign):
        (logp_T,) = learner.update(batch, dataclasses.replace(SETTINGS, lr=0.0)).logp_rows
        return logp_T[row.mask_T & (np.sign(row.advantage_T) == sign)].mean()

    good, bad = mean_logp(1), mean_logp(-1)
    for _ in range(5):
        learner.update(batch, SETTINGS)
    assert mean_logp(1) > good + 0.1 and mean_logp(-1) < bad - 0.1


def test_logp_rows_are_those_before_the_update_and_only_where_learnt(make_lm, batches):
    learner = make_learner(make_lm)
    fresh = make_lm()
    result = learner.update(batches[0], SETTINGS)
    for row, logp_T in zip(batches[0].rows, result.logp_rows, strict=True):
        tokens = torch.from_numpy(row.tokens_T)
        hidden = fresh(tokens, torch.from_numpy(row.positions_T), torch.from_numpy(row.cu_seqlens))
        wanted = torch.log_softmax(fresh.logits(hidden[:-1]) / 0.7, -1).gather(1, tokens[1:, None])[:, 0].detach()
        assert logp_T.dtype == np.float32
        np.testing.assert_array_equal(np.isfinite(logp_T), row.mask_T)
        np.testing.assert_allclose(logp_T[1:][row.mask_T[1:]], wanted[row.mask_T[1:]], atol=1e-5)


def test_the_router_loss_is_added_by_its_coefficient(make_lm, batches):
    plain = make_learner(make_lm).update(batches[0], SETTINGS)
    added = make_learner(make_lm).update(batches[0], dataclasses.replace(SETTINGS, router_aux_coef=0.5))
    auxiliary = float(added.metrics["moe/aux_loss"])
    assert auxiliary > 2.0  # experts per token, its minimum
    assert added.loss == pytest.approx(plain.loss + 0.5 * auxiliary, rel=1e-5)
    assert added.grad_norm != plain.grad_norm
    assert 1.0 <= float(plain.metrics["moe/load_imbalance"]) <= 4.0


def test_a_batch_without_learnt_tokens_does_no_harm(make_lm, make_group):
    group = make_group(0, (1.0, 0.0))
    lost = [dataclasses.replace(t, behaviour_logp_T=np.full(5, np.nan, np.float32)) for t in group.trajectories]
    (batch,) = pack(assign_credit([dataclasses.replace(group, trajectories=tuple(lost))]), num_batches=1)
    learner = make_learner(make_lm)
    result = learner.update(batch, dataclasses.replace(SETTINGS, kl_stop=0.1, kl_step=0.1))
    assert result.loss == 0.0 and result.grad_norm == 0.0 and math.isnan(result.kl) and result.skipped == ""


# Save and load


def test_after_load_the_next_updates_are_bitwise_those_of_an_unbroken_run(make_lm, batches, tmp_path):
    unbroken = make_learner(make_lm)
    unbroken.update(batches[0], SETTINGS)
    unbroken.save(tmp_path / "learner")
    resumed = make_learner(make_lm, seed=5)
    resumed.load(tmp_path / "learner")
    assert_equal(weights_of(unbroken), weights_of(resumed))
    for batch in (batches[1], batches[0]):
        one, other = unbroken.update(batch, SETTINGS), resumed.update(batch, SETTINGS)
        assert (one.loss, one.grad_norm, one.kl) == (other.loss, other.grad_norm, other.kl)
    assert_equal(weights_of(unbroken), weights_of(resumed))


def test_a_resumption_takes_the_optimizer_settings_of_its_configuration(make_lm, batches, tmp_path):
    first = make_learner(make_lm)
    first.update(batches[0], SETTINGS)
    first.save(tmp_path)
    changed = OptimizerConfig(betas=(0.5, 0.6), eps=1e-15, weight_decay=0.0)
    second = LocalLearner(make_lm(1, "float32"), LearnerConfig(optimizer=changed))
    second.load(tmp_path)
    (group,) = second.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-15, 0.0)


def test_a_new_optimizer_forgets_the_moments(make_lm, batches):
    used, fresh = make_learner(make_lm), make_learner(make_lm)
    used.update(batches[0], dataclasses.replace(SETTINGS, lr=0.0))  # moments, but the same weights
    used.new_optimizer(OPTIMIZER)
    used.update(batches[1], SETTINGS)
    fresh.update(batches[1], SETTINGS)
    assert_equal(weights_of(used), weights_of(fresh))


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "wider"])
def test_a_state_that_cannot_be_read_is_an_error_with_the_folder(make_lm, tmp_path, damage):
    learner = make_learner(make_lm)
    learner.save(tmp_path)
    if damage == "missing":
        (tmp_path / ".metadata").unlink()
    if damage == "cut":
        path = tmp_path / "__0_0.distcp"
        path.write_bytes(path.read_bytes()[:100])
    if damage == "foreign":
        other = HybridLM(dataclasses.replace(learner.model_config, attn_type_list=(0,), num_hidden_layers=1))
        LocalLearner(other, LearnerConfig()).save(tmp_path)
    if damage == "wider":
        LocalLearner(HybridLM(dataclasses.replace(learner.model_config, hidden_size=16)), LearnerConfig()).save(
            tmp_path
        )
    with pytest.raises(CheckpointError, match=f"state in {tmp_path} cannot be read"):
        learner.load(tmp_path)


# Guards


@pytest.mark.parametrize(
    "guard, skipped", [({"kl_stop": 1e-3}, "kl_stop"), ({"kl_stop": 10.0}, ""), ({"kl_stop": 0.0}, "")]
)
def test_kl_stop_skips_and_leaves_everything_untouched(make_lm, batches, guard, skipped):
    learner, other = make_learner(make_lm), make_learner(make_lm)
    before = weights_of(learner)
    result = learner.update(batches[0], dataclasses.replace(SETTINGS, **guard))
    assert result.skipped == skipped and 1e-3 < result.kl < 10
    if skipped:
        assert_equal(before, weights_of(learner))
        learner.update(batches[1], SETTINGS)  # and the moments too: the next update is that of a fresh learner
        other.update(batches[1], SETTINGS)
        assert_equal(weights_of(learner), weights_of(other))
    else:
        assert any(not torch.equal(before[name], weight) for name, weight in weights_of(learner).items())


def test_kl_is_the_k3_mean_over_learnt_tokens(make_lm, batches):
    result = make_learner(make_lm).update(batches[0], SETTINGS)
    log_ratio = np.concatenate(
        [(logp - row.behaviour_logp_T)[row.mask_T] for row, logp in zip(batches[0].rows, result.logp_rows, strict=True)]
    ).astype(np.float64)
    assert result.kl == pytest.approx((np.exp(log_ratio) - 1 - log_ratio).mean(), rel=1e-5)
    assert float(result.metrics["ratio/mean"]) == pytest.approx(np.exp(log_ratio).mean(), rel=1e-5)
    assert float(result.metrics["ratio/max"]) == pytest.approx(np.exp(log_ratio).max(), rel=1e-5)


def test_kl_step_scales_the_learning_rate_and_not_the_loss(make_lm, batches):
    plain = make_learner(make_lm).update(batches[0], SETTINGS)
    braked = make_learner(make_lm)
    result = braked.update(batches[0], dataclasses.replace(SETTINGS, kl_step=plain.kl / 4))
    assert result.lr == pytest.approx(SETTINGS.lr / 4)
    assert (result.loss, result.grad_norm) == (plain.loss, plain.grad_norm)
    slow = make_learner(make_lm)
    slow.update(batches[0], dataclasses.replace(SETTINGS, lr=result.lr))
    assert_equal(weights_of(braked), weights_of(slow))


@pytest.mark.parametrize(
    "kl, kl_step, wanted", [(0.02, 0.01, 0.5), (0.005, 0.01, 1.0), (9.0, 0.0, 1.0), (math.nan, 0.01, 1.0)]
)
def test_the_rate_is_scaled_by_the_smaller_of_one_and_target_over_kl(kl, kl_step, wanted):
    assert guarded_lr(kl, UpdateSettings(lr=1.0, ratio_cap=3, kl_step=kl_step)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "loss, norm, kl, reason",
    [(1, 1, 0.1, ""), (math.nan, 1, 0, "nonfinite"), (1, math.inf, 0, "nonfinite"), (1, 1, 0.3, "kl_stop"),
     (math.nan, 1, 0.3, "nonfinite"), (1, 1, math.nan, "")],
)  # fmt: skip
def test_the_reason_to_skip(loss, norm, kl, reason):
    assert reason_to_skip(loss=loss, grad_norm=norm, kl=kl, settings=UpdateSettings(1.0, 3, kl_stop=0.2)) == reason


def test_an_update_that_is_not_finite_is_skipped_and_does_not_spoil_the_next(make_lm, batches):
    learner, other = make_learner(make_lm), make_learner(make_lm)
    before = weights_of(learner)
    row = batches[0].rows[0]
    advantage_T = np.where(row.mask_T, np.inf, 0).astype(np.float32)
    poisoned = dataclasses.replace(batches[0], rows=(dataclasses.replace(row, advantage_T=advantage_T),))
    assert learner.update(poisoned, SETTINGS).skipped == "nonfinite"
    assert_equal(before, weights_of(learner))
    learner.update(batches[1], SETTINGS)
    other.update(batches[1], SETTINGS)
    assert_equal(weights_of(learner), weights_of(other))


# Weights on their way to the samplers


def test_the_stream_of_weights_makes_another_model_the_same(make_lm, batches, tmp_path):
    learner = make_learner(make_lm)
    learner.update(batches[0], SETTINGS)
    streamed = make_lm(seed=9)
    load_weights(streamed, learner.weights())
    learner.export(tmp_path / "export")
    exported = load_pretrained(tmp_path / "export")
    tokens, borders = torch.arange(10), torch.tensor([0, 10])
    logits = [lm.logits(lm(tokens, torch.arange(10), borders)) for lm in (learner.lm, streamed, exported)]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_names_of_weights_are_the_checkpoints(make_lm):
    names = [name for name, _ in make_learner(make_lm).weights()]
    assert len(set(names)) == len(names)
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight",
        "lm_head.weight",
    } <= set(names)


def has_mismatch(result):
    names = {name for name in result.metrics if name.startswith("mismatch/")}
    assert len(names) in (0, 4)
    return bool(names)


def test_mismatch_is_only_measured_on_the_weights_last_published(make_lm, batches, tmp_path):
    learner = make_learner(make_lm)
    assert not has_mismatch(learner.update(batches[0], SETTINGS)), "nothing was published yet"
    list(learner.weights())
    stopped = dataclasses.replace(SETTINGS, kl_stop=1e-9)
    assert has_mismatch(learner.update(batches[0], stopped)), "a skipped update changes nothing"
    assert has_mismatch(learner.update(batches[0], SETTINGS))
    assert not has_mismatch(learner.update(batches[1], SETTINGS)), "the weights have moved"
    learner.save(tmp_path)
    list(learner.weights())
    learner.load(tmp_path)
    assert not has_mismatch(learner.update(batches[1], SETTINGS)), "loaded weights are not the published ones"


def test_mismatch_leaves_out_tokens_of_older_policies(make_lm, make_group):
    fresh, stale = (make_group(i, (1.0, 0.0), version=version) for i, version in enumerate((5, 4)))
    learner = make_learner(make_lm)

    def mismatch(groups):
        (batch,) = pack(assign_credit(groups), num_batches=1, version=5)
        list(learner.weights())
        metrics = learner.update(batch, dataclasses.replace(SETTINGS, lr=0.0)).metrics
        return metrics["mismatch/logp_abs_diff_mean"]

    assert float(mismatch([fresh, stale])) == pytest.approx(float(mismatch([fresh])), rel=1e-5)
    assert mismatch([stale]).count == 0


def test_a_sequence_that_got_new_weights_under_way_is_not_fresh():
    row = PackedRow(
        tokens_T=np.zeros(7, np.int64),
        positions_T=np.arange(7),
        cu_seqlens=np.array([0, 3, 7]),
        mask_T=np.array([0, 1, 1, 0, 1, 1, 1], bool),
        behaviour_logp_T=np.zeros(7, np.float32),
        advantage_T=np.zeros(7, np.float32),
        weight_T=np.zeros(7, np.float32),
        age_T=np.array([-1, 0, 0, -1, 1, 0, 0]),
        members=((0, 0), (0, 1)),
        share=1.0,
    )
    assert wholly_fresh(row).tolist() == [True] * 3 + [False] * 4


def test_new_weights_in_flight_have_a_mismatch_of_their_own(make_lm, make_group):
    """Of a stale sequence that the present weights went on with, their own tokens count there and nowhere else."""
    group = make_group(0, (1.0, 0.0), version=5, num_actions=4)
    mixed_T = np.where(np.arange(6) == 2, 4, group.trajectories[1].version_T)
    mixed = dataclasses.replace(group.trajectories[1], version_T=mixed_T)
    (batch,) = pack(
        assign_credit([dataclasses.replace(group, trajectories=(group.trajectories[0], mixed))]),
        num_batches=1,
        version=5,
    )
    learner = make_learner(make_lm)
    list(learner.weights())
    result = learner.update(batch, dataclasses.replace(SETTINGS, lr=0.0))
    (row,), (logp_T,) = batch.rows, result.logp_rows
    difference_T = np.abs(logp_T - row.behaviour_logp_T)
    name = "logp_abs_diff_mean"
    assert float(result.metrics[f"mismatch/{name}"]) == pytest.approx(difference_T[2:6].mean(), rel=1e-5)
    assert float(result.metrics[f"mismatch/in_flight_{name}"]) == pytest.approx(difference_T[9:12].mean(), rel=1e-5)
    r_T = logp_T[9:12] - row.behaviour_logp_T[9:12]
    assert float(result.metrics["mismatch/in_flight_kl"]) == pytest.approx((np.exp(r_T) - 1 - r_T).mean(), rel=1e-4)


def test_mismatch_of_a_faithful_sampler_is_rounding(make_lm, make_group):
    """Behaviour log-probabilities as the policy itself gives them, prompt by prompt."""
    learner = make_learner(make_lm)
    group = make_group(0, (1.0, 0.0))
    honest = []
    for trajectory in group.trajectories:
        tokens = torch.from_numpy(trajectory.token_ids_T)
        hidden = learner.lm(tokens, torch.arange(5), torch.tensor([0, 5]))
        logp = torch.log_softmax(learner.lm.logits(hidden[:-1]) / 0.7, -1).gather(1, tokens[1:, None])[:, 0]
        logp_T = np.concatenate([[0], logp.detach().numpy()]) * trajectory.action_mask_T
        honest.append(dataclasses.replace(trajectory, behaviour_logp_T=logp_T.astype(np.float32)))
    (batch,) = pack(assign_credit([dataclasses.replace(group, trajectories=tuple(honest))]), num_batches=1)
    list(learner.weights())
    metrics = learner.update(batch, SETTINGS).metrics
    assert float(metrics["mismatch/logp_abs_diff_max"]) < 1e-5
    assert 0 <= float(metrics["mismatch/kl"]) < 1e-10
    assert float(metrics["mismatch/prob_pearson"]) == pytest.approx(1, abs=1e-6)


def test_a_probe_compares_the_two_sides_on_the_prompt_and_the_first_actions(make_lm, make_group):
    learner = make_learner(make_lm)
    trajectory = make_group(0, (1.0,), num_actions=60).trajectories[0]
    tokens = torch.from_numpy(trajectory.token_ids_T)
    wanted = mismatch_by_kind(learner.lm, tokens[:34], 2)
    assert learner.probe(trajectory) == {f"mismatch/{kind}": value for kind, value in wanted.items()}
    assert wanted != mismatch_by_kind(learner.lm, tokens, 2)
    assert wanted != mismatch_by_kind(learner.lm, tokens[:34], 34)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"kind": "magic"}, "must be one of .*; got 'magic'"),
        ({"max_row_tokens": 0}, "max_row_tokens"),
        ({"lr": ()}, r"learner\.lr"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LearnerConfig(**values)


@pytest.mark.parametrize(
    "values", [{"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"eps": 0.0}, {"weight_decay": -1.0}]
)
def test_optimizer_settings_that_cannot_work_are_refused(values):
    with pytest.raises(ConfigError, match="optimizer"):
        OptimizerConfig(**values)
