"""What the Slurm cluster has, as scontrol tells it, and which requests it can never meet."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cispo.errors import CispoError
from configs.schema import RunConfig
from configs.slurm import SlurmConfig, megabytes_of, seconds_of
from configs.strict import nearest

ASK_SECONDS = 30.0
"""How long scontrol may take to answer."""


@dataclass(frozen=True)
class Node:
    """What one node has; memory in MiB."""

    name: str
    partitions: tuple[str, ...]
    cpus: int
    memory: int
    gpus: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """What may run in one partition; None where there is no limit. `default_time` is that of a job that names none."""

    name: str
    is_default: bool
    max_nodes: int | None
    max_time: str | None
    default_time: str | None
    accounts: tuple[str, ...] | None
    qos: tuple[str, ...] | None


@dataclass(frozen=True)
class SlurmCluster:
    """The partitions and nodes of a cluster."""

    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]

    def faults(self, slurm: SlurmConfig) -> Iterator[str]:
        """Why this cluster could never run such a job."""
        known = {partition.name: partition for partition in self.partitions}
        asked = slurm.partition.split(",") if slurm.partition else [p.name for p in self.partitions if p.is_default]
        if not asked:
            yield f"slurm.partition is needed, because this cluster has no default: name one of {', '.join(known)}."
        unknown = [name for name in asked if name not in known]
        yield from (
            f"slurm.partition={name} is not one of this cluster: {nearest(name, list(known))}" for name in unknown
        )
        if asked and not unknown:  # of several partitions Slurm takes one that can
            by_partition = [list(self._faults_of(known[name], slurm)) for name in asked]
            yield from [] if [] in by_partition else by_partition[0]

    def _faults_of(self, partition: Partition, slurm: SlurmConfig) -> Iterator[str]:
        nodes = [node for node in self.nodes if partition.name in node.partitions]
        yield from _partition_faults(partition, len(nodes), slurm)
        yield from _node_faults(partition, nodes, slurm)


class NoSlurm(CispoError):
    """There is no cluster here that could be asked."""


def this_cluster() -> SlurmCluster:
    """The cluster that sbatch on this machine would submit to. Raises NoSlurm."""
    if not shutil.which("scontrol"):
        raise NoSlurm("scontrol is not on this machine")
    return SlurmCluster(tuple(map(_partition, _ask("partition"))), tuple(map(_node, _ask("node"))))


def placement_faults(config: RunConfig) -> Iterator[str]:
    """What the job's own nodes could never hold: processes that each need what there is too little of."""
    slurm, learner = config.slurm, config.learner
    yield from _gpu_faults(config)
    processes = config.cluster.num_workers + learner.num_ranks
    if slurm.nodes > processes:
        yield (
            f"slurm.nodes={slurm.nodes} is more than there are processes to place: cluster.num_workers="
            f"{config.cluster.num_workers} and learner.num_ranks={learner.num_ranks}; ask for fewer nodes or for more "
            f"workers."
        )
    most = max(config.cluster.num_threads, learner.num_threads)
    if most > slurm.cpus_per_task:
        yield (
            f"cluster.num_threads={config.cluster.num_threads} and learner.num_threads={learner.num_threads} must not "
            f"exceed slurm.cpus_per_task={slurm.cpus_per_task}, the cores of a node."
        )


