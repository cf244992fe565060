"""A short campaign of kills and stalls; the long one is benchmarks/faults.py."""

from tests.faults.campaign import Campaign, check_prompts

OVERRIDES = (
    "steps=12",
    "groups_per_step=4",
    "group_size=4",
    "updates_per_step=2",
    "max_staleness=1",
    "max_barren_steps=1000",
    "save_every=1",
    "eval_every=0",
    "sft.steps=30",
    "sft.batch_size=16",
    "evaluation.num_prompts=4",
    "engine.num_slots=8",
    "tracking.console=false",
    "tracking.rollouts_per_step=0",
    "cluster.num_workers=2",
    "cluster.learner_restarts=1000",
    "cluster.update_seconds=30",
    "rollout.deadline_seconds=15",
    "rollout.max_restarts=1000",
)


def test_whoever_is_killed_every_prompt_is_trained_on_once(tmp_path):
    folder = tmp_path / "run"
    campaign = Campaign(
        [*OVERRIDES, "name=run", f"runs_folder={tmp_path}"], folder, seed=3, num_faults=6, deadline_seconds=280
    )
    campaign.run()
    assert campaign.done.total() >= 3, "the run ended before it was attacked"
    assert check_prompts(folder) > 0
    for sentence in campaign.sentences:
        assert sentence.startswith("cispo: ") or "--resume" in sentence, sentence
