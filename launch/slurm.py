"""The settings of a run -> the sbatch script of its job: directives and variables from here, the rest slurm_job.sh."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.schema import RunConfig
from configs.slurm import SPARE_SECONDS, SlurmConfig

BODY = Path(__file__).with_name("slurm_job.sh")
FIRST_TASK = 0
SOCKETS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""By which torch's process groups are told the network that Ray uses, too; slurm.environment comes later and wins."""
EARLY = (
    "# A signal that comes before there is a run to stop is kept for it.",
    "early= && trap early=USR1 USR1 && trap early=TERM TERM",
    "",
)


@dataclass(frozen=True)
class Task:
    """One run of a job.

    Attributes:
        folder: of the run, absolute.
        overrides: what `cispo train` begins it with.
        resume_overrides: what changes when it goes on.
    """

    folder: Path
    overrides: tuple[str, ...]
    resume_overrides: tuple[str, ...] = ()


def render(config: RunConfig, tasks: Sequence[Task], *, name: str, script: Path, max_parallel: int = 0) -> str:
    """The script of a job of one run, or of an array of several.

    Args:
        config: whose cluster and slurm settings all runs share.
        tasks: the runs, in the order of the array.
        name: of the job.
        script: where it will be kept; logs go beside it.
        max_parallel: tasks of an array that run at once; 0 is all.
    """
    lines = [
        "#!/bin/bash",
        f"# Made by: cispo launch slurm. To run it again as it is: sbatch {shlex.quote(str(script))}",
    ]
    lines += [f"#SBATCH {word}" for word in directives(config.slurm, len(tasks), name, script, max_parallel)]
    lines += ["", *settings(config, tasks), "", *EARLY, *_setup(config.slurm), "", *_runs(tasks), "", ""]
    return "\n".join(lines) + BODY.read_text(encoding="utf-8")


def directives(slurm: SlurmConfig, num_tasks: int, name: str, script: Path, max_parallel: int = 0) -> list[str]:
    """What sbatch is asked for, an option a line."""
    log = script.parent / ("slurm-%A_%a.log" if num_tasks > 1 else "slurm-%j.log")
    wanted = {
        "job-name": name,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": slurm.cpus_per_task,
        "gpus-per-node": slurm.gpus_per_node or "",
        "mem": slurm.memory,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "array": f"{FIRST_TASK}-{num_tasks - 1}" + (f"%{max_parallel}" if max_parallel else "")
        if num_tasks > 1
        else "",
        "output": log,
        "signal": f"B:USR1@{slurm.signal_seconds}",
        "chdir": Path.cwd(),
    }
    words = [f"--{option}={_word(str(value))}" for option, value in wanted.items() if str(value)]
    return [*words, "--open-mode=append", "--requeue", *slurm.options]


def settings(config: RunConfig, tasks: Sequence[Task]) -> list[str]:
    """The variables that slurm_job.sh reads."""
    slurm = config.slurm
    python = slurm.python or (sys.executable if slurm.container == "none" else "python3")
    ray = [
        f"--seconds={slurm.start_seconds}",
        f"--cpus={slurm.cpus_per_task}",
        f"--gpus={slurm.gpus_per_node}",
        f"--object-store-mb={config.cluster.object_store_mb}",
        *([f"--interface={slurm.interface}"] if slurm.interface else []),
    ]
    step = [f"--cpus-per-task={slurm.cpus_per_task}"]
    if slurm.gpus_per_node:
        step.append(f"--gpus-per-node={slurm.gpus_per_node}")
    step_container, command = container(config.slurm, tasks)
    network = [f"export {name}={_word(slurm.interface)}" for name in SOCKETS if slurm.interface]
    return [
        f"python={_word(python)}",
        f"start_seconds={slurm.start_seconds}     # that nodes and Ray may take to come up",
        f"signal_seconds={slurm.signal_seconds}   # before the limit, when Slurm sends USR1",
        f"spare_seconds={SPARE_SECONDS}           # of these, kept for ending and requeueing",
        f"max_restarts={slurm.max_restarts}       # starts in a row without a new checkpoint",
        f"step_options={_array([*step, *step_container])}",
        f"container={_array(command)}",
        f"ray_options={_array(ray)}",
        *network,
    ]


def container(slurm: SlurmConfig, tasks: Sequence[Task]) -> tuple[list[str], list[str]]:
    """(options of srun, words before a command) that bring a process into the container."""
    folders = dict.fromkeys([str(Path.cwd()), *(str(task.folder.parent) for task in tasks)])
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in [*folders, *slurm.mounts]]
    if slurm.container == "pyxis":
        shown = [f"--container-image={slurm.image}", f"--container-mounts={','.join(mounts)}"]
        return [*shown, f"--container-workdir={Path.cwd()}"], []
    if slurm.container == "apptainer":
        gpu = ["--nv"] if slurm.gpus_per_node else []
        return [], ["apptainer", "exec", *gpu, f"--bind={','.join(mounts)}", f"--pwd={Path.cwd()}", slurm.image]
    return [], []


def _setup(slurm: SlurmConfig) -> Iterator[str]:
    """The user's own lines; one that fails ends the job with its words."""
    if slurm.environment or slurm.setup:
        yield "# slurm.environment and slurm.setup"
    for name, value in slurm.environment.items():
        yield f"export {name}={_word(str(value))}"
    for line in slurm.setup:
        yield line
        yield f'[ $? -eq 0 ] || {{ echo "cispo: a line of slurm.setup failed:" {_word(line)}; exit 1; }}'


def _runs(tasks: Sequence[Task]) -> Iterator[str]:
    if len(tasks) == 1:
        yield "# the run; `cispo train` in the words in which it was asked for"
        yield from _run(tasks[0], "")
        return
    yield "# the runs, one for each task of the array"
    yield 'case "$SLURM_ARRAY_TASK_ID" in'
    for number, task in enumerate(tasks, start=FIRST_TASK):
        yield f"{number})"
        yield from _run(task, "    ")
        yield "    ;;"
    yield "esac"


def _run(task: Task, indent: str) -> Iterator[str]:
    yield f"{indent}run={_word(str(task.folder))}"
    yield f"{indent}overrides={_array(task.overrides, indent)}"
    yield f"{indent}resume_overrides={_array(task.resume_overrides, indent)}"


def _word(text: str) -> str:
    return shlex.quote(text)


def _array(words: Sequence[str], indent: str = "") -> str:
    """A bash array, one word a line where there are many."""
    quoted = [_word(word) for word in words]
    if sum(map(len, quoted)) < 90:
        return f"({' '.join(quoted)})"
    return "\n".join(["(", *[f"{indent}    {word}" for word in quoted], f"{indent})"])
