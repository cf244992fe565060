"""Synchronous against asynchronous rollouts: steps per second, staleness, and who waits for whom.

    python benchmarks/async.py                 the fleet on a virtual clock and the driver alone: about three minutes
    python benchmarks/async.py --run           also the embedded default with a long tail, on this machine: ten more

On the virtual clock everything is real but the engines and the learner: the driver's service, pool, ledger and buffer
run as in training, against workers whose sequences end when their length says so. A worker has `SLOTS` slots, each
giving a token a tick; lengths are lognormal with the 99th percentile ten times the median, which is the window, too; an
update takes as long as the workers need for a step's tokens when no slot is ever idle, which is where overlap gains
most and a wrong schedule loses most. A step has four waves of sequences for every slot (`--groups-per-worker 16`).
`bound` is the time of the slower side alone: max(generation, learning).

The driver alone: trajectories of 4,096 tokens per second through take, credit, packing and metrics, in one process.

`--run` trains with one worker on one core and the learner on the other, synchronously and with staleness 1 and 2, with
a tail: the median answer is a tenth of the window. It also tells how far the learner is from what sequences in flight
were sampled with, with old states kept and computed anew. Results go to benchmarks/results/async.json.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import heapq
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from cispo.advantage import assign_credit, has_signal
from cispo.describe import describe
from cispo.packing import pack
from cispo.types import Group, Prompt, Score, StopReason, Trajectory, Verdict
from rollout.requests import Finished, GroupRequest
from rollout.service import Answers, Draw, RolloutService, first_answer
from rollout.station import Station
from rollout.worker_pool import RolloutConfig

RESULTS = Path(__file__).parent / "results" / "async.json"
SLOTS, GROUP_SIZE, MEDIAN, LONGEST = 64, 16, 1000, 10_000
SIGMA = float(np.log(10) / 2.326)  # of the logarithm: the 99th percentile is ten times the median
WORKERS = (8, 32, 128, 512)
STEPS, WARM_UP = 8, 4


class Clock:
    """Virtual time: the futures of the simulated workers' calls come true one event after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.until = float("inf")
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._ties), act))

    def wait_for(self, answers: Answers, seconds: float) -> set[Station]:
        """As `first_answer`, but until there is one or the learner is done (`until`)."""
        while answers.empty():
            if not self._events or self._events[0][0] > self.until:
                self.now = min(self.until, self._events[0][0]) if self._events else self.until
                return set()
            self.now, _, act = heapq.heappop(self._events)
            act()
        return first_answer(answers, 0)


