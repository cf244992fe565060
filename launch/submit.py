"""`cispo launch slurm`: a command line -> checked runs, a script kept with them, and a job in the queue."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cispo.errors import CispoError, ConfigError
from configs.schema import RunConfig
from launch.compose import compose, load_config
from launch.new_run import begin_words, check_new
from launch.run_files import write_atomically
from launch.run_folder import is_driven
from launch.slurm import FIRST_TASK, Task, render
from launch.slurm_limits import NoSlurm, SlurmCluster, placement_faults, this_cluster
from launch.start_checks import faults_elsewhere
from launch.sweep import expand, run_names

JOB = "job"
"""File of a run's launch/: the id of the job that was submitted last."""

SUBMIT_SECONDS = 60.0
"""How long sbatch may take to answer."""

OURS = {
    "cluster.address": "the job writes its own",
    "cluster.num_nodes": "it follows slurm.nodes",
}
"""Settings that the job makes itself."""


@dataclass(frozen=True)
class Plan:
    """What is to be submitted.

    Attributes:
        config: of the first run; all share its slurm settings.
        tasks: a run each.
        name: of the job.
        script: where it is kept.
    """

    config: RunConfig
    tasks: tuple[Task, ...]
    name: str
    script: Path

    def text(self, max_parallel: int = 0) -> str:
        """The script."""
        return render(self.config, self.tasks, name=self.name, script=self.script, max_parallel=max_parallel)


def plan_run(overrides: Sequence[str], cluster: SlurmCluster | None, *, resume: Path | None = None) -> Plan:
    """One run. Raises ConfigError with every fault that can be found without starting it.

    Args:
        overrides: as for `cispo train`.
        cluster: what the job could never have is refused; None refuses nothing for that reason.
        resume: the folder of a run to go on with.
    """
    config, folder = _checked(overrides, cluster, resume.absolute() if resume else None)
    if resume is None:
        check_new(folder, "slurm")
    script = folder / "launch" / "job.sbatch"
    if resume is None:
        _check_not_submitted(script)
    if is_driven(folder):
        raise ConfigError(f"{folder} is in use by another cispo process; wait for it or end it.")
    if job := waiting_job(folder):
        raise ConfigError(
            f"job {job} of {folder} is in the queue still and goes on with it by itself; wait for it, or end it by "
            f"scancel {job} and then resume."
        )
    task = Task(folder, tuple(_begin(overrides, folder)), ("cluster.kind=ray", *(overrides if resume else ())))
    return Plan(config, (task,), config.name, script)


def plan_sweep(overrides: Sequence[str], cluster: SlurmCluster | None) -> Plan:
    """All runs of a sweep, each in a folder of its own below that of the sweep; as `plan_run`."""
    jobs = expand(overrides)
    faults: dict[str, None] = {}
    checked = []
    for job in jobs:
        try:
            checked.append(_checked(job, cluster))
        except ConfigError as error:
            faults |= dict.fromkeys(error.faults)
    different = sorted({f"{config.slurm}" for config, _ in checked})
    if len(different) > 1:
        faults["the runs of an array share one request, so no setting of slurm can be swept; launch them apart."] = None
    if faults:
        raise ConfigError(*faults)
    config, sweep = checked[0]
    folders = [sweep / name for name in run_names(jobs)]
    taken = [str(folder) for folder in folders if (folder / "config.yaml").exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} hold runs already; give this sweep another name (name=...).")
    script = sweep / "launch" / "job.sbatch"
    _check_not_submitted(script)
    tasks = [Task(f, tuple(_begin(job, f)), ("cluster.kind=ray",)) for f, job in zip(folders, jobs, strict=True)]
    return Plan(config, tuple(tasks), config.name, script)


def _check_not_submitted(script: Path) -> None:
    if script.exists():
        raise ConfigError(
            f"{script} was submitted already, and its job may still wait in the queue (squeue --me); cancel it and "
            f"delete {script.parents[1]}, or choose another name (name=...)."
        )


def submit(plan: Plan, max_parallel: int = 0) -> str:
    """Keep the script with the run and give it to sbatch; the job's id. Raises CispoError."""
    if not shutil.which("sbatch"):
        raise CispoError("sbatch is not on this machine; log in to one of the cluster, or look with --dry-run.")
    plan.script.parent.mkdir(parents=True, exist_ok=True)
    before = plan.script.read_text(encoding="utf-8") if plan.script.exists() else None
    write_atomically(plan.script, plan.text(max_parallel))
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(plan.script)], capture_output=True, text=True, timeout=SUBMIT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise CispoError(
            f"sbatch did not answer in {SUBMIT_SECONDS:g} s; look with `squeue --me` whether it took {plan.script}."
        ) from error
    if done.returncode:
        _take_back(plan.script, before)
        raise CispoError(f"sbatch refused the job, and nothing is kept of it: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().split(";")[0]
    for number, task in enumerate(plan.tasks, start=FIRST_TASK):
        folder = task.folder / "launch"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / JOB, f"{job}_{number}\n" if len(plan.tasks) > 1 else f"{job}\n")
    return job


