"""Sampling and learning are one numerics: the learner finds the log-probabilities that the engine sampled with."""

import json

from launch.cli import main
from model.mismatch import KINDS
from rollout.engine import HybridEngine


def test_the_learner_recomputes_the_behaviour_log_probabilities_of_every_token(tmp_path, small):
    """With one update per step every token that is learnt from is fresh: sampled by the weights that now learn.

    Several sequences of different lengths share a packed row and a batch of slots, chunked here and recurrent there.
    """
    more = ("name=a", "updates_per_step=1", "steps=4", "sft.steps=25", "group_size=8", "cluster.num_workers=1")
    window = ("sampling.max_new_tokens=40", "engine.max_length=64", "engine.num_slots=13", "learner.lr=0.003")
    assert main(["train", *small(tmp_path, *more, *window)]) == 0
    steps = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()][1:]
    assert len(steps) == 4
    evaluated = [step for step in steps if "mismatch/head" in step]
    assert evaluated and all(0 <= step[f"mismatch/{kind}"] < 2e-6 for step in evaluated for kind in KINDS)
    assert all(0 < step["mismatch/eval_logp_abs_diff_mean"] < 1e-5 for step in evaluated)
    for step in steps:
        assert step["tokens/trained"] > 100
        assert step["mismatch/logp_abs_diff_max"] < 1e-4
        assert step["mismatch/logp_abs_diff_mean"] < 1e-5
        assert abs(step["ratio/max"] - 1) < 1e-4, "every token counts in the ratio, so every one was compared"
        assert step["mismatch/prob_pearson"] > 1 - 1e-9
    assert all(later["actor/grad_norm"] > 0 for later in steps), "the weights moved, and the workers followed"


def test_workers_with_other_weights_raise_an_alarm_although_they_are_always_ahead(tmp_path, small, monkeypatch):
    """Nothing that such a run trains on was sampled with the weights that learn: only the evaluation can tell."""
    load = HybridEngine.load_weights

    def load_wrongly(engine, weights, version):
        load(engine, ((name, tensor * 1.5 if "lm_head" in name else tensor) for name, tensor in weights), version)

    monkeypatch.setattr(HybridEngine, "load_weights", load_wrongly)
    more = ("name=a", "max_staleness=1", "steps=3", "eval_every=1", "sync.canary_tokens=0", "cluster.num_workers=1")
    assert main(["train", *small(tmp_path, *more, "sampling.max_new_tokens=24", "engine.max_length=64")]) == 0
    last = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.get("mismatch/kl") is None, "some token was sampled with the weights that learn"
    assert last["mismatch/eval_logp_abs_diff_mean"] > 0.03 and last["alarm/mismatch_logp"] == 1
