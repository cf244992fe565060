"""RunConfig: the parts' own Configs put together. What a run is, and what the whole command line can say.

The dataclasses hold the defaults; the YAML tree beside this file holds choices (configs/train.yaml). Hydra composes a
plain dictionary, `configs.strict.from_dict` makes a RunConfig of it, and nothing of Hydra goes further.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cispo.checkpoint import CheckpointConfig
from cispo.errors import ConfigError
from cispo.evaluate import EvaluationConfig
from cispo.learner.config import LearnerConfig
from cispo.schedule import value_at
from cispo.sft import SftConfig
from cispo.trainer import TrainerConfig
from configs.fleet import ClusterConfig, ServeConfig, SyncConfig, TrackingConfig
from configs.slurm import SlurmConfig
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
        faults: list[str] = []
        try:
            super().__post_init__()
        except ConfigError as error:
            faults.extend(error.faults)
        if not self.name or self.name in (".", "..") or "/" in self.name:
            faults.append(f"name must be a plain folder name below {self.runs_folder!r}; got {self.name!r}.")
        longest = self.longest_window
        if longest >= self.engine.max_length:
            faults.append(
                f"engine.max_length must exceed sampling.max_new_tokens, because it counts the prompt too; got "
                f"{self.engine.max_length} and {longest:g}."
            )
        faults += self._episode_faults()
        taken = sorted({*self.task.mixture, *self.task.files} & {*self.rewards.weights, "correct"})
        if taken:
            faults.append(
                f"a task may not be named like a part of the reward, because both are logged as reward/<name>/mean; "
                f"got {', '.join(taken)}."
            )
        faults += self._inline_faults()
        if self.correction.replay_experts and self.engine.kind != "hybrid":
            faults.append(
                f"correction.replay_experts=true learns with the experts that were chosen in sampling, which "
                f"engine.kind={self.engine.kind} does not tell; use engine=hybrid, or switch it off."
            )
        if self.sft.steps and not self._demonstrating_tasks():
            faults.append(
                f"sft.steps={self.sft.steps} asks for a cold start, but sets of files hold no demonstrations; start "
                f"from a trained policy with sft.steps=0 model.path=..., or name tasks in task.demonstration_mixture."
            )
        if faults:
            raise ConfigError(*faults)

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
    def longest_trajectory(self) -> int:
        """The most tokens of a trajectory, prompt and observations included."""
        return self.episode.max_tokens or self.engine.max_length

    @property
    def longest_window(self) -> int:
        """The longest length limit of any step, in tokens."""
        return int(max(value_at(self.sampling.max_new_tokens, step) for step in range(self.steps + 1)))


def explain(config: RunConfig) -> list[str]:
    """What the settings mean together, for the first lines of a run: counts, staleness, and the band of the ratio."""
    trajectories = config.groups_per_step * config.group_size
    groups_per_update = config.groups_per_step / config.updates_per_step
    lines = [
        f"{config.steps} steps of {config.groups_per_step} prompts x {config.group_size} samples = {trajectories} "
        f"trajectories, trained in {config.updates_per_step} updates of {groups_per_update:g} groups",
        f"importance ratio clipped to [{config.ratio_floor:g}, {value_at(config.ratio_cap, 0):g}]{_mask_text(config)}; "
        f"trajectories up to {config.max_staleness} versions old, plus {config.updates_per_step - 1} updates in a step",
    ]
    if config.learner.num_ranks > 1:
        lines.append(_learner_text(config.learner))
    lines += _correction_texts(config)
    if config.updates_per_step == 1 and config.max_staleness == 0:
        lines.append(
            "warning: with one update per step and no staleness every ratio is 1, so ratio_cap, ratio_floor and the "
            "mask do nothing; raise updates_per_step or max_staleness if you meant to train off-policy"
        )
    return lines


def _correction_texts(config: RunConfig) -> list[str]:
    correction, lines = config.correction, []
    if correction.ratio_against == "proximal":
        lines.append(
            f"the ratio is against the weights at the start of the step; each token also weighs "
            f"min(proximal/behaviour, {correction.cap:g})"
        )
    if correction.ratio_against == "proximal" and config.updates_per_step == 1 and config.max_staleness > 0:
        lines.append(
            "warning: with one update per step the ratio against the proximal policy is always 1, so ratio_cap, "
            "ratio_floor and the mask do nothing; raise updates_per_step or take correction.ratio_against=behaviour"
        )
    for kind, is_on in (("token", correction.masks_tokens), ("sequence", correction.masks_sequences)):
        if is_on:
            below, above = getattr(correction, f"{kind}_mask_below"), getattr(correction, f"{kind}_mask_above")
            lines.append(f"{kind}s whose proximal/behaviour is outside [{below:g}, {above:g}] are rejected")
    if correction.replay_experts:
        lines.append("the experts visited in sampling are visited in learning")
    return lines


def _learner_text(learner: LearnerConfig) -> str:
    how = {
        "local": f"{learner.copies} copies",
        "deepspeed": f"ZeRO stage {learner.deepspeed.stage}",
        "megatron": str(learner.layout),
    }[learner.kind]
    return (
        f"learner: {learner.kind} on {learner.num_ranks} ranks ({how}); an update's rows, at most "
        f"{learner.max_row_tokens} tokens each, in {learner.num_shards} shards"
    )


def _mask_text(config: RunConfig) -> str:
    if config.mask_above == float("inf") and config.mask_below == 0.0:
        return ", every token keeps its gradient"
    return f", tokens outside [{config.mask_below:g}, {config.mask_above:g}] that would move further out are dropped"