class Worker:
    """A RolloutWorker whose engine is arithmetic: a sequence ends its length after it got a slot."""

    def __init__(self, name: str, clock: Clock, lengths: Callable[[GroupRequest], np.ndarray]) -> None:
        self.name = name
        self._clock, self._lengths = clock, lengths
        self._free_at = [0.0] * SLOTS  # a heap
        self._seq_ends: list[float] = []  # a heap
        self._loads: list[tuple[float, int]] = []
        self._ends: list[tuple[float, float, GroupRequest]] = []  # a heap of (end, begin, group)
        self.busy = 0.0

    def started(self) -> Future[int]:
        return self._answer(0)

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        return getattr(self, method)(*arguments)

    beside = call

    def restart(self) -> None:
        raise AssertionError("nobody dies here")

    stop = restart

    def load_weights(self, package: Any, version: int) -> Future[None]:
        self._loads.append((self._clock.now, version))
        return self._answer(None)

    def submit(self, requests: Sequence[GroupRequest]) -> Future[None]:
        for request in requests:
            begins, ends = [], []
            for length in self._lengths(request):
                begin = max(self._clock.now, heapq.heappop(self._free_at))
                begins.append(begin)
                ends.append(begin + float(length))
                heapq.heappush(self._free_at, ends[-1])
                heapq.heappush(self._seq_ends, ends[-1])
                self.busy += float(length)
            heapq.heappush(self._ends, (max(ends), request.index, min(begins), request))
        return self._answer(None)

    def advance(self, seconds: float) -> Future[Finished]:
        future: Future[Finished] = Future()

        def report() -> None:
            groups = []
            while self._ends and self._ends[0][0] <= self._clock.now:
                _, _, begin, request = heapq.heappop(self._ends)
                groups.append(self._group(request, begin))
            while self._seq_ends and self._seq_ends[0] <= self._clock.now:
                heapq.heappop(self._seq_ends)
            future.set_result(Finished(tuple(groups), num_steps=1, num_left=len(self._seq_ends)))

        soonest = self._ends[0][0] if self._ends else self._clock.now
        self._clock.at(min(max(self._clock.now, soonest), self._clock.now + seconds), report)
        return future

    def _group(self, request: GroupRequest, begin: float) -> Group:
        version = self._loads[bisect.bisect_right(self._loads, (begin, 1 << 60)) - 1][1]
        trajectory = Trajectory(
            token_ids_T=np.zeros(2, dtype=np.int64),
            action_mask_T=np.array([False, True]),
            behaviour_logp_T=np.zeros(2, dtype=np.float32),
            version_T=np.array([-1, version]),
            stop_reason=StopReason.STOP,
        )
        score = Score(1.0, True, {}, Verdict.CORRECT)
        return Group(request.index, request.prompt, (trajectory,), (score,) * 2)

    def _answer(self, value: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(value)
        return future


PROMPT = Prompt("p", "chain", "x", (1,), "y")


class Prompts:
    """An endless stream of one prompt."""

    def next(self) -> Prompt:
        return PROMPT

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def lengths_of(request: GroupRequest) -> np.ndarray:
    """Ticks of each member of a group: the same in every run, whoever samples it."""
    random = np.random.default_rng(request.index)
    return np.minimum(MEDIAN * np.exp(SIGMA * random.standard_normal(GROUP_SIZE)), LONGEST)


def simulate(num_workers: int, staleness: int, groups_per_worker: int) -> dict[str, Any]:
    """A run of `STEPS` steps after `WARM_UP`; times in ticks per step."""
    clock = Clock()
    workers = [Worker(f"rollout-{i}", clock, lengths_of) for i in range(num_workers)]
    groups_per_step = groups_per_worker * num_workers
    requests = [GroupRequest(i, PROMPT, GROUP_SIZE, 0, LONGEST) for i in range(1000)]
    mean = float(np.mean([lengths_of(request) for request in requests]))
    learning = groups_per_worker * GROUP_SIZE * mean / SLOTS
    config = RolloutConfig(in_flight=SLOTS + GROUP_SIZE, draw_limit=1.0, advance_seconds=MEDIAN / 10)
    draw = Draw(seed=1, group_size=GROUP_SIZE, max_new_tokens=LONGEST, max_staleness=staleness)
    service = RolloutService(workers, Prompts(), draw, config, wait_for=clock.wait_for)
    waited, ages, began = 0.0, [], (0.0, 0.0)
    service.load_weights("package", 0)
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            began, waited, ages = (clock.now, sum(worker.busy for worker in workers)), 0.0, []
        asked = clock.now
        harvest = service.take(groups_per_step, oldest_version=step - staleness, keep=lambda group: True)
        assert len(harvest.groups) == groups_per_step and not harvest.dropped, harvest.dropped
        waited += clock.now - asked
        ages += [step - group.oldest_version for group in harvest.groups]
        clock.until = clock.now + learning
        while clock.now < clock.until:
            service.turn()
        clock.until = float("inf")  # loading new weights takes no time
        service.load_weights("package", step + 1)
    seconds = clock.now - began[0]
    busy = sum(worker.busy for worker in workers) - began[1]
    generation = busy / SLOTS / num_workers / STEPS
    return {
        "num_workers": num_workers,
        "staleness": staleness,
        "step": seconds / STEPS,
        "bound": max(generation, learning),
        "worker_idle": max(0.0, 1 - busy / (seconds * num_workers * SLOTS)),
        "learner_idle": waited / seconds,
        "staleness_mean": statistics.mean(ages),
        "staleness_max": max(ages),
    }


def fleet(groups_per_worker: int) -> list[dict[str, Any]]:
    """Every size and staleness; each with its speed-up over the synchronous run of that size."""
    rows = []
    for num_workers in WORKERS:
        for staleness in (0, 1, 2, 4) if num_workers <= 32 else (0, 2):
            row = simulate(num_workers, staleness, groups_per_worker)
            if staleness == 0:
                synchronous = row["step"]
            row |= {"speed_up": synchronous / row["step"], "of_bound": row["bound"] / row["step"]}
            rows.append(row)
            print(
                f"{num_workers:4} workers, staleness {staleness}: {row['speed_up']:.2f} times synchronous, "
                f"{row['of_bound']:.0%} of the bound; idle: workers {row['worker_idle']:.0%}, learner "
                f"{row['learner_idle']:.0%}; staleness {row['staleness_mean']:.2f}, at most {row['staleness_max']}",
                flush=True,
            )
    return rows


class Ready:
    """A worker that has every group ready when it is asked: what remains is the driver."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: list[GroupRequest] = []
        random = np.random.default_rng(0)
        tokens = 4096
        mask = np.arange(tokens) >= 64
        self._trajectories = [
            Trajectory(
                token_ids_T=random.integers(0, 1000, tokens),
                action_mask_T=mask.copy(),
                behaviour_logp_T=np.where(mask, -1.0, 0.0).astype(np.float32),
                version_T=np.where(mask, 0, -1),
                stop_reason=StopReason.STOP,
            )
            for _ in range(2 * GROUP_SIZE)
        ]
        rewards = [float(i % 2) for i in range(GROUP_SIZE)]
        self._scores = tuple(Score(reward, reward > 0, {"answer": reward}, Verdict.CORRECT) for reward in rewards)

    def started(self) -> Future[int]:
        return self.call("pid")

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(getattr(self, method)(*arguments))
        return future

    beside = call

    def pid(self) -> int:
        return 0

    def restart(self) -> None:
        raise AssertionError("nobody dies here")

    stop = restart

    def load_weights(self, package: Any, version: int) -> None:
        pass

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        self._queue += requests

    def advance(self, seconds: float) -> Finished:
        queue, self._queue = self._queue, []
        return Finished(tuple(self._group(request) for request in queue), num_steps=1)

    def _group(self, request: GroupRequest) -> Group:
        """New objects, as they would come from another process, over arrays that take turns."""
        first = request.index % 2 * GROUP_SIZE
        mine = self._trajectories[first : first + GROUP_SIZE]
        return Group(request.index, request.prompt, tuple(map(dataclasses.replace, mine)), self._scores)


def driver_alone(num_steps: int = 5, groups_per_step: int = 128) -> dict[str, Any]:
    """Trajectories per second and CPU second through everything that the driver does with them."""
    draw = Draw(seed=1, group_size=GROUP_SIZE, max_new_tokens=4096, max_staleness=0)
    service = RolloutService([Ready(f"rollout-{i}") for i in range(8)], Prompts(), draw, RolloutConfig())
    service.load_weights("package", 0)
    walls, cpus = [], []
    for _ in range(num_steps):
        wall, cpu = time.perf_counter(), time.process_time()
        harvest = service.take(groups_per_step, oldest_version=0, keep=has_signal)
        batches = pack(assign_credit(harvest.groups), num_batches=16, max_row_tokens=65536, num_ranks=8)
        describe(harvest, batches, [])
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    num = groups_per_step * GROUP_SIZE
    result = {"per_second": num / statistics.median(walls), "per_cpu_second": num / statistics.median(cpus)}
    print(f"the driver alone: {result['per_second']:.0f} trajectories of 4,096 tokens a second", flush=True)
    return result


OVERRIDES = (
    "steps=12",
    "eval_every=0",
    "save_every=0",
    "cluster.num_workers=1",
    "tracking.console=false",
    "tracking.rollouts_per_step=1",
    "evaluation.num_prompts=8",
    "sft.steps=40",
    "sampling.max_new_tokens=480",
    "engine.max_length=512",
)


IN_FLIGHT = ("mismatch/logp_abs_diff_mean", "mismatch/in_flight_logp_abs_diff_mean", "mismatch/in_flight_kl")


def embedded() -> list[dict[str, Any]]:
    """The embedded default with a window thirty times its answers, early in training when many run on to its end."""
    from launch.compose import compose
    from launch.train import run_training

    rows = []
    for staleness, states in ((0, "keep"), (1, "keep"), (2, "keep"), (2, "recompute")):
        own = (f"max_staleness={staleness}", f"engine.stale_states={states}")
        with tempfile.TemporaryDirectory() as folder:
            run = run_training(compose([*OVERRIDES, *own, "name=run", f"runs_folder={folder}"]))
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][3:]
        row = {
            "staleness": staleness,
            "stale_states": states,
            "step_seconds": statistics.median(line["perf/step_seconds"] for line in lines),
            "update_seconds": statistics.median(line["timing_s/update"] for line in lines),
            "worker_idle": statistics.median(line["perf/rollout_idle_fraction"] for line in lines),
            "learner_waits": statistics.median(line["timing_s/rollout"] for line in lines),
            "staleness_mean": statistics.mean(line["staleness/mean"] for line in lines),
            "length_p50": statistics.median(line["response_length/p50"] for line in lines),
            "length_p99": statistics.median(line["response_length/p99"] for line in lines),
            **{
                name: statistics.mean(values)
                for name in IN_FLIGHT
                if (values := [line[name] for line in lines if name in line])
            },
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="also train the embedded default three times")
    parser.add_argument("--groups-per-worker", type=int, default=16, help="groups of a step per worker")
    arguments = parser.parse_args()
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    result |= {"machine": machine(), "fleet": fleet(arguments.groups_per_worker), "driver": driver_alone()}
    if arguments.run:  # else what an earlier one found is kept
        result["embedded"] = embedded()
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
