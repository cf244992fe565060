"""A seeded campaign of kills and stalls against a real run, and what must be true afterwards.

The run is `cispo train` in a session of its own, asynchronous, over Ray. Every little while one of its processes is
killed or stopped: a rollout worker, the learner, a grader, a sandbox cell, the driver, or everything at once. When the
driver ends before the run does, it must have been killed or have said in one sentence why; then the run is resumed, as
a person would. In the end every prompt that was drawn has been trained on once or is still in the last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rollout.ledger_file import read_ledger
from tests.launch.processes import below, command_line

VICTIMS = {
    "worker": "ray::rollout_",
    "learner": "ray::learner_",
    "grader": "rewards.grader_worker",
    "cell": "bwrap",
    "driver": "launch.cli",
    "everything": "",
}
"""What the command line of a process contains, by the kind of process."""

GROUPS_PER_STEP = 4

REWARD = '''
def checksum(prompt, text, reference, **info):
    """Beside the verifier's: differs within almost every group, so that every step has something to learn from."""
    return {"checksum": sum(text.encode()) % 7 / 7}
'''

OVERRIDES = (
    f"groups_per_step={GROUPS_PER_STEP}",
    "group_size=4",
    "updates_per_step=2",
    "max_staleness=1",
    "save_every=1",
    "eval_every=0",
    "sft.steps=20",
    "sft.batch_size=16",
    "evaluation.num_prompts=4",
    "engine.num_slots=8",
    "tracking.console=false",
    "tracking.rollouts_per_step=0",
    "cluster.num_workers=2",
    "cluster.learner_restarts=1000",
    "cluster.update_seconds=20",
    "rollout.deadline_seconds=10",
    "rollout.max_restarts=1000",
    "rollout.draw_limit=100",
)
"""Of a run with everything that can be killed: processes of workers and learner, graders, and programs in cells."""

WEIGHTS = (8, 4, 8, 8, 1, 1)
"""How often each kind is chosen; the learner's and the last two cost a start of everything."""

STALLS = {"worker": 13.0, "learner": 23.0, "grader": 0.0, "cell": 0.0}
"""Kinds whose silence has a deadline of its own, and for how long nothing else is attacked then, or a kill that follows
would hide whether the deadline is kept. A stopped driver is a paused run and nothing else.
"""

SAYS_WHO = re.compile(r"waited [\d.]+ s for|died")
"""What the sentence holds with which a driver ends by itself."""


@dataclass
class Campaign:
    """One run under attack.

    Attributes:
        folder: of the run; beside it are put its reward and its log.
        num_steps: of the run.
        seed: fixes who is attacked, how, and when; not what the machine makes of it.
        num_faults: how many attacks.
        pause_seconds: between two of them, at most.
    """

    folder: Path
    num_steps: int
    seed: int
    num_faults: int
    pause_seconds: float = 4.0
    deadline_seconds: float = 1800.0
    done: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    _calm_until: int = 1
    _quiet_until: float = 0.0

    def run(self) -> None:
        """Attack until there were enough faults, then let the run end. Raises AssertionError if it cannot."""
        chance = random.Random(self.seed)
        end = time.monotonic() + self.deadline_seconds
        process = self._start(["train", *self._overrides()])
        try:
            while True:
                assert time.monotonic() < end, f"after {dict(self.done)} the run is not at its end; log: {self._log()}"
                if process.poll() is None:
                    self._wait_or_attack(process, chance)
                elif process.returncode == 0:
                    return
                else:
                    process = self._go_on(process)
        finally:
            _kill_session(process.pid)

    def _wait_or_attack(self, process: subprocess.Popen[bytes], chance: random.Random) -> None:
        try:
            process.wait(timeout=chance.uniform(0.2, self.pause_seconds))
        except subprocess.TimeoutExpired:
            is_calm = self._num_steps() < self._calm_until or time.monotonic() < self._quiet_until
            if self.done.total() < self.num_faults and not is_calm:
                self._attack(process.pid, chance)

    def _attack(self, driver: int, chance: random.Random) -> None:
        kind = chance.choices(list(VICTIMS), WEIGHTS)[0]
        is_stall = kind in STALLS and chance.random() < 0.3
        victims = [pid for pid in below(driver) if VICTIMS[kind] in command_line(pid)]
        if kind == "driver":
            victims = [driver]
        elif kind != "everything":
            victims = [chance.choice(victims)] if victims else []
        for victim in victims:
            _signal(victim, signal.SIGSTOP if is_stall else signal.SIGKILL)
        if victims:
            self.done[f"{kind} {'stalled' if is_stall else 'killed'}"] += 1
            self._quiet_until = time.monotonic() + (STALLS[kind] if is_stall else 0.0)

    def _num_steps(self) -> int:
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def _go_on(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Resume what ended before its time; a driver that ended by itself must have said why."""
        if process.returncode > 0:
            self.sentences.append(self._log().strip().splitlines()[-1])
            assert "Traceback" not in self._log(), self._log()
            assert SAYS_WHO.search(self._log()), f"nobody reads who waited for whom: {self._log()}"
        _kill_session(process.pid)
        # It is left alone until a step is done, or a run that is killed while it starts gets nowhere.
        self._calm_until = self._num_steps() + 1
        has_begun = (self.folder / "config.yaml").exists()
        return self._start(["train", "--resume", str(self.folder)] if has_begun else ["train", *self._overrides()])

    def _overrides(self) -> list[str]:
        reward = self.folder.parent / "checksum.py"
        reward.write_text(REWARD)
        own = [f"steps={self.num_steps}", f"name={self.folder.name}", f"runs_folder={self.folder.parent}"]
        return [*OVERRIDES, *own, f"rewards.custom={reward}:checksum"]

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        log = self.folder.parent / "campaign.log"
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "launch.cli", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                env=environment,
            )

    def _log(self) -> str:
        return (self.folder.parent / "campaign.log").read_text(errors="replace")


def check_prompts(folder: Path) -> int:
    """Raise AssertionError unless every drawn prompt was taken once or is untaken; returns how many were trained on."""
    last = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))
    cursor, entries = read_ledger(folder / "checkpoints" / f"step_{last}" / "rollouts")
    trained: Counter[str] = Counter()
    for path in (folder / "rollouts").glob("step_*.jsonl"):
        trained.update({json.loads(line)["prompt_id"] for line in path.read_text().splitlines()})
    twice = [prompt for prompt, count in trained.items() if count > 1]
    assert not twice, f"trained on twice: {twice}"
    untaken = {entry.prompt.id for entry in entries}
    assert not untaken & trained.keys(), f"trained on and still to be sampled: {untaken & trained.keys()}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    drawn = [int(line["groups/drawn"]) for line in lines if "groups/drawn" in line]
    assert len(drawn) == last, f"{len(drawn)} steps have metrics, and there were {last}"
    unused = [line["step"] for line in lines if line.get("groups/failed_fraction") or line.get("groups/stale_fraction")]
    assert not unused, f"groups failed or grew too old at the steps {unused}"
    num_flat = sum(drawn) - GROUPS_PER_STEP * last
    assert len(trained) == GROUPS_PER_STEP * last, f"{last} steps trained on {len(trained)} prompts"
    lost = cursor["next_index"] - len(untaken) - len(trained) - num_flat
    assert not lost, f"{lost} of {cursor['next_index']} prompts were lost (or, if negative, taken twice)"
    return len(trained)


def _signal(pid: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, which)


def _kill_session(pid: int) -> None:
    """End whatever a driver left behind; Ray's own processes have its session, too."""
    for other in [other for other in below(pid) if other != pid]:
        _signal(other, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
