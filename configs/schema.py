"""RunConfig: the parts' own Configs put together. What a run is, and what the whole command line can say.

The dataclasses hold the defaults; the YAML tree beside this file holds choices (configs/train.yaml). Hydra composes a
plain dictionary, `configs.strict.from_dict` makes a RunConfig of it, and nothing of Hydra goes further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cispo.checkpoint import CheckpointConfig
from cispo.errors import ConfigError, faults_of
from cispo.evaluate import EvaluationConfig
from cispo.learner.config import LearnerConfig
from cispo.schedule import largest
from cispo.sft import SftConfig
from cispo.trainer import TrainerConfig
from configs.fleet import ClusterConfig, ServeConfig, SyncConfig, TrackingConfig
from configs.slurm import SlurmConfig
from configs.strict import CrossChecks
from model.config import HybridConfig
from rewards.reward import RewardsConfig
from rollout.engine_config import EngineConfig
from rollout.environments import EpisodeConfig
from rollout.prompts import TaskConfig
from rollout.worker import SamplingConfig
from rollout.worker_pool import RolloutConfig
from sandbox.config import SandboxConfig


@dataclass(frozen=True)
class ModelConfig:
    """Where the policy comes from.

    Attributes:
        path: a folder in Hugging Face layout to start from; "" begins with random weights of `shape`.
        shape: the architecture of a new policy; its vocabulary size is that of the tokenizer.
    """

    path: str = ""
    shape: HybridConfig = field(default_factory=HybridConfig)


@dataclass(frozen=True)
class RunConfig(TrainerConfig):
    """Everything about a run. The root keys are the algorithm's own (cispo.trainer.TrainerConfig); the rest are groups.

    Attributes:
        name: the run's folder below runs_folder.
        seed: of weights, prompts and sampling.
        runs_folder: where runs are kept.
        model: where the policy comes from.
        task: what it is trained on.
        rewards: how a trajectory is judged.
        sandbox: how the programs that it writes are run.
        learner: how it is updated.
        cluster: where the workers and the learner live.
        sync: how new weights reach the workers.
        engine: what samples, and its size.
        sampling: how trajectories are sampled.
        episode: episodes of several turns, with tools or in an environment of one's own.
        rollout: how the driver deals with its workers.
        sft: the cold start.
        evaluation: what is measured on held-out prompts.
        checkpoints: how many are kept.
        tracking: who is told.
        serve: the policy as a server, for `cispo serve`.
        slurm: what `cispo launch slurm` asks for.
    """

    name: str = "run"
    seed: int = 1
    runs_folder: str = "runs"
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        faults = faults_of(super().__post_init__)
        for _, check in self.cross_checks():
            faults += check(self)
        if faults:
            raise ConfigError(*faults)

    @classmethod
    def cross_checks(cls) -> CrossChecks[RunConfig]:
        """What fields must be to each other: (those that a check looks at, the check).

        So `from_dict` makes the checks whose fields are right although others are wrong, and tells all faults at once.
        """
        return (
            (("name", "runs_folder"), cls._name_faults),
            (("engine", "sampling", "steps"), cls._window_faults),
            (("engine", "sampling", "steps", "episode"), cls._episode_faults),
            (("task", "rewards"), cls._task_name_faults),
            (("cluster", "sandbox", "learner", "sync"), cls._inline_faults),
            (("cluster", "learner", "engine"), cls._gpu_faults),
            (("engine", "correction"), cls._engine_faults),
            (("sft", "task"), cls._sft_faults),
        )

    def _name_faults(self) -> list[str]:
        if self.name and self.name not in (".", "..") and "/" not in self.name:
            return []
        return [f"name must be a plain folder name below {self.runs_folder!r}; got {self.name!r}."]

    def _window_faults(self) -> list[str]:
        longest = self.longest_window
        if longest < self.engine.max_length:
            return []
        return [
            f"engine.max_length must exceed sampling.max_new_tokens, because it counts the prompt too; got "
            f"{self.engine.max_length} and {longest:g}."
        ]

    def _task_name_faults(self) -> list[str]:
        taken = sorted({*self.task.mixture, *self.task.files} & {*self.rewards.weights, "correct"})
        if not taken:
            return []
        return [
            f"a task may not be named like a part of the reward, because both are logged as reward/<name>/mean; "
            f"got {', '.join(taken)}."
        ]

    def _engine_faults(self) -> list[str]:
        if not self.correction.replay_experts or self.engine.kind == "hybrid":
            return []
        return [
            f"correction.replay_experts=true learns with the experts that were chosen in sampling, which "
            f"engine.kind={self.engine.kind} does not tell; use engine=hybrid, or switch it off."
        ]

    def _sft_faults(self) -> list[str]:
        if not self.sft.steps or self._demonstrating_tasks():
            return []
        return [
            f"sft.steps={self.sft.steps} asks for a cold start, but sets of files hold no demonstrations; start "
            f"from a trained policy with sft.steps=0 model.path=..., or name tasks in task.demonstration_mixture."
        ]

    def _gpu_faults(self) -> list[str]:
        """Devices that parts ask for, and those that there are to be."""
        faults, cluster = [], self.cluster
        there = cluster.num_nodes * cluster.gpus_per_node
        if there and (needed := self.learner_gpus + self.worker_devices) > there:
            faults.append(
                f"the learner's {self.learner_gpus} GPUs and the workers' {self.worker_devices} are {needed}, but "
                f"cluster.num_nodes={cluster.num_nodes} of cluster.gpus_per_node={cluster.gpus_per_node} have {there}; "
                f"take fewer learner.num_ranks, cluster.num_workers or cluster.gpus_per_worker, or more nodes."
            )
        if cluster.gpus_per_worker and cluster.kind == "inline":
            faults.append(
                f"cluster.gpus_per_worker={cluster.gpus_per_worker:g} is for processes of their own, and "
                f"cluster.kind=inline has one for everything; set 0 (engine.device says which device samples)."
            )
        return faults

    def _inline_faults(self) -> list[str]:
        """What needs several processes."""
        if self.cluster.kind != "inline":
            return []
        faults = []
        if self.sandbox.placement == "node":
            faults.append(
                "sandbox.placement=node starts Ray actors, which cluster.kind=inline does without; use "
                "sandbox.placement=worker or cluster=local."
            )
        if self.learner.num_ranks > 1:
            faults.append(
                f"learner.num_ranks={self.learner.num_ranks} needs a process for each rank, and cluster.kind=inline "
                f"has one for everything; use cluster=local."
            )
        if self.sync.transport == "broadcast":
            faults.append(
                "sync.transport=broadcast sends from one process to others, and cluster.kind=inline has one for "
                "everything; use sync.transport=object_store or cluster=local."
            )
        return faults

    def _episode_faults(self) -> list[str]:
        faults, most, longest = [], self.episode.max_tokens, self.longest_window
        if most > self.engine.max_length:
            faults.append(
                f"episode.max_tokens={most} must not exceed engine.max_length={self.engine.max_length}, because the "
                f"engine holds whole trajectories; raise that or lower this."
            )
        if 0 < most <= longest:
            faults.append(
                f"episode.max_tokens={most} must exceed sampling.max_new_tokens={longest}, because it counts prompt "
                f"and observations too; raise it, or set 0 for engine.max_length."
            )
        return faults

    def _demonstrating_tasks(self) -> list[str]:
        mixture = self.task.demonstration_mixture or self.task.mixture
        return [name for name, weight in mixture.items() if weight > 0 and name not in self.task.files]

    @property
    def learner_gpus(self) -> int:
        """GPUs that Ray keeps for the learner's ranks: one each; one rank alone may choose among all of its node."""
        return self.learner.num_ranks if self.learner.num_ranks > 1 and self.learner.device.startswith("cuda") else 0

    @property
    def worker_gpus(self) -> float:
        """GPUs that Ray keeps for the rollout workers."""
        return self.cluster.num_workers * self.cluster.gpus_per_worker

    @property
    def worker_devices(self) -> int:
        """GPUs in which there are workers: a worker is in one GPU, or has whole ones."""
        part, workers = self.cluster.gpus_per_worker, self.cluster.num_workers
        return math.ceil(workers / int(1 / part + 1e-9)) if 0 < part < 1 else int(workers * part)

    @property
    def longest_trajectory(self) -> int:
        """The most tokens of a trajectory, prompt and observations included."""
        return self.episode.max_tokens or self.engine.max_length

    @property
    def longest_window(self) -> int:
        """The longest length limit of any step, in tokens."""
        return int(largest(self.sampling.max_new_tokens, max(self.steps, 0)))
