"""One run from its configuration to its folder: cold start, the loop, export, summary and report."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cispo.checkpoint import FolderCheckpoints
from cispo.evaluate import HeldOutEvaluator, guess_accuracy, probe_of
from cispo.protocols import RolloutSource
from cispo.sft import cold_start
from cispo.stop import RunStopped, StopRequest
from cispo.trainer import Parts, train
from cispo.types import Progress
from configs.schema import RunConfig
from configs.strict import to_dict
from launch import build
from launch.actors import Handle
from launch.attempts import attempt, code_version
from launch.build import Data
from launch.cluster import Place, cluster, wait_until_started
from launch.fleet_size import FleetSize, forget_wish, worker_name
from launch.learner_ranks import LearnerDied, LearnerRanks, RankHost
from launch.plan import lines
from launch.report import write_report
from launch.run_folder import check_folder, one_driver, resume_hint, saved_config
from launch.sandbox_actors import SandboxActors, shared_sandboxes
from launch.start_checks import check_start
from launch.stop_signals import stop_on_signals
from launch.summary import summarise
from launch.trackers import Trackers, open_trackers
from launch.weight_sync import VerifiedSync
from rollout.service import Draw, RolloutService
from rollout.worker_pool import WorkerPool

log = logging.getLogger(__name__)


Wrap = Callable[[RolloutService], RolloutSource]
MakeWorker = Callable[[str], Handle]


@dataclass(frozen=True)
class Placed:
    """The parts of a run that live in places of their own, and the way to another worker."""

    learner: LearnerRanks
    workers: list[Handle]
    make_worker: MakeWorker


def run_training(
    config: RunConfig, *, resume: bool = False, sft_only: bool = False, wrap: Wrap = lambda service: service
) -> Path:
    """Train, and return the folder of the run. A learner that dies costs what it learnt since the last checkpoint.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in the run's folder.
        sft_only: stop after the cold start.
        wrap: puts something between the workers and the loop, such as a control that shuffles rewards.
    """
    folder = Path(config.runs_folder) / config.name
    checkpoints = FolderCheckpoints(folder / "checkpoints", config.checkpoints)
    deaths_at: list[list[int]] = []
    stop = StopRequest()  # one for all tries: a wish is not forgotten because a learner dies
    while True:
        try:
            return _run(config, resume=resume, sft_only=sft_only, wrap=wrap, stop=stop, is_again=bool(deaths_at))
        except LearnerDied as error:
            deaths_at.append(checkpoints.steps())
            if stop.is_asked and deaths_at[-1]:
                raise RunStopped(
                    f"stopped without a new checkpoint, because {stop.reason} and then the learner died ({error}) The "
                    f"newest is of step {deaths_at[-1][-1]}."
                ) from error
            deaths = deaths_at.count(deaths_at[-1])
            if not deaths_at[-1] or deaths > config.cluster.learner_restarts:
                raise
            log.warning(
                "%s Everything starts again from step %d (%d of cluster.learner_restarts=%d without a new checkpoint).",
                error,
                deaths_at[-1][-1],
                deaths,
                config.cluster.learner_restarts,
            )
            resume = True


def _run(config: RunConfig, *, resume: bool, sft_only: bool, wrap: Wrap, stop: StopRequest, is_again: bool) -> Path:
    """One try of `run_training`; `is_again` says that it is not the first of this process."""
    folder = Path(config.runs_folder) / config.name
    checkpoints = FolderCheckpoints(folder / "checkpoints", config.checkpoints)
    check_folder(folder, checkpoints, resume=resume)
    start = check_start(config)
    data, guess = start.data, guess_accuracy(start.data.held_out)
    plan = [*lines(start.plan), *explain_guess(guess)]
    begin = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(one_driver(folder))
        if not is_again:
            forget_wish(folder)
        stack.enter_context(saved_config(config, plan, folder, checkpoints))
        stack.enter_context(resume_hint(folder, checkpoints))
        stack.enter_context(attempt(folder, max(checkpoints.steps(), default=0)))
        tracker = stack.enter_context(open_run_trackers(config, folder, checkpoints))
        for line in plan:
            log.info(line)
        place = stack.enter_context(cluster(config.cluster))
        sandboxes = stack.enter_context(shared_sandboxes(config))
        parts = make_parts(config, data, place_parts(config, place, sandboxes), checkpoints, tracker, wrap)
        stack.callback(parts.rollouts.close)
        if not sft_only:  # a cold start alone has nothing to go on from
            stack.enter_context(stop_on_signals(stop))
            parts = dataclasses.replace(parts, stop=stop)
        if not checkpoints.steps():
            warm_up(config, data, parts)
            checkpoints.save(Progress(), parts.learner, parts.rollouts)
        if not sft_only:
            train(config, config.learner, parts, temperature=config.sampling.temperature)
        build.export_policy(parts.learner, data.tokenizer, (folder / "export").absolute())
        tracker.finish(summarise(folder, config, time.perf_counter() - begin, guess=guess))
    write_report(folder)
    return folder


def explain_guess(guess: Mapping[str, float]) -> list[str]:
    """What held-out accuracy is to be compared with, in one line; none if no task has one right answer."""
    shares = ", ".join(f"{task} {share:.2f}" for task, share in guess.items() if task != "all")
    return [f"held-out accuracy of always giving the most frequent right answer: {shares}"] if shares else []


def open_run_trackers(config: RunConfig, folder: Path, checkpoints: FolderCheckpoints) -> Trackers:
    """The run's trackers; what they wrote after the checkpoint that the run goes on from is forgotten."""
    return open_trackers(
        folder,
        config.tracking,
        total_steps=config.steps,
        resumed_step=max(checkpoints.steps(), default=-1),
        run_config=_public(config),
        code=code_version(),
    )