def _take_back(script: Path, before: str | None) -> None:
    """Leave nothing of a job that Slurm did not take: the script of the job before, if there was one, is back."""
    if before is not None:
        write_atomically(script, before)
        return
    script.unlink()
    with suppress(OSError):  # a folder that holds something stays
        script.parent.rmdir()
        script.parents[1].rmdir()


def waiting_job(folder: Path) -> str:
    """The id of the run's job if Slurm has it in its queue, waiting or running; "" if not, or if nobody knows."""
    path = folder / "launch" / JOB
    if not path.is_file():
        return ""
    job = path.read_text(encoding="utf-8").strip()
    try:
        done = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T"],
            capture_output=True,
            text=True,
            timeout=SUBMIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return job if done.returncode == 0 and done.stdout.strip() else ""


def told(plan: Plan, job: str) -> str:
    """How to watch, end and go on with a job that was submitted."""
    log = plan.script.parent / (f"slurm-{job}_*.log" if len(plan.tasks) > 1 else f"slurm-{job}.log")
    lines = [
        f"job {job} is submitted: {plan.script}",
        f"  watch    squeue --job {job};  tail -F {log}",
        f"  save     scancel --batch --signal=USR1 {job}     (saves, stops and goes back into the queue)",
        f"  cancel   scancel {job}",
    ]
    if len(plan.tasks) == 1:
        lines.append(f"  resume   cispo launch slurm --resume {plan.tasks[0].folder}     (by itself unless cancelled)")
    else:
        lines += [f"  run      {task.folder}" for task in plan.tasks]
    return "\n".join(lines)


def known_cluster() -> tuple[SlurmCluster | None, str]:
    """This machine's Slurm and "", or None and a sentence about what is then not checked."""
    try:
        return this_cluster(), ""
    except NoSlurm as error:
        return None, (
            f"{error}, so whether the cluster has such a partition, and so many nodes, GPUs, cores and hours, was not "
            f"checked"
        )


def _checked(
    overrides: Sequence[str], cluster: SlurmCluster | None, resume: Path | None = None
) -> tuple[RunConfig, Path]:
    """The configuration as the job will have it, and the run's folder."""
    faults = list(_own_faults(overrides))
    # GPUs are counted by what the job asks of Slurm, below, and not by what the configuration expects of a cluster.
    ours = {*OURS, "cluster.gpus_per_node"}
    words = [o for o in overrides if _key(o) not in ours] + ["cluster.kind=ray", "cluster.gpus_per_node=0"]
    try:
        config = compose(words) if resume is None else load_config(resume / "config.yaml", words)
    except ConfigError as error:
        raise ConfigError(*faults, *error.faults) from error
    config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, num_nodes=config.slurm.nodes))
    asked = next((o.partition("=")[2] for o in overrides if _key(o) == "cluster.num_nodes"), "")
    if asked and asked != str(config.slurm.nodes):
        faults.append(
            f"cluster.num_nodes={asked} must be slurm.nodes={config.slurm.nodes}, because Ray has the job's nodes; "
            f"leave cluster.num_nodes out."
        )
    faults += placement_faults(config)
    faults += _start_faults(config)
    if cluster is not None:
        faults += cluster.faults(config.slurm)
    if faults:
        raise ConfigError(*faults)
    return config, resume or (Path(config.runs_folder) / config.name).absolute()


def _start_faults(config: RunConfig) -> tuple[str, ...]:
    """What would end the run before its first step on any machine. An image may have files that are not here."""
    return () if config.slurm.container != "none" else faults_elsewhere(config)


def _own_faults(overrides: Sequence[str]) -> list[str]:
    faults = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "cluster.address":
            faults.append(f"{override}: {OURS[key]}; leave it out.")
        if key in ("cluster", "cluster.kind") and value != "ray":
            faults.append(
                f"{override} trains in one process or on one machine, and a job starts Ray over its nodes; leave it "
                f"out or take cluster=ray."
            )
    return faults


def _begin(overrides: Sequence[str], folder: Path) -> list[str]:
    return begin_words([*(o for o in overrides if _key(o) != "cluster.num_nodes"), "cluster.kind=ray"], folder)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
