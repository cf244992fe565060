"""What the embedded default reaches, seed by seed, and a control that shows that rewards are what teaches it.

    python benchmarks/embedded.py                     seeds 1, 2, 3 and the control of seed 1 (about 20 minutes)
    python benchmarks/embedded.py --seeds 1 --no-control

The control permutes the scores within every group before credit is assigned: same prompts, same share of right answers,
same number of updates, but no relation between an answer and its reward. Its accuracy must stay flat.

Targets: over all tasks sampled accuracy rises by at least 40 points to at least 90 %, greedy by at least 30 to at least
95 %; cold start and RL take at most 6 minutes together. Writes benchmarks/results/embedded.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import machine

from cispo.types import Group, Harvest
from launch.compose import compose
from launch.train import run_training
from rollout.seeding import stable_rng
from rollout.service import RolloutService

RESULTS = Path(__file__).parent / "results" / "embedded.json"


class ShuffledRewards:
    """A RolloutService whose groups have their scores permuted; evaluation is left as it is."""

    def __init__(self, service: RolloutService) -> None:
        self._service = service

    def take(self, num_groups: int, *, oldest_version: int, keep: Callable[[Group], bool]) -> Harvest:
        """A harvest in which who got which score is chance."""
        harvest = self._service.take(num_groups, oldest_version=oldest_version, keep=keep)
        return dataclasses.replace(harvest, groups=tuple(_shuffled(group) for group in harvest.groups))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


def _shuffled(group: Group) -> Group:
    scores = list(group.scores)
    stable_rng("shuffled rewards", group.index).shuffle(scores)
    return dataclasses.replace(group, scores=tuple(scores))


def run(seed: int, folder: Path, overrides: Sequence[str], *, shuffled: bool) -> dict[str, Any]:
    """One whole run; what its summary says, its learning curve, and how far sampler and learner ever were apart."""
    name = f"seed-{seed}{'-shuffled' if shuffled else ''}"
    config = compose([f"seed={seed}", f"name={name}", f"runs_folder={folder}", *overrides])
    run_folder = run_training(config, wrap=ShuffledRewards if shuffled else lambda service: service)
    summary = json.loads((run_folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    curve = {
        kind: [[line["step"], round(line[key], 4)] for line in lines if key in line]
        for kind, key in (("sampled", f"eval/all/mean@{config.evaluation.num_samples}"), ("greedy", "eval/all/greedy"))
    }
    mismatch = max(line.get("mismatch/logp_abs_diff_max", 0.0) for line in lines)
    return summary | {
        "shuffled_rewards": shuffled,
        "curve": curve,
        "largest_logp_difference": mismatch,
    }


def judge(result: dict[str, Any]) -> str:
    """One line for people, with the targets that were missed."""
    first, last = result["eval"]["first"], result["eval"]["last"]
    sampled, greedy = (last[kind]["all"] for kind in ("sampled", "greedy"))
    seconds = result["seconds"]["sft"] + result["seconds"]["rl"]
    rules = {
        "sampled rises by 40 points": sampled - first["sampled"]["all"] >= 0.40,
        "sampled reaches .90": sampled >= 0.90,
        "greedy rises by 30 points": greedy - first["greedy"]["all"] >= 0.30,
        "greedy reaches .95": greedy >= 0.95,
        "at most 360 s": seconds <= 360,
    }
    missed = [rule for rule, held in rules.items() if not held]
    verdict = "control" if result["shuffled_rewards"] else ("all targets" if not missed else f"MISSED: {missed}")
    return (
        f"seed {result['seed']}: sampled {first['sampled']['all']:.3f} -> {sampled:.3f}, greedy "
        f"{first['greedy']['all']:.3f} -> {greedy:.3f}, cold start and RL {seconds:.0f} s  [{verdict}]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--no-control", action="store_true", help="leave out the run with shuffled rewards")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    plan = [(seed, False) for seed in options.seeds] + ([] if options.no_control else [(options.seeds[0], True)])
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed, shuffled in plan:
            results.append(run(seed, Path(folder), options.overrides, shuffled=shuffled))
            print(judge(results[-1]), flush=True)
            options.output.write_text(json.dumps({"machine": machine(), "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
