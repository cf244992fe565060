"""A short campaign of kills and stalls; the long one is benchmarks/faults.py."""

from tests.faults.campaign import Campaign, check_prompts


def test_whoever_is_killed_every_prompt_is_trained_on_once(tmp_path):
    campaign = Campaign(tmp_path / "run", num_steps=10, seed=3, num_faults=5, pause_seconds=2.0, deadline_seconds=280)
    campaign.run()
    assert campaign.done.total() >= 3, "the run ended before it was attacked"
    assert check_prompts(tmp_path / "run") == 40
    for sentence in campaign.sentences:
        assert sentence.startswith("cispo: ") or "--resume" in sentence, sentence