def _gpu_faults(config: RunConfig) -> Iterator[str]:
    slurm, learner, cluster = config.slurm, config.learner, config.cluster
    gpus, needed = slurm.nodes * slurm.gpus_per_node, config.learner_gpus + config.worker_devices
    there = f"slurm.nodes={slurm.nodes} x slurm.gpus_per_node={slurm.gpus_per_node} has {gpus}"
    if learner.device.startswith("cuda") and learner.num_ranks > gpus:
        yield (
            f"learner.num_ranks={learner.num_ranks} need a GPU each (learner.device={learner.device}), and {there}; "
            f"ask for more, or take fewer ranks."
        )
    elif needed > gpus:
        yield (
            f"the learner's {config.learner_gpus} GPUs and the workers' {config.worker_devices} "
            f"(cluster.gpus_per_worker={cluster.gpus_per_worker:g}) are {needed}, and {there}; ask for more, or take "
            f"fewer ranks or workers."
        )
    elif cluster.gpus_per_worker > 1 and cluster.num_workers > (
        most := slurm.nodes * int(slurm.gpus_per_node // cluster.gpus_per_worker)
    ):
        yield (
            f"cluster.num_workers={cluster.num_workers} with cluster.gpus_per_worker={cluster.gpus_per_worker:g} do "
            f"not fit, because a worker has its GPUs on one node: {there}, for {most} workers."
        )
    if gpus and not needed and not any(d.startswith("cuda") for d in (learner.device, config.engine.device)):
        yield (
            f"slurm.gpus_per_node={slurm.gpus_per_node} would stand idle, because learner.device={learner.device} and "
            f"engine.device={config.engine.device}; take cuda for one of them or slurm.gpus_per_node=0."
        )


def _partition_faults(partition: Partition, num_nodes: int, slurm: SlurmConfig) -> Iterator[str]:
    most = min(num_nodes, num_nodes if partition.max_nodes is None else partition.max_nodes)
    if slurm.nodes > most:
        yield f"slurm.nodes={slurm.nodes} is more than the {most} that a job in partition {partition.name} may have."
    if partition.max_time and slurm.time and seconds_of(slurm.time) > seconds_of(partition.max_time):
        yield f"slurm.time={slurm.time} is over the limit of partition {partition.name}, {partition.max_time}."
    limit = partition.default_time or partition.max_time
    if limit and not slurm.time and seconds_of(limit) <= slurm.signal_seconds:
        yield (
            f"slurm.signal_seconds={slurm.signal_seconds} must be shorter than the limit of a job in partition "
            f"{partition.name} that names none, {limit}; say slurm.time=..."
        )
    for what, wanted, allowed in (
        ("account", slurm.account, partition.accounts),
        ("qos", slurm.qos, partition.qos),
    ):
        if wanted and allowed is not None and wanted not in allowed:
            yield f"slurm.{what}={wanted} may not use partition {partition.name}: {nearest(wanted, allowed)}"


def _node_faults(partition: Partition, nodes: Sequence[Node], slurm: SlurmConfig) -> Iterator[str]:
    """Each demand by itself, then all together: enough nodes must meet them at once."""
    if not nodes:
        return
    memory = megabytes_of(slurm.memory or 0)
    found_fault = False
    for wanted, most, told in (
        (slurm.gpus_per_node, max(node.gpus for node in nodes), f"slurm.gpus_per_node={slurm.gpus_per_node}"),
        (slurm.cpus_per_task, max(node.cpus for node in nodes), f"slurm.cpus_per_task={slurm.cpus_per_task}"),
        (memory, max(node.memory for node in nodes), f"slurm.memory={slurm.memory} ({memory} MiB)"),
    ):
        if wanted > most:
            found_fault = True
            yield f"{told} is more than the {most} that the best node of partition {partition.name} has."
    plain = re.fullmatch(r"\w+", slurm.constraint)  # and not an expression, which Slurm alone can judge
    features = sorted({feature for node in nodes for feature in node.features})
    if plain and slurm.constraint not in features:
        found_fault = True
        known = nearest(slurm.constraint, features) if features else "its nodes have no features."
        yield f"slurm.constraint={slurm.constraint} is no feature of partition {partition.name}: {known}"
    fit = [
        node
        for node in nodes
        if node.gpus >= slurm.gpus_per_node and node.cpus >= slurm.cpus_per_task and node.memory >= memory
        if not plain or slurm.constraint in node.features
    ]
    if not found_fault and len(fit) < slurm.nodes <= len(nodes):
        yield (
            f"slurm.nodes={slurm.nodes} with what is asked of each (gpus_per_node, cpus_per_task, memory, constraint) "
            f"are more than the {len(fit)} nodes of partition {partition.name} that have it all."
        )


def _ask(what: str) -> list[dict[str, str]]:
    """The records of `scontrol show <what>`. Raises NoSlurm."""
    try:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", what], capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NoSlurm(f"`scontrol show {what}` did not answer in {ASK_SECONDS:g} s") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise NoSlurm(f"`scontrol show {what}` failed ({reason[0]})")
    lines = [line for line in done.stdout.splitlines() if "=" in line]
    return [dict(re.findall(r"(\S+?)=(.*?)(?=\s+[A-Za-z:]+=|\s*$)", line)) for line in lines]


def _partition(record: dict[str, str]) -> Partition:
    max_nodes = record.get("MaxNodes", "")
    return Partition(
        name=record["PartitionName"],
        is_default=record.get("Default") == "YES",
        max_nodes=int(max_nodes) if max_nodes.isdigit() else None,
        max_time=_time(record.get("MaxTime", "")),
        default_time=_time(record.get("DefaultTime", "")),
        accounts=_allowed(record.get("AllowAccounts", "ALL")),
        qos=_allowed(record.get("AllowQos", "ALL")),
    )


def _node(record: dict[str, str]) -> Node:
    gpus = re.findall(r"gpu(?::[^:,()]+)?:(\d+)", record.get("Gres", ""))
    return Node(
        name=record["NodeName"],
        partitions=_words(record.get("Partitions", "")),
        cpus=int(record.get("CPUEfctv") or record.get("CPUTot") or 0),
        memory=int(record.get("RealMemory") or 0),
        gpus=sum(map(int, gpus)),
        features=_words(record.get("AvailableFeatures", "")),
    )


def _time(text: str) -> str | None:
    return None if text in ("", "UNLIMITED", "NONE") else text


def _allowed(words: str) -> tuple[str, ...] | None:
    return None if words == "ALL" else _words(words)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word and word != "(null)")
