"""What `cispo launch slurm` asks the cluster for; a group of the run, so that it is checked and kept with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cispo.errors import ConfigError

CONTAINERS = ("none", "pyxis", "apptainer")
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
MEMORY = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
SPARE_SECONDS = 30
"""Of signal_seconds: what the script keeps for ending the processes and putting the job back in the queue."""

_SETTING = "use the setting slurm.{}"
_RESTARTS = "a job that cannot save, go back into the queue and be found again would lose its run"
OURS = {
    "nodes": _SETTING.format("nodes"),
    "gpus-per-node": _SETTING.format("gpus_per_node"),
    "cpus-per-task": _SETTING.format("cpus_per_task"),
    "mem": _SETTING.format("memory"),
    "time": _SETTING.format("time"),
    "partition": _SETTING.format("partition"),
    "account": _SETTING.format("account"),
    "qos": _SETTING.format("qos"),
    "constraint": _SETTING.format("constraint"),
    "job-name": "it is the run's name",
    "array": "-m makes an array of a sweep",
    "ntasks": "a node has one task, Ray",
    "ntasks-per-node": "a node has one task, Ray",
    "output": "logs are kept with the run",
    "chdir": "a job works where it was submitted",
    "signal": _RESTARTS,
    "requeue": _RESTARTS,
    "no-requeue": _RESTARTS,
    "open-mode": _RESTARTS,
}
"""Options of sbatch that `slurm.options` must not repeat, because the last one counts, and what to do instead."""


def seconds_of(time: int | str) -> int:
    """A time limit as Slurm reads it (minutes, min:sec, h:min:sec, d-h, d-h:min, d-h:min:sec) in seconds."""
    match = TIME.fullmatch(str(time))
    if not match:
        raise ValueError(f"{time!r} is no time as Slurm writes it, e.g. 90 (minutes), 12:00:00 or 2-00:00:00")
    numbers = [int(number) for number in (match["first"], match["second"], match["third"]) if number is not None]
    if match["days"] is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return int(match["days"] or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def megabytes_of(memory: int | str) -> int:
    """An amount of memory as Slurm reads it (M unless K, G or T is said), in MiB, rounded up."""
    match = MEMORY.fullmatch(str(memory))
    if not match:
        raise ValueError(f"{memory!r} is no amount of memory as Slurm writes it, e.g. 4000M or 64G")
    kilobytes = int(match[1]) * {"K": 1, "": 1 << 10, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}[match[2].upper()]
    return -(-kilobytes // 1024)


@dataclass(frozen=True)
class SlurmConfig:
    """What a job asks for. Every node runs one task, Ray, which has all of the node's share.

    Attributes:
        nodes: of the job; cluster.num_nodes follows it.
        gpus_per_node: asked of each node.
        cpus_per_task: cores of each node.
        memory: of each node, e.g. 64G; "" is the partition's default, "0" all there is.
        time: limit of one start, e.g. "12:00:00" (YAML wants the quotes) or 2-00:00:00; "" is the partition's.
        partition: where it runs; "" is the cluster's default.
        account: who pays.
        qos: quality of service.
        constraint: features that the nodes must have.
        options: more options of sbatch, one each, e.g. ["--exclusive", "--mail-type=END"].
        container: "none", "pyxis" (srun --container-image) or "apptainer" (apptainer exec).
        image: of the container.
        mounts: folders besides the runs' and the present one, each host:container or one path for both.
        python: in the job; "" is the one that submits, or python3 in a container.
        setup: shell lines before all else, e.g. ["module load cuda"]; run on the first node, all get their variables.
        environment: variables for all processes.
        interface: network interface of the nodes that Ray is to use, e.g. ib0; "" is how a node reaches the first one.
        signal_seconds: before the time limit, when the run is told to save and go; longer than its longest step.
        start_seconds: how long nodes and Ray may take to come up.
        max_restarts: further starts in a row without a new checkpoint; then the job ends.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 2
    memory: int | str = ""
    time: int | str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    options: tuple[str, ...] = ()
    container: str = "none"
    image: str = ""
    mounts: tuple[str, ...] = ()
    python: str = ""
    setup: tuple[str, ...] = ()
    environment: dict[str, str | int | float] = field(default_factory=dict)
    interface: str = ""
    signal_seconds: int = 300
    start_seconds: int = 300
    max_restarts: int = 3

    def __post_init__(self) -> None:
        faults = [
            f"slurm.{name} must be at least {least}; got {getattr(self, name)}."
            for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_task", 1), ("start_seconds", 1))
            if getattr(self, name) < least
        ]
        if self.max_restarts < 0:
            faults.append(f"slurm.max_restarts must not be negative; got {self.max_restarts}.")
        if self.signal_seconds <= SPARE_SECONDS:
            faults.append(
                f"slurm.signal_seconds must exceed {SPARE_SECONDS}, which the script needs to end Ray and to requeue; "
                f"got {self.signal_seconds}."
            )
        faults += self._amount_faults() + self._container_faults() + self._text_faults()
        if faults:
            raise ConfigError(*faults)

    def _amount_faults(self) -> list[str]:
        faults = []
        try:
            seconds = seconds_of(self.time) if self.time else 0
            if 0 < seconds <= self.signal_seconds:
                faults.append(
                    f"slurm.time={self.time} must be longer than slurm.signal_seconds={self.signal_seconds}, or the "
                    f"run is told to stop before it has begun; raise the one or lower the other."
                )
        except ValueError as error:
            faults.append(f"slurm.time: {error}.")
        try:
            megabytes_of(self.memory or 0)
        except ValueError as error:
            faults.append(f"slurm.memory: {error}.")
        return faults

    def _container_faults(self) -> list[str]:
        if self.container not in CONTAINERS:
            return [f"slurm.container must be one of {', '.join(CONTAINERS)}; got {self.container!r}."]
        if self.container == "none" and (self.image or self.mounts):
            return ["slurm.image and slurm.mounts need slurm.container=pyxis or slurm.container=apptainer."]
        if self.container != "none" and not self.image:
            return [f"slurm.container={self.container} needs slurm.image=..."]
        return []

    def _text_faults(self) -> list[str]:
        """What would break out of its line of the script."""
        words = {name: getattr(self, name) for name in ("partition", "account", "qos", "constraint", "interface")}
        words |= {f"options[{number}]": option for number, option in enumerate(self.options)}
        faults = [
            f"slurm.{name} must be one word, because it becomes part of an #SBATCH line; got {value!r}."
            for name, value in words.items()
            if re.search(r"\s", value)
        ]
        faults += [
            f"slurm.{name}: options of sbatch begin with --; got {value!r}."
            for name, value in words.items()
            if name.startswith("options") and not value.startswith("--")
        ]
        faults += [
            f"slurm.{name}={value}: the script sets this itself; {OURS[option]}."
            for name, value in words.items()
            if name.startswith("options") and (option := value.removeprefix("--").partition("=")[0]) in OURS
        ]
        faults += [
            f"slurm.environment: {name!r} is no name of a variable."
            for name in self.environment
            if not re.fullmatch(r"[A-Za-z_]\w*", name, flags=re.ASCII)
        ]
        return faults
