"""A short campaign of kills and stalls; the long one is benchmarks/faults.py."""

import pytest

from tests.faults.campaign import Campaign, check_prompts


@pytest.mark.timeout(600)  # each kill of the learner or the driver costs a start of everything
def test_whoever_is_killed_every_prompt_is_trained_on_once(tmp_path):
    campaign = Campaign(tmp_path / "run", num_steps=8, seed=3, num_faults=4, pause_seconds=2.0, deadline_seconds=560)
    campaign.run()
    assert campaign.done.total() >= 3, "the run ended before it was attacked"
    assert check_prompts(tmp_path / "run") == 32
    for sentence in campaign.sentences:
        assert sentence.startswith("cispo: ") or "--resume" in sentence, sentence