def _public(config: RunConfig) -> dict[str, Any]:
    """The configuration for other machines: of the variables of a job, which may be secrets, the names alone."""
    values = to_dict(config)
    values["slurm"]["environment"] = dict.fromkeys(config.slurm.environment, "(not shown)")
    return values


def make_parts(
    config: RunConfig,
    data: Data,
    placed: Placed,
    checkpoints: FolderCheckpoints,
    tracker: Trackers,
    wrap: Wrap,
) -> Parts:
    """Everybody who takes part, from the learner and the workers that were placed."""
    folder = Path(config.runs_folder) / config.name
    fleet = FleetSize(folder, len(placed.workers), placed.make_worker)
    service = make_service(config, data, placed.workers, adjust=fleet.adjust)
    sampling = config.sampling
    is_whole = sampling.temperature == 1.0 and sampling.top_p == 1.0 and not sampling.top_k
    probe = probe_of(placed.learner, can_compare=is_whole and not config.correction.replay_experts)
    return Parts(
        learner=placed.learner,
        rollouts=wrap(service),
        weights=VerifiedSync(placed.learner, service, config.sync, lambda: service.num_receivers),
        checkpoints=checkpoints,
        evaluator=HeldOutEvaluator(service, data.held_out, config.evaluation, probe=probe),
        tracker=tracker,
        decode=data.tokenizer.decode,
        records_per_step=config.tracking.rollouts_per_step,
        evidence=folder / "nonfinite",
    )


def place_parts(config: RunConfig, place: Place, sandboxes: SandboxActors | None) -> Placed:
    """The learner's ranks and the workers, started."""
    # One process may choose among all devices of its node; several get one each, which they then see as the only one.
    gpus_each = config.learner_gpus // config.learner.num_ranks
    ranks = [
        place(name, RankHost, build.make_learner, config, name, num_gpus=gpus_each)
        for name in (f"learner-{number}" for number in range(config.learner.num_ranks))
    ]
    make_worker = worker_maker(config, place, sandboxes)
    workers = place_workers(config, make_worker)
    seconds = config.cluster.start_seconds
    wait_until_started([*ranks, *workers], seconds)
    learner = LearnerRanks(ranks, config.learner, deadline_seconds=config.cluster.update_seconds)
    learner.join(seconds)
    return Placed(learner, workers, make_worker)


def worker_maker(config: RunConfig, place: Place, sandboxes: SandboxActors | None) -> MakeWorker:
    """Starts a rollout worker of a given name, in the background."""
    num_gpus = config.cluster.gpus_per_worker
    return lambda name: place(name, build.make_worker, config, sandboxes, name, num_gpus=num_gpus, is_worker=True)


def place_workers(config: RunConfig, make_worker: MakeWorker) -> list[Handle]:
    """Those that a run begins with."""
    return [make_worker(worker_name(number)) for number in range(config.cluster.num_workers)]


def make_service(
    config: RunConfig, data: Data, workers: list[Handle], *, adjust: Callable[[WorkerPool], None] | None = None
) -> RolloutService:
    """The driver's side of the rollouts."""
    draw = Draw(config.seed, config.group_size, config.sampling.max_new_tokens, config.max_staleness)
    in_flight = config.rollout.in_flight or config.engine.num_slots + config.group_size
    rollout = dataclasses.replace(config.rollout, in_flight=in_flight)
    in_background = config.max_staleness > 0 and config.cluster.kind != "inline"
    return RolloutService(
        workers,
        data.prompts,
        draw,
        rollout,
        start_seconds=config.cluster.start_seconds,
        in_background=in_background,
        adjust=adjust,
    )


def warm_up(config: RunConfig, data: Data, parts: Parts) -> None:
    """The cold start, if there is one, and the optimizer that RL begins with."""
    begin = time.perf_counter()
    if config.sft.steps:
        cold_start(
            parts.learner,
            build.make_demonstrations(config, data.tokenizer),
            config.sft,
            max_row_tokens=config.learner.max_row_tokens,
            tracker=parts.tracker,
        )
        parts.learner.new_optimizer(config.learner.optimizer)
    parts.tracker.log(0, {"timing_s/sft": time.perf_counter() - begin})
