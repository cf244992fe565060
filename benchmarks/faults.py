"""A hundred kills and stalls against one run: what they cost, and that no prompt was lost or trained on twice.

    python benchmarks/faults.py                            about half an hour on two cores
    python benchmarks/faults.py --faults 20 --seed 7       a look

The campaign of tests/faults/campaign.py: the seed fixes who is attacked, how and when. The results go to
benchmarks/results/faults.json; the script fails if a prompt was lost, or if the run ended with a traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the campaign, which is a part of the tests

from tests.faults.campaign import Campaign, check_prompts

RESULTS = Path(__file__).parent / "results" / "faults.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        campaign = Campaign(
            folder,
            num_steps=3 * arguments.faults,
            seed=arguments.seed,
            num_faults=arguments.faults,
            pause_seconds=2.0,
            deadline_seconds=120.0 * arguments.faults,
        )
        campaign.run()
        trained = check_prompts(folder)
    result = {
        "machine": machine(),
        "seed": arguments.seed,
        "faults": dict(campaign.done),
        "prompts_trained": trained,
        "drivers_that_ended": sorted(set(campaign.sentences)),
        "minutes": (time.monotonic() - begin) / 60,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
