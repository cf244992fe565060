"""Where a run's processes live and who is told how it goes; the Configs of launch/, which may import everything."""

from __future__ import annotations

from dataclasses import dataclass

from cispo.errors import ConfigError

WANDB_MODES = ("auto", "disabled", "offline", "online")
CLUSTERS = ("local", "inline", "ray")
TRANSPORTS = ("object_store", "broadcast", "changed_bytes")


@dataclass(frozen=True)
class ClusterConfig:
    """Where the workers and the learner live.

    Attributes:
        kind: "local" starts Ray on this machine; "ray" joins a Ray cluster that is there, whose nodes must see the same
            files under the same paths; "inline" runs the same classes in this very process, for debugging.
        address: of that cluster, host:port of its head; "auto" is what RAY_ADDRESS says, or the one on this machine.
        num_nodes: of that cluster, waited for before anything is placed.
        num_workers: rollout workers, each with an engine and its scorers.
        gpus_per_worker: GPUs that Ray keeps for each worker, for engine.device=cuda; a part of one is shared.
        gpus_per_node: GPUs of a node, so that a run that asks for more is refused; 0 does not say.
        gpu_gb: memory of one GPU in GB (10^9 bytes), which `cispo plan` compares its arithmetic with.
        num_threads: torch threads of each worker.
        object_store_mb: Ray's shared memory for weights, in MiB, where this run starts Ray.
        start_seconds: how long nodes and actors may take to start.
        update_seconds: how long the driver waits for one update, or for the learner's weights.
        learner_restarts: how often in a row a run goes on from the same checkpoint after a process of the learner died.
    """

    kind: str = "local"
    address: str = "auto"
    num_nodes: int = 1
    num_workers: int = 2
    gpus_per_worker: float = 0.0
    gpus_per_node: int = 0
    gpu_gb: float = 80.0
    num_threads: int = 1
    object_store_mb: int = 256
    start_seconds: float = 180.0
    update_seconds: float = 1800.0
    learner_restarts: int = 2

    def __post_init__(self) -> None:
        faults = []
        if self.kind not in CLUSTERS:
            faults.append(f"cluster.kind must be one of {', '.join(CLUSTERS)}; got {self.kind!r}.")
        if min(self.num_nodes, self.num_workers, self.num_threads) < 1:
            faults.append(
                f"cluster.num_nodes, num_workers and num_threads must be at least 1; got {self.num_nodes}, "
                f"{self.num_workers}, {self.num_threads}."
            )
        if self.num_nodes > 1 and self.kind != "ray":
            faults.append(
                f"cluster.num_nodes={self.num_nodes} needs a cluster, and cluster.kind={self.kind} lives on this "
                f"machine alone; use cluster=ray."
            )
        if self.learner_restarts < 0:
            faults.append(f"cluster.learner_restarts must not be negative; got {self.learner_restarts}.")
        if min(self.gpus_per_worker, self.gpus_per_node) < 0 or self.gpu_gb <= 0:
            faults.append(
                f"cluster.gpus_per_worker and gpus_per_node must not be negative and gpu_gb must be positive; got "
                f"{self.gpus_per_worker:g}, {self.gpus_per_node} and {self.gpu_gb:g}."
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            faults.append(
                f"cluster.gpus_per_worker is a part of one GPU or a whole number of them; got {self.gpus_per_worker:g}."
            )
        if self.object_store_mb < 80:
            faults.append(
                f"cluster.object_store_mb must be at least 80, which Ray asks for; got {self.object_store_mb}."
            )
        if min(self.start_seconds, self.update_seconds) <= 0:
            faults.append(
                f"cluster.start_seconds and update_seconds must be positive; got {self.start_seconds:g}, "
                f"{self.update_seconds:g}."
            )
        if faults:
            raise ConfigError(*faults)


@dataclass(frozen=True)
class SyncConfig:
    """How a version of the weights reaches the workers, and what is checked on the way.

    Attributes:
        transport: "object_store" (one copy in the memory of each node), "broadcast" (torch.distributed from learner-0
            to all workers at once) or "changed_bytes" (only what differs from the version before).
        bucket_mb: of a broadcast: sent at a time, in MiB.
        block_bytes: of changed_bytes: of a block, which travels if anything in it changed; a power of 2.
        deadline_seconds: of a broadcast: how long learner and workers wait for each other, to come and at each bucket.
        canary_tokens: tokens, in two prompts, whose log-probabilities learner and workers compare; 0 compares none.
        canary_tolerance: how far they may be apart, in nats, if the learner's weights are float32.
        canary_tolerance_bfloat16: the same if they are bfloat16.
    """

    transport: str = "object_store"
    bucket_mb: int = 64
    block_bytes: int = 2
    deadline_seconds: float = 60.0
    canary_tokens: int = 32
    canary_tolerance: float = 1e-3
    canary_tolerance_bfloat16: float = 0.5

    def __post_init__(self) -> None:
        faults = []
        if self.transport not in TRANSPORTS:
            faults.append(f"sync.transport must be one of {', '.join(TRANSPORTS)}; got {self.transport!r}.")
        if self.bucket_mb < 1 or self.deadline_seconds <= 0:
            faults.append(
                f"sync.bucket_mb must be at least 1 and sync.deadline_seconds positive; got {self.bucket_mb}, "
                f"{self.deadline_seconds:g}."
            )
        if self.block_bytes < 1 or self.block_bytes & (self.block_bytes - 1):
            faults.append(f"sync.block_bytes must be a power of 2; got {self.block_bytes}.")
        if self.canary_tokens < 0 or 0 < self.canary_tokens < 4:
            faults.append(
                f"sync.canary_tokens must be 0 (off) or at least 4, two for each prompt; got {self.canary_tokens}."
            )
        if min(self.canary_tolerance, self.canary_tolerance_bfloat16) <= 0:
            faults.append(
                f"sync.canary_tolerance and canary_tolerance_bfloat16 must be positive, because two sides round "
                f"differently; got {self.canary_tolerance:g}, {self.canary_tolerance_bfloat16:g}."
            )
        if faults:
            raise ConfigError(*faults)


@dataclass(frozen=True)
class ServeConfig:
    """`cispo serve`: where it listens and what it takes; the size of its engine is `engine`.

    Attributes:
        host: address to listen on; anything but 127.0.0.1 opens the server to others, who still need the token.
        port: TCP port; 0 takes a free one and says which.
        token_file: the token, in a file that nobody else may read; made if it is missing. The environment variable
            CISPO_ENGINE_TOKEN wins over it.
        max_queue: sequences that may wait besides those that run; a request for more is refused with 429.
        max_request_bytes: largest body of a request that brings no weights; a larger one is refused with 413.
        max_connections: open connections; at one more, the one that has been silent for longest is closed.
        request_seconds: time in which a request must have arrived, and a second more for each MiB of it.
        idle_seconds: time after which a connection without a request is closed.
        heartbeat_seconds: an answer that takes longer shows life each time.
        deadline_seconds: time from a request to its last token; it is then cut.
        drain_seconds: time that accepted requests have to end after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8800
    token_file: str = "~/.cispo/engine_token"
    max_queue: int = 4096
    max_request_bytes: int = 64 << 20
    max_connections: int = 1024
    request_seconds: float = 60.0
    idle_seconds: float = 75.0
    heartbeat_seconds: float = 5.0
    deadline_seconds: float = 7200.0
    drain_seconds: float = 60.0

    def __post_init__(self) -> None:
        faults = []
        if not 0 <= self.port <= 65535:
            faults.append(f"serve.port must be a TCP port or 0; got {self.port}.")
        if self.max_queue < 0:
            faults.append(f"serve.max_queue must not be negative; got {self.max_queue}.")
        faults += [
            f"serve.{name} must be positive; got {value}."
            for name, value in vars(self).items()
            if isinstance(value, int | float) and name not in ("port", "max_queue") and not value > 0
        ]
        if faults:
            raise ConfigError(*faults)


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run's numbers go, besides its own folder, which always has them.

    Attributes:
        wandb: "auto" (online with a login, offline without one), "disabled", "offline" (written below the run's
            folder, for `wandb sync`) or "online". The variable WANDB_MODE of the environment wins over all but
            "disabled".
        project: W&B project; "" is what WANDB_PROJECT says, or "cispo".
        entity: W&B team or user; "" is the account's own.
        group: runs of one group are shown together, e.g. the seeds of an experiment or the runs of a sweep.
        job_type: what the run is within its group, e.g. "train".
        tags: words to find the run by.
        notes: a longer word on what the run is for.
        traces_every: steps between two tables of traces in W&B; 0 sends none.
        traces: the most trajectories in such a table.
        upload_export: send the trained policy to W&B as an artifact.
        wait_seconds: how long the start and the end of a run may wait for W&B; the steps never do.
        console: show progress: a live bar on a terminal, plain lines elsewhere. False is silent.
        rollouts_per_step: how many trajectories are written per step; 0 is all that were trained on.
    """

    wandb: str = "auto"
    project: str = ""
    entity: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    traces_every: int = 10
    traces: int = 32
    upload_export: bool = False
    wait_seconds: float = 60.0
    console: bool = True
    rollouts_per_step: int = 64

    def __post_init__(self) -> None:
        faults = []
        if self.wandb not in WANDB_MODES:
            faults.append(f"tracking.wandb must be one of {', '.join(WANDB_MODES)}; got {self.wandb!r}.")
        if len(self.project) > 128 or set(self.project) & set("/\\#?%:"):
            faults.append(
                f"tracking.project must have at most 128 characters and none of / \\ # ? % :, because it is part of "
                f"an address; got {self.project!r}."
            )
        faults += [
            f"each of tracking.tags must have 1 to 64 characters, which W&B asks for; got {tag!r}."
            for tag in self.tags
            if not 1 <= len(tag) <= 64
        ]
        if self.traces_every < 0 or self.traces < 1:
            faults.append(
                f"tracking.traces_every must be 0 (never) or more and tracking.traces at least 1; got "
                f"{self.traces_every}, {self.traces}."
            )
        if not self.wait_seconds > 0:
            faults.append(f"tracking.wait_seconds must be positive; got {self.wait_seconds:g}.")
        if self.rollouts_per_step < 0:
            faults.append(f"tracking.rollouts_per_step must be 0 (all) or more; got {self.rollouts_per_step}.")
        if faults:
            raise ConfigError(*faults)
