"""Fail unless a run's held-out accuracy, sampled and greedy, rose by at least 15 points over all tasks."""

import json
import sys
from pathlib import Path

LEAST = 0.15

evaluations = json.loads(Path(sys.argv[1]).read_text())["eval"]
for kind in ("sampled", "greedy"):
    first, last = evaluations["first"][kind]["all"], evaluations["last"][kind]["all"]
    print(f"held-out {kind} accuracy: {first:.3f} -> {last:.3f}")
    if last - first < LEAST:
        sys.exit(f"the {kind} accuracy of the short run must rise by at least {LEAST}, but rose by {last - first:.3f}")
