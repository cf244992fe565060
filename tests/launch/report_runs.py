"""Small runs made by hand for the tests of the report, with text that would like to be more than text."""

from launch.trackers import JsonlTracker

HOSTILE = (
    "</script><script>document.title='owned'</script><!-- <img src=x onerror=document.title='owned'> {{data}} "
    "\u2028\u202eevil\u0000\u001b[31m\ud800"
)


def trace(number=0, tokens=("7", "+", "</think>", HOSTILE), **changes):
    """A record as cispo.records makes it."""
    return {
        "group": number, "member": 0, "prompt_id": f"p/{number}", "task": "chain", "prompt": f"{HOSTILE}=",
        "text": "".join(tokens), "tokens": list(tokens), "ids": list(range(len(tokens))),
        "logp": [-0.12345] * len(tokens), "ratio": [1.23456] * len(tokens), "mean_ratio": 1.23456, "reward": 1.0,
        "parts": {HOSTILE: 1.0}, "verdict": "correct", "note": HOSTILE, "correct": True, "advantage": 0.5,
        "version": 0, "versions": [[0, 0]], "stop_reason": "stop", "num_tokens": len(tokens), "observations": [],
    } | changes  # fmt: skip


def write_run(folder, *, records=None, config="ratio_cap: 3.0\n"):
    """Three steps of four trajectories, or those of `records(step)`."""
    tracker = JsonlTracker(folder)
    (folder / "config.yaml").write_text(f"name: '{folder.name}'\n{config}")
    tracker.log(0, {"eval/chain/mean@4": 0.2, "eval/program/mean@4": 0.4, "eval/chain/greedy": 0.5})
    for step in (1, 2, 3):
        tracker.log(
            step,
            {
                "reward/mean": step / 3, "ratio/max": float("nan"), "timing_s/rollout": 1.0, "timing_s/update": 0.5,
                "response_length/p50": 4.0, "verdict/correct_fraction": 0.5, "ratio/mean": 1.0, HOSTILE: 1.0,
                "mismatch/kl": 1e-9,
            },
        )  # fmt: skip
        made = [trace(number, num_tokens=step) for number in range(4)] if records is None else records(step)
        tracker.rollouts(step, made)
    tracker.log(3, {"eval/chain/mean@4": 0.8, "eval/program/mean@4": 1.0})
    tracker.finish({"seed": 1, "seconds": {"total": 12.0}, "tokens": {"generated": 30, "trained": 20}})
    return folder
