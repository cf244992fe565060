"""`cispo launch slurm`: a command line -> checked runs, a script kept with them, and a job in the queue."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cispo.errors import CispoError, ConfigError
from configs.schema import RunConfig
from launch.compose import compose, load_config
from launch.new_run import begin_words, check_new
from launch.run_files import write_atomically
from launch.run_folder import is_driven
from launch.slurm import Task, render
from launch.slurm_limits import NoSlurm, SlurmCluster, placement_faults, this_cluster
from launch.sweep import expand, run_names

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
        raise CispoError(f"sbatch refused {plan.script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().split(";")[0]


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
    if cluster is not None:
        faults += cluster.faults(config.slurm)
    if faults:
        raise ConfigError(*faults)
    return config, resume or (Path(config.runs_folder) / config.name).absolute()


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
